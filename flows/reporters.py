"""How a command tells what it does: in words, as JSON lines, or not at all.

JSON lines are for programs: docs/watching.md lists their keys. Errors go to stderr in one line in
every mode; `flows.cli` does that.
"""

import dataclasses
import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import typer
from rich.console import Console, RenderableType

from flows.events import StageEvent
from flows.milestones import IterationDone, Milestone, Milestones
from flows.pace import Pace, expected_work
from flows.progress import Progress, shown
from schemas.config import RunConfig
from schemas.errors import ConfigError
from storage import Store

Mode = Literal["text", "quiet", "json"]

ENDS = {0: "finished", 130: "interrupted"}
"""Exit code to how a command ended; any other one is a failure."""


def end_unread() -> None:
    """Ends the command as Ctrl-C does, once nobody reads what it tells any more.

    That comes up in threads of stage runs too, where an error would make the run a failed one.
    """
    # What is still told until the end goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    typer.echo("nobody reads the output any more", err=True)
    os.kill(os.getpid(), signal.SIGINT)


class PipedConsole(Console):
    """A console whose output may be read by another program, which may end first."""

    def on_broken_pipe(self) -> None:
        """Is called once that program has ended."""
        end_unread()


class Reporter:
    """Tells nothing, and counts; the other reporters add how something is told."""

    def __init__(self) -> None:
        """Begins to count."""
        self.computed = 0
        """Stage runs that computed their result."""
        self.reused = 0
        """Stage runs that found it stored."""
        self._lock = threading.Lock()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tells how the command ended, where that is told."""

    @contextmanager
    def of_run(
        self, store: Store, run: str, config: RunConfig | None, begin: int = 0
    ) -> Iterator[None]:
        """Tells of a run for as long as the block runs; `on_event` is told what happens.

        Args:
            store: Where the run is.
            run: Its name.
            config: Settings of a training, from which the work to come is known; null for others.
            begin: Iteration that a branch begins after.
        """
        yield

    def on_event(self, event: StageEvent) -> None:
        """Takes one event in; called from the threads of stage runs."""
        with self._lock:
            self.computed += event.kind == "computed"
            self.reused += event.kind == "reused"
            self._tell(event)

    def _tell(self, event: StageEvent) -> None:
        """Tells an event; one at a time."""

    def say(self, words: str) -> None:
        """Says something to a person."""

    def show(self, renderable: RenderableType) -> None:
        """Shows a table to a person."""

    def facts(self, event: str, values: Mapping[str, Any]) -> None:
        """Tells a program what happened."""


class TextReporter(Reporter):
    """Says it in words, with live progress where the output is a terminal."""

    def __init__(self) -> None:
        """Writes to standard output."""
        super().__init__()
        self._console = PipedConsole()
        self._progress: Progress | None = None

    @contextmanager
    def of_run(
        self, store: Store, run: str, config: RunConfig | None, begin: int = 0
    ) -> Iterator[None]:
        """Shows live progress of a run, and a line for each of its milestones."""
        self._store, self._milestones = store, Milestones(store)
        self._pace = _pace(config, begin)
        self._progress = Progress(self._pace, None if config is None else config.iterations)
        self._is_live = self._console.is_terminal
        with shown(self._console, self._progress):
            yield

    def _tell(self, event: StageEvent) -> None:
        if event.kind == "notice":
            self.say(event.reason)
            return
        if self._progress is None:
            return
        self._pace.note(event)
        self._progress.note(event)
        if self._is_live and event.is_done and event.slot.stage == "rollout":
            self._progress.tokens_per_s = self._pace.tokens_per_s(self._store)
        for milestone in self._milestones.of(event):
            if isinstance(milestone, IterationDone):
                self._progress.reward = milestone.reward
            for line in milestone.lines:
                self.say(line)

    def say(self, words: str) -> None:
        """Prints words as they are, in lines as long as they are."""
        self._console.print(words, markup=False, highlight=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Prints a table."""
        self._console.print(renderable)


class JsonReporter(Reporter):
    """Writes one JSON object a line; the last one says how the command ended."""

    def __init__(self) -> None:
        """Writes to standard output."""
        super().__init__()
        self._began = time.monotonic()
        self._run: str | None = None
        self._writing = threading.Lock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes the object `end`."""
        code = exit_code(error)
        told = None if error is None or isinstance(error, typer.Exit) else str(error)
        message = None if told is None else (told.splitlines() or [type(error).__name__])[0]
        values = {
            "status": ENDS.get(code, "failed"),
            "exit_code": code,
            "message": message,
            "computed": self.computed,
            "reused": self.reused,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        self.facts("end", values)

    @contextmanager
    def of_run(
        self, store: Store, run: str, config: RunConfig | None, begin: int = 0
    ) -> Iterator[None]:
        """Writes the object `begin`, and one for each event and milestone within the block."""
        self._store, self._milestones, self._run = store, Milestones(store), run
        self._pace = _pace(config, begin)
        iterations = None if config is None else config.iterations
        self.facts("begin", {"store": store.url, "iterations": iterations})
        yield

    def _tell(self, event: StageEvent) -> None:
        if event.kind == "notice":
            self.facts("notice", {"message": event.reason}, at=event.at)
            return
        if self._run is None:
            return
        self._pace.note(event)
        slot, output = event.slot, event.output
        tables = {} if output is None else output.tables
        values = {
            "iteration": slot.iteration,
            "split": slot.split,
            "stage": slot.stage,
            "shard": slot.shard,
            "turn": slot.turn,
            "state": event.kind,
            "reason": event.reason,
            "seconds": round(event.seconds, 3) if event.is_done else None,
            "rows": {name: ref.rows for name, ref in tables.items()},
        }
        self.facts("stage", values, at=event.at)
        for milestone in self._milestones.of(event):
            self.facts(milestone.kind, self._values(milestone), at=event.at)

    def _values(self, milestone: Milestone) -> dict[str, Any]:
        values = dataclasses.asdict(milestone)
        if isinstance(milestone, IterationDone):
            values["tokens_per_s"] = self._pace.tokens_per_s(self._store)
            values["left_s"] = self._pace.left_s()
        return values

    def facts(self, event: str, values: Mapping[str, Any], at: datetime | None = None) -> None:
        """Writes one object, as a line that is there at once."""
        told = (at or datetime.now(UTC)).astimezone(UTC)
        named = {
            "time": told.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": event,
            "run": self._run,
            **{name: _finite(value) for name, value in values.items()},
        }
        with self._writing:
            try:
                sys.stdout.write(json.dumps(named, ensure_ascii=False) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                end_unread()


def reporter(*, quiet: bool, as_json: bool) -> Reporter:
    """Returns the reporter that a command was asked for.

    Raises:
        ConfigError: If both are asked for.
    """
    if quiet and as_json:
        raise ConfigError("--quiet tells nothing and --json tells everything: take one of them")
    if as_json:
        return JsonReporter()
    return Reporter() if quiet else TextReporter()


def exit_code(error: BaseException | None) -> int:
    """Returns the exit code of a command that ends with an error; 0 without one."""
    if error is None:
        return 0
    if isinstance(error, typer.Exit):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _pace(config: RunConfig | None, begin: int) -> Pace:
    work = Counter() if config is None else expected_work(config, begin)
    return Pace(work, begin)


def _finite(value: Any) -> Any:
    """JSON has no number that is none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
