"""What happens in stage runs, told to whoever listens: progress display, timing, tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from schemas.refs import StageOutput
from storage import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent:
    """One moment of a stage run."""

    slot: Slot
    kind: Literal["started", "progress", "computed", "reused", "notice"]
    reason: str = ""
    """Why the stage runs or why its stored result serves; for progress, how far it is; for a
    notice, which concerns the whole flow, what is to be known."""
    seconds: float = 0.0
    """Wall time inside the stage, reading its inputs included."""
    computed_s: float | None = None
    """Wall time that computing the result took, be it long ago; null where that is not known."""
    output: StageOutput | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When it happened, UTC."""

    @property
    def is_done(self) -> bool:
        """Whether the stage run has its result."""
        return self.kind in ("computed", "reused")


Listener = Callable[[StageEvent], None]

_listeners: list[Listener] = []


def tell(event: StageEvent) -> None:
    """Passes an event to every listener, on the thread of the stage run."""
    for listener in tuple(_listeners):
        listener(event)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Has a listener told everything within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
