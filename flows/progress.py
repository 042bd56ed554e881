"""Live progress of a run in the terminal, made of what stage runs tell."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.events import StageEvent
from flows.pace import Pace
from storage import Slot

REFRESHES_PER_S = 2
"""Enough for seconds to count, and calm to look at."""
NARROW = 60
"""Columns below which the words around the numbers are left out."""


class Progress:
    """What a run is at: two lines that change in place, below the lines that stay.

    The first is how far it is: iteration, share of all stage runs, time gone and time left. The
    second is what goes on: running stages, tokens sampled a second, the last reward.
    """

    def __init__(self, pace: Pace, iterations: int | None) -> None:
        """Begins with nothing going on.

        Args:
            pace: Knows the time left; told every event by its owner.
            iterations: Iterations in all; null where a run has no such end, as in a rerun.
        """
        self._pace, self._iterations = pace, iterations
        self._began = datetime.now(UTC)
        self._lock = threading.Lock()
        self._running: dict[Slot, str] = {}
        self._last: Slot | None = None
        self.tokens_per_s: float | None = None
        """Shown once it is known."""
        self.reward: float | None = None
        """Mean reward of the last rollout; shown once it is known."""

    def note(self, event: StageEvent) -> None:
        """Takes one event in; called from the threads of stage runs."""
        with self._lock:
            if event.is_done:
                self._running.pop(event.slot, None)
                self._last = event.slot
            else:
                self._running[event.slot] = event.reason if event.kind == "progress" else ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield Group(
                self._how_far(options.max_width), Text(self._what(options.max_width), no_wrap=True)
            )

    def _how_far(self, width: int) -> Table | Text:
        now = datetime.now(UTC)
        left_s = self._pace.left_s(now)
        times = [_clock((now - self._began).total_seconds())]
        if left_s is not None:
            times.append(f"{_clock(left_s)} left")
        share = self._pace.share_done
        if share is None or self._iterations is None:
            return Text(f"{_clock((now - self._began).total_seconds())} gone", no_wrap=True)
        place = f"{self._iteration()} of {self._iterations}"
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        for _ in range(2):
            table.add_column(no_wrap=True, justify="right")
        table.add_row(
            place if width < NARROW else f"iteration {place}",
            ProgressBar(total=1.0, completed=share),
            f"{share:.0%}",
            times[-1] if width < NARROW else ", ".join(times),
        )
        return table

    def _iteration(self) -> int:
        """Returns the iteration that goes on: the first of those that do."""
        at = [slot.iteration for slot in self._running]
        return min(at) if at else (0 if self._last is None else self._last.iteration)

    def _what(self, width: int) -> str:
        """Joins what there is to say, as much as the width takes; the stage comes first."""
        numbers = []
        if self.tokens_per_s is not None:
            numbers.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.reward is not None:
            numbers.append(f"reward {self.reward:.2f}")
        said = self._stages(width - sum(len(number) + 2 for number in numbers))
        for number in numbers:
            if len(said) + 2 + len(number) <= width:
                said = f"{said}  {number}"
        return said[:width]

    def _stages(self, width: int) -> str:
        names = [_name(slot, how_far) for slot, how_far in self._running.items()]
        if not names:
            return "starting" if self._last is None else f"after {_name(self._last, '')}"
        both = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        if len(both) <= width or len(names) == 1:
            return both
        return f"{names[0]} and {len(names) - 1} more"


@contextmanager
def shown(console: Console, progress: Progress) -> Iterator[None]:
    """Shows progress at the foot of a terminal while the block runs; elsewhere does nothing."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    with Live(progress, console=console, refresh_per_second=REFRESHES_PER_S, transient=True):
        yield


def _name(slot: Slot, how_far: str) -> str:
    """Names a stage run: where it is in its rollout, or how far it is."""
    evaluating = "evaluation: " if slot.split == "evaluation" and slot.stage != "evaluation" else ""
    name = f"{evaluating}{slot.stage.replace('_', ' ')}"
    if how_far:
        return f"{name}: {how_far}"
    if slot.shard is not None and slot.stage != "prompts":
        name += f" shard {slot.shard}"
    return name if slot.turn is None else f"{name} turn {slot.turn}"


def _clock(seconds: float) -> str:
    """Writes a duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
