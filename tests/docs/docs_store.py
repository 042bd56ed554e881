"""A store of one iteration whose rows are made by hand and scored by the real stages."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from schemas.config import AdvantagesConfig, SimilarityConfig, TurnRewardsConfig
from schemas.tables import Executions, Prompts, Turns
from stages.advantages import estimate_advantages
from stages.similarity import shape_rewards
from stages.turn_rewards import score_turns
from storage import Fingerprint, Slot, Store

SUM = "print(sum(range(1, 10)))"
TRAJECTORIES: dict[tuple[str, int], list[tuple[str | None, str | None, str]]] = {
    # task, sample -> (code, answer, status) a turn; the gold answer is always 45
    ("sum", 0): [
        (SUM, None, "ok"),
        ("print(40 + 5)", None, "ok"),
        ("print(45)", None, "ok"),
        (None, "45", ""),
    ],
    ("sum", 1): [("print(sum(range(1, 9)))", "36", "ok")],
    ("sum", 2): [("print(undefined)", "44", "error")],
    ("sum", 3): [(SUM, "45", "ok")],
    ("sum", 4): [(SUM, "45", "ok")],
    ("sum", 5): [(SUM, "45", "ok")],
    ("gcd", 0): [(None, "1", "")],
    ("gcd", 1): [("print(1", "1", "error")],
    ("lost", 0): [(SUM, None, "infrastructure")],
}
"""In `sum`, the first turn of the longest right trajectory is the only one below the mean."""


def handmade_store(path: Path, *, run: str, iteration: int) -> Store:
    """Makes a store with the train tables of one iteration, up to the advantages."""
    store = Store.open(path, create=True)
    prompts, turns, executions = _prompts(), _turns(), _executions()
    rewards = score_turns(prompts, turns, executions, TurnRewardsConfig())
    shaped = shape_rewards(turns, rewards, SimilarityConfig())
    credit = estimate_advantages(shaped, AdvantagesConfig(gamma=0.9))
    results: list[tuple[str, Mapping[str, pl.DataFrame], dict[str, int]]] = [
        ("prompts", {"prompts": prompts}, {}),
        ("rollout", {"turns": turns}, {"shard": 0, "turn": 0}),
        ("execution", {"executions": executions}, {"shard": 0, "turn": 0}),
        ("turn_rewards", {"turn_rewards": rewards}, {}),
        ("similarity", {"shaped_rewards": shaped}, {}),
        ("advantages", {"advantages": credit}, {}),
    ]
    for stage, tables, parts in results:
        slot = Slot(run=run, iteration=iteration, split="train", stage=stage, **parts)
        made_by = Fingerprint(stage=stage, code={}, config={}, inputs={}, seed=None, libraries={})
        store.write(slot, made_by, tables=tables, seconds=0.0, parents=[])
    return store


def _keyed(values: list[dict[str, object]]) -> pl.DataFrame:
    keys = [
        {"task_id": task, "sample_index": sample, "turn_index": index}
        for (task, sample), turns in TRAJECTORIES.items()
        for index in range(len(turns))
    ]
    rows = [key | value for key, value in zip(keys, values, strict=True)]
    return pl.DataFrame(rows, infer_schema_length=None)


def _prompts() -> pl.DataFrame:
    rows = [
        {"task_id": task, "problem": "?", "answer": "45", "source": "handmade", "level": None}
        for task in dict.fromkeys(task for task, _ in TRAJECTORIES)
    ]
    return Prompts.validate(
        pl.DataFrame(rows).with_columns(prompt_token_ids=[1], round=0), cast=True
    )


def _turns() -> pl.DataFrame:
    frame = _keyed(
        [
            {"text": code or answer, "reasoning": "", "code": code, "answer": answer}
            for turns in TRAJECTORIES.values()
            for code, answer, _ in turns
        ]
    )
    return Turns.validate(
        frame.with_columns(
            token_ids=pl.lit([1], pl.List(pl.Int32)),
            logprobs=pl.lit([-0.5], pl.List(pl.Float32)),
            finish_reason=pl.lit("end"),
            parse_error=pl.lit(None, pl.String),
            temperature=pl.lit(1.0),
            top_p=pl.lit(1.0),
            top_k=pl.lit(0),
            policy_version=pl.lit(0),
            seed=pl.lit(0),
        ),
        cast=True,
    )


def _executions() -> pl.DataFrame:
    statuses = [{"status": status} for turns in TRAJECTORIES.values() for *_, status in turns]
    frame = _keyed(statuses).filter(pl.col("status") != "")
    return Executions.validate(
        frame.with_columns(
            stdout=pl.lit(""),
            stderr=pl.lit(""),
            exit_code=pl.lit(0),
            wall_s=pl.lit(0.1),
            cpu_s=pl.lit(0.1),
            observation=pl.lit(""),
            observation_token_ids=pl.lit([2], pl.List(pl.Int32)),
        ),
        cast=True,
    )
