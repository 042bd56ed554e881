"""Plan: a dry run of a flow. What would be found stored, what would run, why, and how long.

The flow's own code is followed, with a planner in the place of Prefect, so a plan cannot disagree
with the run about what depends on what. Nothing is written and no model is opened.

A stage whose input is made anew cannot be looked up before that input exists. It is told as
`depends`: if the input turns out as it was, its stored result serves; else it runs.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import polars as pl

from flows.binding import Place, StageRun
from flows.catalogue import STAGES, Scope
from flows.rerun import rerunning
from flows.stage_tasks import planning
from flows.train import training
from schemas.config import RunConfig
from schemas.errors import StoreError
from schemas.refs import CheckpointRef, Ref, StageOutput, TableRef
from schemas.tables import TABLES
from storage import Slot, Store, explain
from storage.manifests import Manifest

Action = Literal["hit", "run", "depends"]

PLAN_SCHEMA = {
    "iteration": pl.Int32,
    "split": pl.String,
    "stage": pl.String,
    "shard": pl.Int32,
    "turn": pl.Int32,
    "action": pl.String,
    "reason": pl.String,
    "last_s": pl.Float64,
    "slot": pl.String,
}
"""Columns of a plan: a row a stage run, in the order of the flow.

`action` is `hit` (stored and verified), `run`, or `depends` (runs if an input made anew differs);
`last_s` the seconds that it took last time, or its like did; null if there is none.
"""

_PENDING = "made anew by "
"""Stands, with the slot, for the digest of what is not there yet."""


def plan_training(place: Place, config: RunConfig) -> pl.DataFrame:
    """Returns what `train` would do; see `PLAN_SCHEMA`.

    Args:
        place: Store and run; the run may be a new one.
        config: Settings of the run.

    Raises:
        TurnledgerError: If the store, a problem file or a policy cannot be read.
    """
    planner = LedgerPlanner(place.open())
    with planning(planner):
        training(place, config, lambda done: None)
    return planner.frame()


def plan_rerun(old: Place, new: Place, scope: Scope, config: RunConfig) -> pl.DataFrame:
    """Returns what `rerun` would do; see `PLAN_SCHEMA`.

    Args:
        old: Iteration that would be run again.
        new: The same in the branch, which need not exist.
        scope: Stages that would be computed.
        config: Settings of the branch.

    Raises:
        TurnledgerError: As `plan_training`, or if the source lacks what the rerun builds on.
    """
    planner = LedgerPlanner(old.open(), compared_with=old.run)
    with planning(planner):
        rerunning(old, new, scope, config)
    return planner.frame()


class LedgerPlanner:
    """Answers for stage runs from what is stored; a `Planner` of `flows.stage_tasks`."""

    def __init__(self, store: Store, compared_with: str | None = None) -> None:
        """Begins a plan.

        Args:
            store: Where results are looked up.
            compared_with: Run whose results explain why a stage of a new branch would run; null
                for those of the run itself.
        """
        self._store = store
        self._origin = compared_with
        self._rows: list[dict[str, object]] = []
        self._seconds: dict[tuple[str, str], list[float]] | None = None

    def frame(self) -> pl.DataFrame:
        """Returns the plan so far."""
        return pl.DataFrame(self._rows, schema=PLAN_SCHEMA)

    def stage(self, run: StageRun) -> StageOutput:
        """Notes what a stage run would do; returns the output that it would have."""
        old = self._stored(run.slot)
        waits = {name: ref for name, ref in run.inputs.items() if _is_pending(ref)}
        if waits:
            sure, waiting = _why_waiting(run, old, waits)
            action: Action = "run" if sure else "depends"
            self._note(
                run.slot, action, "; ".join([*sure, waiting]), self._usual_seconds(run.slot, old)
            )
            return _expected(run, old)
        found = self._store.look(run.slot, run.fingerprint)
        if found.output is not None:
            self._note(run.slot, "hit", found.reason, found.seconds)
            return found.output
        reason = found.reason
        if found.expected is None and old is not None:
            reason = "; ".join(explain(run.fingerprint, old.fingerprint)) or reason
        self._note(run.slot, "run", reason, self._usual_seconds(run.slot, old))
        return found.expected or _expected(run, old)

    def adoption(self, place: Place, source: Slot, target: Slot) -> StageOutput | None:
        """Notes that a result would be taken over; returns null where there is none.

        Raises:
            StoreError: If it is damaged, as taking it over would.
        """
        manifest = self._store.verified(source)
        if manifest is None:
            return None
        if source != target:
            self._note(target, "hit", f"taken over from {source.run}", manifest.seconds)
        return manifest.output(target.uri)

    def _stored(self, slot: Slot) -> Manifest | None:
        """Returns what is in a slot, or in the slot that it is compared with."""
        origin = slot if self._origin is None else slot.model_copy(update={"run": self._origin})
        for place in dict.fromkeys((slot, origin)):
            try:
                manifest = self._store.manifest(place)
            except StoreError:  # damaged: there is nothing to compare with
                continue
            if manifest is not None:
                return manifest
        return None

    def _note(self, slot: Slot, action: Action, reason: str, seconds: float | None) -> None:
        self._rows.append(
            {
                "iteration": slot.iteration,
                "split": slot.split,
                "stage": slot.stage,
                "shard": slot.shard,
                "turn": slot.turn,
                "action": action,
                "reason": reason,
                "last_s": seconds,
                "slot": slot.uri,
            }
        )

    def _usual_seconds(self, slot: Slot, old: Manifest | None) -> float | None:
        """Returns the time of last time, else the stage's median in its run or in the store."""
        if old is not None:
            return old.seconds
        if self._seconds is None:
            self._seconds = defaultdict(list)
            for _, manifest in self._store.results():
                known = manifest.slot
                self._seconds[known.run, f"{known.split} {known.stage}"].append(manifest.seconds)
        kind = f"{slot.split} {slot.stage}"
        own = self._seconds.get((slot.run, kind))
        every = own or [s for (_, k), values in self._seconds.items() if k == kind for s in values]
        return statistics.median(every) if every else None


def _is_pending(ref: Ref) -> bool:
    return ref.content.startswith(_PENDING)


def _expected(run: StageRun, old: Manifest | None) -> StageOutput:
    """Returns an output whose content is not known yet."""
    slot, spec = run.slot, STAGES[run.slot.stage]
    pending = _PENDING + slot.uri
    before = {} if old is None else old.output(slot.uri).tables
    rows = {name: ref.rows for name, ref in before.items()} | dict(run.rows)
    tables = {
        name: TableRef(
            uri=f"{slot.uri}/{name}.parquet",
            name=name,
            digest=pending,
            content=pending,
            # As many rows as are asked for: how many there will be nobody knows.
            rows=rows.get(name, 2**31 - 1),
            schema_version=TABLES[name].version,
        )
        for name in spec.tables
    }
    checkpoint = CheckpointRef(
        uri=f"{slot.uri}/policy",
        name="policy",
        digest=pending,
        content=pending,
        policy_version=slot.iteration,
    )
    return StageOutput(tables=tables, checkpoint=checkpoint if spec.makes_policy else None)


def _why_waiting(
    run: StageRun, old: Manifest | None, waits: dict[str, Ref]
) -> tuple[list[str], str]:
    """Returns what differs for sure, and which inputs are made anew."""
    waiting = f"data made anew by {_stages(waits.values())}"
    if old is None:
        return ["first run"], waiting
    # Only what is known now is compared: the digests to come would all differ.
    now = run.fingerprint
    before = old.fingerprint.inputs
    inputs = {
        n: before.get(n, digest) if n in waits else digest for n, digest in now.inputs.items()
    }
    return explain(now.model_copy(update={"inputs": inputs}), old.fingerprint), waiting


def _stages(refs: Iterable[Ref]) -> str:
    """Names the stages that make inputs anew, each once, with their iteration."""
    slots = [ref.content.removeprefix(_PENDING) for ref in refs]
    parts = [dict(p.split("=") for p in slot.split("/")) for slot in slots]
    names = dict.fromkeys(f"{p['stage']} of iteration {int(p['iteration'])}" for p in parts)
    return ", ".join(names)
