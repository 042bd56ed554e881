"""Follows a run that another process works on, also on another machine, by its store alone.

Results appear in the store one by one, each with its manifest last; they are the events. The
record of the run and the hold on it tell when it ends. Nothing is held or written.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from flows.catalogue import STAGES
from flows.evaluations import EvaluationDone, evaluation_facts
from flows.events import StageEvent
from schemas.errors import StoreError, StoreUnavailable
from storage import RunRecord, Store
from storage.manifests import Manifest

ORDER = {stage: place for place, stage in enumerate(STAGES)}


def poll_s(store: Store) -> float:
    """Returns the seconds between two looks: a bucket is asked less often than a folder."""
    return 3.0 if "://" in store.url else 1.0


def wait_for_run(
    store: Store, run: str, *, sleep: Callable[[float], None] = time.sleep
) -> RunRecord:
    """Waits until a run is there, and returns its record."""
    while not store.has_run(run):
        sleep(poll_s(store))
    return store.run_record(run)


def follow(
    store: Store,
    run: str,
    on_event: Callable[[StageEvent], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> RunRecord:
    """Passes on what is stored of a run and what is added to it, until it ends.

    Args:
        store: Where the run is.
        run: Its name.
        on_event: Takes a `StageEvent` for every result: those that are there at once, by iteration
            and stage, then those that come.
        sleep: Waits for some seconds.

    Returns:
        The record of the run as it ended. A run that is left "running" by a process that died is
        `interrupted`.

    Raises:
        StoreError: If the store cannot be read any more, or the run is gone.
    """
    is_held, seen = store.watch_lock(run), dict[str, str]()
    was_held = True
    while True:
        held = is_held()
        record = store.run_record(run)
        # The record comes with the hold: one look without it may be the moment between the two.
        is_left = record.status == "running" and not held and not was_held
        is_over = is_left or (record.status != "running" and not held)
        was_held = held
        for uri, event in new_events(store, run, seen):
            try:
                on_event(event)
            except StoreUnavailable:
                raise
            except StoreError:
                if is_over:
                    raise
                seen.pop(uri)  # replaced since it was listed: its successor is told next time
        if is_over:
            return record.model_copy(update={"status": "interrupted"}) if is_left else record
        sleep(poll_s(store))


def new_events(store: Store, run: str, seen: dict[str, str]) -> Iterator[tuple[str, StageEvent]]:
    """Yields slot uri and event of every result that came since the last call.

    Args:
        store: Where the run is.
        run: Its name.
        seen: As `Store.changes` takes it.

    Raises:
        StoreError: If the store cannot be read.
    """

    def place(found: tuple[str, Manifest]) -> tuple[int, bool, int, str]:
        slot = found[1].slot
        last = len(ORDER)
        return (
            slot.iteration,
            slot.split == "evaluation",
            ORDER.get(slot.stage, last),
            found[0],
        )

    for uri, manifest in sorted(store.changes(run, seen), key=place):
        yield uri, event_of(uri, manifest)


def event_of(uri: str, manifest: Manifest) -> StageEvent:
    """Returns what was told when a result was stored."""
    source = manifest.adopted_from
    return StageEvent(
        slot=manifest.slot,
        kind="computed" if source is None else "reused",
        reason="" if source is None else f"taken over from {source}",
        seconds=manifest.seconds,
        computed_s=manifest.seconds,
        output=manifest.output(uri),
        at=manifest.adopted_at or manifest.created_at,
    )


@dataclass(frozen=True, slots=True)
class RunState:
    """What a list of runs says of one."""

    record: RunRecord
    evaluation: EvaluationDone | None
    """Its last one; null without any, or if it cannot be read."""

    def age_s(self, now: datetime | None = None) -> float:
        """Returns the seconds since the record was changed; 0 if that was by a clock ahead."""
        return max(0.0, ((now or datetime.now(UTC)) - self.record.updated_at).total_seconds())


def run_states(store: Store) -> list[RunState]:
    """Returns the state of every run whose record can be read, sorted by name.

    Raises:
        StoreError: If the store cannot be read.
    """
    return [RunState(record, last_evaluation(store, record.name)) for record in store.runs()]


def last_evaluation(store: Store, run: str) -> EvaluationDone | None:
    """Returns what the last evaluation of a run found; null without one that can be read."""
    with store.backend.errors("read", run):
        slots = store.backend.slots(run, "evaluations")
    evaluated = [uri for uri in slots if uri.endswith("/split=evaluation/stage=evaluation")]
    if not evaluated:
        return None
    with store.backend.errors("read", evaluated[-1]):
        manifest = store.backend.inspect(evaluated[-1]).manifest
    if manifest is None:
        return None
    try:
        facts = evaluation_facts(store, manifest.slot.iteration, manifest.output(evaluated[-1]))
        return next(facts, None)
    except StoreUnavailable:
        raise
    except StoreError:
        return None  # damaged: a list of runs is no place to fail of it
