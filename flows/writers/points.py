"""Figures of a run as points: a name, a step and a value, read from what is stored."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.evaluations import EvaluationDone
from flows.events import StageEvent
from flows.milestones import IterationDone, Milestones
from storage import RunRecord, Store

ROLLOUT_FIGURES = ("right", "reward", "turns", "penalised")
"""Of `IterationDone`; those of the updates come step by step."""
EVALUATION_FIGURES = ("avg_at_k", "low", "high", "pass_at_k")
"""Of `EvaluationDone`."""

Key = tuple[str, int]
"""Name and step of a point; a target holds at most one value for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one curve."""

    name: str
    """`updates/loss`, `rollouts/reward`, `evaluations/held_out/avg_at_k`."""
    step: int
    """Optimiser step of an update, counted through the run; else the iteration."""
    value: float
    at: datetime
    """When the result that it is read from was stored, UTC."""

    @property
    def key(self) -> Key:
        """Name and step."""
        return self.name, self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a target is told of a run beside its figures."""

    run: str
    identity: str
    """The same for a run wherever it is stored; another one for a later run of its name."""
    created_at: datetime
    settings: Mapping[str, Any]
    """Setting to value, `advantages.gamma` and so on."""

    @classmethod
    def of(cls, record: RunRecord) -> "Header":
        """Returns the header of a run."""
        began = f"{record.name} {record.created_at.isoformat()}"
        return cls(
            run=record.name,
            identity=hashlib.sha256(began.encode()).hexdigest()[:12],
            created_at=record.created_at,
            settings=dict(_flat(record.config, "")),
        )


class Points:
    """Reads the points that a stored result brings."""

    def __init__(self, store: Store, record: RunRecord) -> None:
        """Begins with no result known.

        Args:
            store: Where the run is.
            record: Its record.
        """
        self._store, self._milestones = store, Milestones(store)
        self._steps = int(record.config["optimisation"]["minibatches"])

    def of(self, event: StageEvent) -> Iterator[Point]:
        """Yields the points of a result; null and what is no finite number is left out.

        Raises:
            StoreError: If a table cannot be read.
        """
        slot = event.slot
        if slot.stage == "optimisation" and event.output is not None:
            updates = self._store.read(event.output.tables["updates"])
            for row in updates.iter_rows(named=True):
                # A step has its number whatever earlier iterations left out, as in a branch.
                step = (slot.iteration - 1) * self._steps + row.pop("step")
                yield from _points("updates", row, step, event.at)
        for milestone in self._milestones.of(event):
            if isinstance(milestone, IterationDone):
                values = {name: getattr(milestone, name) for name in ROLLOUT_FIGURES}
                yield from _points("rollouts", values, milestone.iteration, event.at)
            elif isinstance(milestone, EvaluationDone):
                values = {name: getattr(milestone, name) for name in EVALUATION_FIGURES}
                # The characters that every target takes in a name.
                benchmark = re.sub(r"[^\w.-]", "_", milestone.benchmark, flags=re.ASCII)
                name = f"evaluations/{benchmark}"
                yield from _points(name, values, milestone.iteration, event.at)


def _points(name: str, values: Mapping[str, Any], step: int, at: datetime) -> Iterator[Point]:
    for column, value in values.items():
        if value is not None and abs(float(value)) < float("inf"):
            yield Point(name=f"{name}/{column}", step=step, value=float(value), at=at)


def _flat(values: Mapping[str, Any], start: str) -> Iterator[tuple[str, Any]]:
    """Yields settings by their full names; lists as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", json.dumps(value) if isinstance(value, list) else value
