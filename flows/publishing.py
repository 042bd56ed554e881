"""Publishes the figures of a run to another system, once or for as long as it is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flows.events import StageEvent
from flows.watching import follow, new_events
from flows.writers import open_writer
from flows.writers.points import Header, Points
from flows.writers.protocol import Writer
from storage import RunRecord, Store


@dataclass(slots=True)
class Published:
    """What a publishing did."""

    added: int = 0
    """Figures that it added."""
    known: int = 0
    """Figures that were there already."""


class Subscriber:
    """Adds to a target what it does not have; asked first what that is."""

    def __init__(self, writer: Writer, points: Points) -> None:
        """Asks the target what it has.

        Args:
            writer: The target.
            points: Reads the figures of the run.
        """
        self._writer, self._points = writer, points
        self._there = set(writer.known())
        self.done = Published()

    def on_event(self, event: StageEvent) -> None:
        """Adds the figures of a result, as far as they are new."""
        points = list(self._points.of(event))
        new = [point for point in points if point.key not in self._there]
        self.done.known += len(points) - len(new)
        if new:
            self._writer.write(new)
            self._there.update(point.key for point in new)
            self.done.added += len(new)


def publish(store: Store, run: str, target: str, *, until_end: bool = False) -> Published:
    """Publishes what a target does not have of a run's figures.

    Args:
        store: Where the run is.
        run: Its name.
        target: As `flows.writers.open_writer` takes it.
        until_end: Whether to go on until the run ends.

    Returns:
        How many figures were added.

    Raises:
        TurnledgerError: If the run or the target cannot be used.
    """
    record = store.run_record(run)
    with _subscribed(store, record, target) as (subscriber, ends):
        if until_end:
            ends.append(follow(store, run, subscriber.on_event).status)
        else:
            for _, event in new_events(store, run, {}):
                subscriber.on_event(event)
            ends.append(record.status)
    return subscriber.done


@contextmanager
def _subscribed(
    store: Store, record: RunRecord, target: str
) -> Iterator[tuple[Subscriber, list[str]]]:
    """Opens a target and closes it with the state that the block leaves in the list."""
    writer, ends = open_writer(target, Header.of(record)), ["running"]
    try:
        yield Subscriber(writer, Points(store, record)), ends
    finally:
        writer.close(ends[-1])
