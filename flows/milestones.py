"""What is worth a line while a run goes on: its cold start, iterations and evaluations.

The facts are values with names, for programs; `lines` says them to a person.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from flows.evaluations import EvaluationDone, evaluation_facts, number_text
from flows.events import StageEvent
from schemas.refs import StageOutput
from storage import Slot, Store

COLD_START_TAIL = 50
"""Last steps of a cold start, over which its loss is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartDone:
    """What a cold start learnt."""

    kind: ClassVar[str] = "cold_start"

    iteration: int
    steps: int
    loss: float | None
    """Mean over the last steps; null without training."""
    seconds: float
    trajectories: int | None
    """Trajectories that it had to imitate; null where it had demonstrations."""
    imitated: int | None
    """Those of them that it did imitate."""
    left_out: str | None
    """How many of them it left out, and why; null if none."""

    @property
    def lines(self) -> list[str]:
        """Says it to a person."""
        said = "without training" if self.loss is None else f"loss {self.loss:.2f}"
        lines = [f"cold start: {self.steps} steps, {said}, {self.seconds:.0f} s"]
        if self.trajectories is not None:
            told = f"; left out: {self.left_out}" if self.left_out else ""
            lines.append(f"imitated {self.imitated} of {self.trajectories} trajectories{told}")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationDone:
    """What the rollout of an iteration was worth, and what its update did."""

    kind: ClassVar[str] = "iteration"

    iteration: int
    right: float | None
    """Share of trajectories that are right, of those that count; null if none does."""
    reward: float | None
    """Mean reward of their last turns; null if none counts."""
    turns: float
    """Mean turns of a trajectory."""
    penalised: float | None
    """Share of turns with a format penalty; null without turns."""
    steps: int
    """Optimiser steps; 0 if there was no group to learn from, or the update was stopped."""
    faults: int
    """Turns at which the update was stopped; they are in the table `optimisation_faults`."""
    loss: float | None
    """Mean over the steps; null without any."""
    entropy: float | None
    """Mean over the steps, nats a token; null without any."""

    @property
    def lines(self) -> list[str]:
        """Says it to a person."""
        told = f"entropy {number_text(self.entropy)}" if self.steps else "no group to learn from"
        if self.faults:
            told = f"update stopped at {self.faults} turn{'s' if self.faults > 1 else ''}"
        return [
            f"iteration {self.iteration:3d}  right {_share(self.right)}  "
            f"reward {number_text(self.reward)}  turns {self.turns:.1f}  "
            f"penalised {_share(self.penalised)}  {told}"
        ]


Milestone = ColdStartDone | IterationDone | EvaluationDone


class Milestones:
    """Finds milestones among the events of a run."""

    def __init__(self, store: Store) -> None:
        """Begins with no event known.

        Args:
            store: Store of the run, read for the facts.
        """
        self._store = store
        self._rewards: dict[Slot, StageOutput] = {}

    def of(self, event: StageEvent) -> Iterator[Milestone]:
        """Yields what an event completes.

        Raises:
            StoreError: If a table that the facts are in cannot be read.
        """
        output, slot = event.output, event.slot
        if output is None:
            return
        if slot.split == "evaluation":
            if slot.stage == "evaluation":
                yield from evaluation_facts(self._store, slot.iteration, output)
        elif slot.stage == "turn_rewards":
            self._rewards[slot] = output
        elif slot.stage == "optimisation":
            rewards = [o for s, o in self._rewards.items() if s.iteration == slot.iteration]
            self._rewards = {s: o for s, o in self._rewards.items() if s.iteration > slot.iteration}
            if rewards:
                yield iteration_facts(self._store, slot.iteration, rewards, output)
        elif slot.stage == "cold_start" and event.kind == "computed":
            yield cold_start_facts(self._store, output, event.seconds)


def iteration_facts(
    store: Store, iteration: int, scored: Sequence[StageOutput], updated: StageOutput
) -> IterationDone:
    """Returns what an iteration's rewards, those of all its shards, and its update looked like."""
    rewards = pl.concat([store.read(output.tables["turn_rewards"]) for output in scored])
    updates = store.read(updated.tables["updates"])
    counted = rewards.filter(pl.col("excluded").is_null(), pl.col("is_last"))
    return IterationDone(
        iteration=iteration,
        right=_mean(counted["outcome"]),
        reward=_mean(counted["total"]),
        turns=len(rewards) / max(1, int(rewards["is_last"].sum())),
        penalised=_mean(rewards["format"] < 0),
        steps=len(updates),
        faults=updated.tables["optimisation_faults"].rows,
        loss=_mean(updates["loss"]),
        entropy=_mean(updates["entropy"]),
    )


def cold_start_facts(store: Store, output: StageOutput, seconds: float) -> ColdStartDone:
    """Returns what a cold start learnt, and from how many trajectories where it imitated any."""
    updates = store.read(output.tables["cold_start_updates"])
    trajectories, imitated, told = None, None, None
    if "cold_start_examples" in output.tables:
        left_out = store.read(output.tables["cold_start_examples"])["left_out"]
        trajectories, imitated = len(left_out), left_out.null_count()
        if left_out.count():
            # It brings torch with it, for which nothing that only tells of a run should wait.
            from stages.cold_start.examples import told_reasons

            told = told_reasons(left_out)
    return ColdStartDone(
        iteration=0,
        steps=len(updates),
        loss=_mean(updates["loss"].tail(COLD_START_TAIL)),
        seconds=seconds,
        trajectories=trajectories,
        imitated=imitated,
        left_out=told,
    )


def _mean(values: pl.Series) -> float | None:
    mean: Any = values.mean()
    return None if mean is None else float(mean)


def _share(value: float | None) -> str:
    return "  -" if value is None else f"{value:4.0%}"
