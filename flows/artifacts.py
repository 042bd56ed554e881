"""What a flow leaves in Prefect for people to see: summaries as tables, links to the store.

Rows stay in the store; an artifact holds a few lines.
"""

import re
from typing import Any

import polars as pl
from prefect.artifacts import create_link_artifact, create_table_artifact

from flows.binding import Place
from flows.events import StageEvent
from flows.policies import policy_slot
from flows.report import accuracy_by_iteration
from schemas.tables import ShapedRewards
from stages.similarity.report import shaping_report, summarise_shaping
from storage import Store


class EventLog:
    """Keeps what finished stage runs told, until their iteration takes it."""

    def __init__(self) -> None:
        self._events: list[StageEvent] = []

    def note(self, event: StageEvent) -> None:
        """Takes one event in; called from the threads of stage runs."""
        if event.is_done:
            self._events.append(event)

    def take(self, iteration: int) -> list[StageEvent]:
        """Returns the events up to an iteration and forgets them."""
        taken = [event for event in self._events if event.slot.iteration <= iteration]
        self._events = [event for event in self._events if event.slot.iteration > iteration]
        return taken


def publish_iteration(place: Place, events: list[StageEvent]) -> None:
    """Makes tables of an iteration's stage runs and shaping, and a link to its policy."""
    create_table_artifact(
        key=artifact_key(place.run, "stages"),
        table=[_row(event) for event in events],
        description=f"Run {place.run}, iteration {place.iteration}: stage runs and their tables.",
    )
    _publish_shaping(place, events)
    slot = policy_slot(place.run, place.iteration)
    store = place.open()
    if store.manifest(slot) is not None:
        create_link_artifact(
            key=artifact_key(place.run, "policy"),
            link=_link(store, f"{slot.uri}/policy"),
            link_text=f"policy of {place.run}, iteration {place.iteration}",
        )


def _publish_shaping(place: Place, events: list[StageEvent]) -> None:
    outputs = [event.output for event in events if event.slot.stage == "similarity"]
    refs = [output.tables["shaped_rewards"] for output in outputs if output is not None]
    if not refs:
        return
    shaped = ShapedRewards.validate(pl.concat(place.open().read(ref) for ref in refs))
    create_table_artifact(
        key=artifact_key(place.run, "shaping"),
        table=summarise_shaping(shaping_report(shaped)).to_dicts(),
        description=f"Run {place.run}, iteration {place.iteration}: similarities of wrong code "
        "to right code, and pairs of trajectories whose order by reward shaping changed.",
    )


def publish_accuracy(place: Place) -> None:
    """Makes a table of a run's held-out accuracy, one row an iteration and benchmark."""
    accuracy = accuracy_by_iteration(place.store, place.run)
    create_table_artifact(
        key=artifact_key(place.run, "accuracy"),
        table=accuracy.to_dicts(),
        description=f"Run {place.run}: accuracy on held-out problems by iteration.",
    )


def publish_changes(place: Place, summary: list[dict[str, Any]], source: str) -> None:
    """Makes a table of what a rerun changed against the run that it came from."""
    create_table_artifact(
        key=artifact_key(place.run, "changes"),
        table=summary,
        description=f"Advantages of {place.run} against {source}, iteration {place.iteration}.",
    )


def artifact_key(run: str, kind: str) -> str:
    """Returns a key that Prefect takes: lower case letters, digits and dashes."""
    return f"{re.sub(r'[^a-z0-9]+', '-', run.lower()).strip('-') or 'run'}-{kind}"


def _row(event: StageEvent) -> dict[str, Any]:
    slot, output = event.slot, event.output
    tables = {} if output is None else output.tables
    return {
        "iteration": slot.iteration,
        "split": slot.split,
        "stage": slot.stage,
        "shard": slot.shard,
        "turn": slot.turn,
        "result": event.kind,
        "why": event.reason,
        "seconds": round(event.seconds, 3),
        "rows": {name: ref.rows for name, ref in tables.items()},
        "digests": {name: ref.digest[:12] for name, ref in tables.items()},
    }


def _link(store: Store, uri: str) -> str:
    return f"{store.url}/{uri}" if "://" in store.url else f"file://{store.url}/{uri}"
