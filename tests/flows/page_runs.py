"""A store with runs of every sort, made by hand: what the pages are tried on.

Texts that a policy or a file brought may hold whatever a test gives, such as markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from schemas.config import AdvantagesConfig, RunConfig, SimilarityConfig, TurnRewardsConfig
from schemas.refs import StageOutput
from schemas.tables import TABLES, Evaluations, Executions, Prompts, Turns
from stages.advantages import estimate_advantages
from stages.similarity import shape_rewards
from stages.turn_rewards import score_turns
from storage import Fingerprint, RunParent, RunRecord, Slot, Store

RUN, BRANCH, IMPORTED, EMPTY, FAILED = "main", "gamma-50", "theirs", "empty", "failed"
BENCHMARK = "sums"
"""On which the last policy of RUN was tried."""
WORDS = ("one ", "two ", "<code>", "</code>", "\n", "three")
"""What the tokens of the policy spell."""

PLAIN: Mapping[str, str] = {
    "task": "sum",
    "problem": "Add the numbers from 1 to 9.",
    "gold": "45",
    "reasoning": "I add them.",
    "code": "print(sum(range(1, 10)))",
    "observation": "45",
    "stdout": "45\n",
    "stderr": "a warning",
    "answer": "45",
    "message": "the disk is full",
    "file": "theirs.jsonl",
    "override": "advantages.gamma=0.5",
}
"""Texts that come from outside, each shown somewhere."""


@dataclass(frozen=True)
class Trajectory:
    """Turns of one trajectory: code or none, its status, and the answer of the last."""

    turns: Sequence[tuple[str | None, str | None, str]]
    """Code, answer and status of each."""


@dataclass(frozen=True)
class Texts:
    """Texts of a store; those not given are plain."""

    given: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.given.get(name, PLAIN[name])


def groups_of(texts: Texts) -> dict[str, list[Trajectory]]:
    """Returns the groups of an iteration: one to learn from, and two of the sort to look for."""
    code = texts["code"]
    right, wrong = texts["gold"], "44"
    return {
        # The first turn of the longest right trajectory is below the mean: right and negative.
        texts["task"]: [
            Trajectory([(code, None, "ok")] * 3 + [(None, right, "")]),
            Trajectory([(f"{code} ", wrong, "ok")]),
            Trajectory([("print(undefined)", wrong, "error")]),
            Trajectory([(code, right, "ok")]),
            Trajectory([(code, right, "ok")]),
            Trajectory([(code, right, "ok")]),
        ],
        "slow": [
            Trajectory([("while True: pass", wrong, "timeout")]),
            Trajectory([(None, wrong, "")]),
        ],
        "silent": [Trajectory([(None, None, "")]), Trajectory([(None, wrong, "")])],
        "lost": [Trajectory([(code, None, "infrastructure")])],
    }


def make_store(path: str | Path, texts: Mapping[str, str] | None = None) -> Store:
    """Makes the store; a bucket's must be there already."""
    store = Store.open(path, create=True)
    known = Texts(texts or {})
    for run, gamma in ((RUN, 0.9), (BRANCH, 0.5)):
        _put_policy(store, run)
        for iteration in (1, 2):
            _put_iteration(store, run, iteration, groups_of(known), known, gamma=gamma)
            _put_updates(store, run, iteration)
        for iteration in (0, 2):
            _put_evaluation(store, run, iteration, known)
    _put_evaluation(store, RUN, 2, known, BENCHMARK)
    _put_iteration(store, IMPORTED, 1, groups_of(known), known, gamma=None)
    gamma_90 = RunConfig(iterations=2, advantages=AdvantagesConfig(gamma=0.9))
    gamma_50 = RunConfig(advantages=AdvantagesConfig(gamma=0.5))
    parent = RunParent(run=RUN, iteration=1, stage="advantages", overrides=[known["override"]])
    _save(store, RUN, gamma_90, status="finished", iterations_done=2)
    _save(store, BRANCH, gamma_50, status="finished", parent=parent)
    _save(store, IMPORTED, RunConfig(), status="finished", imported_from=known["file"])
    _save(store, EMPTY, RunConfig(), status="running")
    _save(store, FAILED, RunConfig(), status="failed", message=known["message"])
    return store


def _save(store: Store, run: str, config: RunConfig, **fields: Any) -> None:
    store.save_run(RunRecord.new(run, config, **fields))


def put(store: Store, slot: Slot, **tables: pl.DataFrame) -> StageOutput:
    """Stores tables in a slot."""
    made_by = Fingerprint(
        stage=slot.stage, code={}, config={"slot": slot.uri}, inputs={}, seed=None, libraries={}
    )
    return store.write(slot, made_by, tables=tables, seconds=1.5, parents=[])


def _put_policy(store: Store, run: str) -> None:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="one "))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([word for word in WORDS if word.startswith("<")])

    def write_policy(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        tokenizer.save(str(folder / "tokenizer.json"))

    slot = Slot(run=run, iteration=0, split="train", stage="cold_start")
    made_by = Fingerprint(
        stage="cold_start", code={}, config={"run": run}, inputs={}, seed=0, libraries={}
    )
    store.write(
        slot,
        made_by,
        tables={},
        checkpoint_writer=write_policy,
        policy_version=0,
        seconds=2.0,
        parents=[],
    )


def _put_iteration(
    store: Store,
    run: str,
    iteration: int,
    groups: Mapping[str, Sequence[Trajectory]],
    texts: Texts,
    *,
    gamma: float | None,
) -> None:
    """Stores the tables of an iteration; without gamma, of an import, up to the executions."""

    def slot(stage: str, **parts: int) -> Slot:
        return Slot(run=run, iteration=iteration, split="train", stage=stage, **parts)

    prompts = _prompts(groups, texts)
    turns = _turns(groups, texts, sampled=gamma is not None)
    executions = _executions(groups, texts)
    put(store, slot("prompts"), prompts=prompts)
    # An import has all turns in one file, a rollout a file a turn.
    for turn in range(4) if gamma is not None else (0,):
        here = pl.col("turn_index") == turn if gamma is not None else pl.lit(True)
        parts = {"shard": 0, "turn": turn}
        generated = _times("generation_times") if turn == 0 and gamma is not None else {}
        ran = _times("execution_times") if turn == 0 and gamma is not None else {}
        put(store, slot("rollout", **parts), turns=turns.filter(here), **generated)
        put(store, slot("execution", **parts), executions=executions.filter(here), **ran)
    if gamma is None:
        return
    rewards = score_turns(prompts, turns, executions, TurnRewardsConfig())
    shaped = shape_rewards(turns, rewards, SimilarityConfig())
    credit = estimate_advantages(shaped, AdvantagesConfig(gamma=gamma))
    put(store, slot("turn_rewards", shard=0), turn_rewards=rewards)
    put(store, slot("similarity", shard=0), shaped_rewards=shaped)
    put(store, slot("advantages"), advantages=credit)


def _keyed(groups: Mapping[str, Sequence[Trajectory]]) -> list[dict[str, Any]]:
    return [
        {
            "task_id": task,
            "sample_index": sample,
            "turn_index": index,
            "code": code,
            "answer": answer,
            "status": status,
        }
        for task, trajectories in groups.items()
        for sample, trajectory in enumerate(trajectories)
        for index, (code, answer, status) in enumerate(trajectory.turns)
    ]


def _prompts(groups: Mapping[str, Sequence[Trajectory]], texts: Texts) -> Any:
    frame = pl.DataFrame({"task_id": list(groups)}).with_columns(
        problem=pl.lit(texts["problem"]),
        answer=pl.lit(texts["gold"]),
        source=pl.lit("handmade"),
        level=pl.lit(None),
        prompt_token_ids=pl.lit([1], pl.List(pl.Int32)),
        round=pl.lit(0),
    )
    return Prompts.validate(frame, cast=True)


def _turns(groups: Mapping[str, Sequence[Trajectory]], texts: Texts, *, sampled: bool) -> Any:
    tokens = [0, 2, 5, 4, 1, 3] if sampled else []
    frame = pl.DataFrame(_keyed(groups), infer_schema_length=None).with_columns(
        text=pl.lit(texts["reasoning"]) + pl.coalesce("code", "answer", pl.lit("")),
        reasoning=pl.lit(texts["reasoning"]),
        token_ids=pl.lit(tokens, pl.List(pl.Int32)),
        logprobs=pl.lit([-0.25 * (2**i) for i in range(len(tokens))], pl.List(pl.Float32)),
        finish_reason=pl.lit("end"),
        parse_error=pl.lit(None, pl.String),
        temperature=pl.lit(1.0),
        top_p=pl.lit(1.0),
        top_k=pl.lit(0),
        policy_version=pl.lit(0),
        seed=pl.lit(0),
    )
    return Turns.validate(frame.select(Turns.column_names()), cast=True)


def _executions(groups: Mapping[str, Sequence[Trajectory]], texts: Texts) -> Any:
    frame = pl.DataFrame(_keyed(groups), infer_schema_length=None).filter(pl.col("status") != "")
    return Executions.validate(
        frame.with_columns(
            stdout=pl.lit(texts["stdout"]),
            stderr=pl.lit(texts["stderr"]),
            observation=pl.lit(texts["observation"]),
            exit_code=pl.lit(0),
            wall_s=pl.lit(0.1),
            cpu_s=pl.lit(0.1),
            observation_token_ids=pl.lit([2], pl.List(pl.Int32)),
        ).select(Executions.column_names()),
        cast=True,
    )


def _times(table: str) -> dict[str, pl.DataFrame]:
    began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=table == "execution_times")
    row = {
        "shard": 0,
        "turn_index": 0,
        "began_at": began,
        "ended_at": began + timedelta(seconds=1.5),
        "turns": 14,
        "tokens": 84,
        "prompt_tokens": 100,
        "cached_tokens": 50,
    }
    schema = TABLES[table].schema
    return {table: schema.validate(pl.DataFrame([row]).select(schema.column_names()), cast=True)}


def _put_updates(store: Store, run: str, iteration: int) -> None:
    schema = TABLES["updates"].schema
    row = dict.fromkeys(schema.column_names(), 0.5) | {"step": 0}
    updates = schema.validate(pl.DataFrame([row]), cast=True)
    slot = Slot(run=run, iteration=iteration, split="train", stage="optimisation")
    put(store, slot, updates=updates)


def _put_evaluation(
    store: Store, run: str, iteration: int, texts: Texts, split: str = "evaluation"
) -> None:
    groups = {
        texts["task"]: [Trajectory([(texts["code"], None, "ok"), (None, texts["gold"], "")])] * 2
    }
    tables = {
        "prompts": {"prompts": _prompts(groups, texts)},
        "rollout": {"turns": _turns(groups, texts, sampled=True)},
        "execution": {"executions": _executions(groups, texts)},
        "evaluation": {"evaluations": _evaluations(groups, texts, split)},
    }
    for stage, made in tables.items():
        slot = Slot(run=run, iteration=iteration, split=split, stage=stage)
        put(store, slot, **made)


def _evaluations(groups: Mapping[str, Sequence[Trajectory]], texts: Texts, split: str) -> Any:
    rows = [
        {
            "benchmark": "held_out" if split == "evaluation" else split,
            "task_id": task,
            "sample_index": sample,
            "source": "handmade",
            "level": None,
            "prediction": texts["answer"],
            "verdict": "right" if sample == 0 else "wrong",
            "correct": sample == 0,
            "turns": 2,
            "tool_calls": 1,
            "failed_tool_calls": 0,
            "tokens": 12,
            "policy_version": 0,
        }
        for task, trajectories in groups.items()
        for sample in range(len(trajectories))
    ]
    return Evaluations.validate(pl.DataFrame(rows), cast=True)
