"""One trajectory as a conversation: what was said, run and shown, and what each turn was worth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.page.reading import NotFoundError, Reader
from schemas.reward_components import COMPONENTS
from storage import scan_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPLACEMENT = "�"
"""What a tokenizer gives for a part of a character."""


@dataclass(frozen=True, slots=True)
class Key:
    """Names a trajectory of a store."""

    run: str
    iteration: int
    split: str
    task: str
    sample: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it was sampled."""

    text: str
    """What it spells; its id where the tokenizer is not kept."""
    index: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Ran:
    """What running the code of a turn did."""

    status: str
    observation: str
    stdout: str
    stderr: str
    exit_code: int | None
    wall_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    """One turn."""

    index: int
    reasoning: str
    code: str | None
    answer: str | None
    text: str
    finish_reason: str
    parse_error: str | None
    is_void: bool
    policy_version: int
    temperature: float
    tokens: Sequence[Token]
    ran: Ran | None
    worth: Sequence[tuple[str, float | None]]
    """Name and value of rewards, return, baseline, scale and advantage, where they are known."""
    update: Sequence[tuple[str, float | None]]
    """What the optimisation did to it."""
    advantage: float | None
    excluded: str | None

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability of its tokens, nats; null without any."""
        if not self.tokens:
            return None
        return sum(token.logprob for token in self.tokens) / len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One trajectory."""

    key: Key
    problem: str | None
    gold: str | None
    outcome: str
    verdict: str | None
    shaping: str | None
    similarity: tuple[float, float] | None
    """Mean and largest over the right peers."""
    peers: int | None
    turns: Sequence[TurnView]
    samples: Sequence[int]
    """Trajectories of the group."""
    notes: Sequence[str]


def conversation(reader: Reader, key: Key) -> Conversation:
    """Returns a trajectory.

    Raises:
        NotFoundError: If it is not there.
        StoreError: If a table cannot be read.
    """
    record = reader.record(key.run)
    tables = reader.tables(key.run, key.iteration, key.split)
    ours = (pl.col("task_id") == key.task) & (pl.col("sample_index") == key.sample)
    with scan_errors(f"tables of {key.run}"):
        group = tables.open("turns").filter(pl.col("task_id") == key.task)
        samples = group.select(pl.col("sample_index").unique().sort()).collect()
        if key.sample not in samples.to_series():
            raise NotFoundError(
                f"run {key.run} has no trajectory {key.sample} of task {key.task} in iteration "
                f"{key.iteration}, {key.split}"
            )
        turns = tables.rows("turns", ours).sort("turn_index")
        names = ("executions", "turn_rewards", "shaped_rewards", "advantages", "turn_updates")
        parts = [_by_turn(tables.rows(name, ours)) for name in names]
        prompts = tables.rows("prompts", pl.col("task_id") == key.task)
        outcomes = tables.outcomes().filter(ours).collect()
    _, rewards, shaped, credit, _ = parts
    notes = []
    tokenizer = None
    if not turns["token_ids"].list.len().sum():
        notes.append("Imported: there are no tokens and no log-probabilities.")
    else:
        file = reader.tokenizer_file(key.run, key.iteration)
        tokenizer = None if file is None else _tokenizer(*file)
        if tokenizer is None:
            notes.append("No policy of the run is kept, so tokens are told by their ids.")
    if record.imported_from is None and key.split == "train" and not credit:
        notes.append("These turns have no advantages yet.")
    asked = prompts.row(0, named=True) if len(prompts) else {}
    first = next(iter(shaped.values()), {})
    outcome = outcomes["outcome"][0] if len(outcomes) else None
    similarity = (first.get("similarity_mean"), first.get("similarity_max"))
    return Conversation(
        key=key,
        problem=asked.get("problem"),
        gold=asked.get("answer"),
        outcome="not graded" if outcome is None else "right" if outcome > 0 else "wrong",
        verdict=next((row["verdict"] for row in rewards.values()), None),
        shaping=first.get("shaping"),
        similarity=None if None in similarity else similarity,  # type: ignore[arg-type]
        peers=first.get("peers"),
        turns=[_turn(row, parts, tokenizer) for row in turns.iter_rows(named=True)],
        samples=samples.to_series().to_list(),
        notes=notes,
    )


def spelled(tokenizer: "Tokenizer", ids: Sequence[int]) -> Iterator[str]:
    """Yields what each token spells where it stands; control tokens too.

    A token is decoded behind the one before it, since some tokenizers leave the space in front of a
    text out. A part of a character is told as the vocabulary writes it.
    """
    before: list[int] = []
    for index in ids:
        lead = tokenizer.decode(before, skip_special_tokens=False) if before else ""
        both = tokenizer.decode([*before, index], skip_special_tokens=False)
        text = both.removeprefix(lead) if both.startswith(lead) else both
        if REPLACEMENT in text or not text:
            text = tokenizer.id_to_token(index) or f"[{index}]"
        yield text
        before = [index]


@lru_cache(maxsize=8)
def _tokenizer(file: Path, digest: str) -> "Tokenizer":
    """Opens a tokenizer once, as large ones take their time; the digest tells a replaced file."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _by_turn(frame: pl.DataFrame) -> dict[int, dict[str, Any]]:
    return {row["turn_index"]: row for row in frame.iter_rows(named=True)}


def _turn(
    row: Mapping[str, Any],
    parts: Sequence[Mapping[int, Mapping[str, Any]]],
    tokenizer: "Tokenizer | None",
) -> TurnView:
    index = row["turn_index"]
    execution, reward, shaped, credit, update = (part.get(index, {}) for part in parts)
    ids = row["token_ids"]
    texts = [f"[{i}]" for i in ids] if tokenizer is None else list(spelled(tokenizer, ids))
    excluded = credit.get("excluded") or reward.get("excluded")
    return TurnView(
        index=index,
        reasoning=row["reasoning"],
        code=row["code"],
        answer=row["answer"],
        text=row["text"],
        finish_reason=row["finish_reason"],
        parse_error=row["parse_error"],
        is_void=row["code"] is None and row["answer"] is None,
        policy_version=row["policy_version"],
        temperature=row["temperature"],
        tokens=[Token(*token) for token in zip(texts, ids, row["logprobs"], strict=True)],
        ran=_ran(execution) if execution else None,
        worth=list(_worth(reward, shaped, credit)),
        update=[(name, update.get(column)) for name, column in UPDATE.items()] if update else [],
        advantage=credit.get("advantage"),
        excluded=None if excluded is None else excluded.replace("_", " "),
    )


UPDATE = {
    "step": "step",
    "change of the mean log-probability": "logprob_change",
    "largest ratio": "ratio_max",
    "clipped, low end": "clip_fraction_low",
    "clipped, high end": "clip_fraction_high",
    "KL": "kl",
    "entropy": "entropy",
}


def _ran(execution: Mapping[str, Any]) -> Ran:
    columns = ("status", "observation", "stdout", "stderr", "exit_code", "wall_s")
    return Ran(*(execution[name] for name in columns))


def _worth(
    reward: Mapping[str, Any], shaped: Mapping[str, Any], credit: Mapping[str, Any]
) -> Iterator[tuple[str, float | None]]:
    if reward:
        yield "accuracy", reward["accuracy"]
        # A penalty or component that is 0 says nothing; the accuracy does.
        for name in ("format", "no_tool", *COMPONENTS):
            if reward[name]:
                yield name.replace("_", " "), reward[name]
        yield "reward", reward["total"]
    if shaped and shaped["shaped_total"] != shaped["total"]:
        yield "shaped accuracy", shaped["shaped_accuracy"]
        yield "shaped reward", shaped["shaped_total"]
    if credit:
        for name in ("return", "baseline", "scale", "turn_advantage", "advantage"):
            if name != "turn_advantage" or credit[name] is not None:
                yield name.replace("_", " "), credit[name]
