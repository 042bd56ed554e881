"""Live progress of a flow in the terminal, made of what stage runs tell."""

import threading
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.events import StageEvent, listening
from flows.report import cold_start_lines, evaluation_line, outcome_line
from schemas.refs import StageOutput
from storage import Slot, Store


class Display:
    """Shows the running stages, and one line for every iteration and evaluation that is done.

    Where the output is no terminal only the lines are printed.
    """

    def __init__(self, console: Console, store: Store, iterations: int) -> None:
        """Prepares a display.

        Args:
            console: Where to show.
            store: Store of the run, read for the lines.
            iterations: Iterations in all, for the bar.
        """
        self._store = store
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("iterations"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("starting", total=iterations)
        self._lock = threading.Lock()
        self._rewards: dict[Slot, StageOutput] = {}
        self._running: dict[Slot, str] = {}
        self.computed = 0
        """Stage runs that computed their result."""
        self.reused = 0
        """Stage runs that found it stored."""
        self.stage_seconds = 0.0
        """Seconds inside stages; those of shards that ran beside each other add up."""

    def __enter__(self) -> "Display":
        self._listening = listening(self.on_event)
        self._listening.__enter__()
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._listening.__exit__(kind, error, trace)

    def on_event(self, event: StageEvent) -> None:
        """Takes one event in; called from the threads of stage runs."""
        with self._lock:
            if event.kind == "notice":
                self._print(event.reason)
            elif event.kind in ("started", "progress"):
                self._running[event.slot] = event.reason if event.kind == "progress" else ""
            else:
                self._running.pop(event.slot, None)
                self._on_done(event)
            if event.kind != "notice":
                self._progress.update(self._bar, description=self._description(event.slot))

    def _on_done(self, event: StageEvent) -> None:
        self.computed += event.kind == "computed"
        self.reused += event.kind == "reused"
        self.stage_seconds += event.seconds
        if event.output is None:
            return
        stage, iteration = event.slot.stage, event.slot.iteration
        if event.slot.split == "evaluation":
            if stage == "evaluation":
                self._print(evaluation_line(self._store, iteration, event.output))
            return
        if stage == "turn_rewards":
            self._rewards[event.slot] = event.output
        elif stage == "optimisation":
            rewards = [o for slot, o in self._rewards.items() if slot.iteration == iteration]
            self._rewards.clear()
            if rewards:
                self._print(outcome_line(self._store, iteration, rewards, event.output))
            self._progress.update(self._bar, completed=iteration)
        elif stage == "cold_start" and event.kind == "computed":
            for line in cold_start_lines(self._store, event.output, event.seconds):
                self._print(line)

    def _description(self, last: Slot) -> str:
        names = []
        for slot, how_far in self._running.items():
            place = "" if slot.turn is None else f" {slot.shard}.{slot.turn}"
            names.append(f"{slot.stage}{place}{': ' if how_far else ''}{how_far}")
        return ", ".join(names[:2]) if names else last.stage

    def _print(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, soft_wrap=True)
