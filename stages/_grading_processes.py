"""The processes in which math-verify compares answers: few, shared by all that grade at a time.

A process takes most of a second to start and a few milliseconds for a pair. So a process that
has answered waits for the next pair, from whichever thread of this program it comes, and ends by
itself when none comes. Pairs are handed out in small batches: one caller can keep all processes
busy, and several callers take turns.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

from schemas.categories import Verdict
from schemas.errors import TurnledgerError
from stages import _grading_worker

START_TIME_S = 120.0
"""Seconds a child may take to import math-verify, which is slow on a cold or busy machine."""

PROCESSES = min(os.cpu_count() or 1, 8)
"""Most children at a time."""

_SOURCE = Path(_grading_worker.__file__).read_text()
"""Read once: a child that is started later must not run what the file was edited to meanwhile."""

_BATCH = 16
"""Pairs that one child compares in a row; pairs of a group are neighbours and share the answer."""

Pair = tuple[str, str]


def compare(pairs: Sequence[Pair], *, time_s: float) -> list[Verdict]:
    """Returns what math-verify says of each pair, or `timeout` where a comparison did not end.

    Args:
        pairs: Prediction and gold answer, as LaTeX.
        time_s: Wall time, seconds, after which the comparison of one pair is given up.

    Raises:
        TurnledgerError: If no process can be started.
    """
    batches = [pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH)]
    given_up = threading.Event()

    def work(batch: Sequence[Pair]) -> list[Verdict]:
        with _Comparison(time_s) as comparison:
            return [comparison.verdict(*pair) for pair in batch if not given_up.is_set()]

    if len(batches) < 2:
        return work(pairs) if pairs else []
    with ThreadPoolExecutor(min(PROCESSES, len(batches)), "grading") as threads:
        try:
            return [verdict for done in threads.map(work, batches) for verdict in done]
        finally:
            given_up.set()  # after an error or an interrupt the threads are not waited for long


class _Child:
    """A process that runs math-verify."""

    def __init__(self) -> None:
        self.command = _command()
        with tempfile.TemporaryFile() as stderr:
            try:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    bufsize=0,
                    start_new_session=True,  # a Ctrl-C in the terminal is not for it
                )
            except OSError as error:
                raise TurnledgerError(f"grading cannot start {sys.executable}: {error}") from error
            try:
                line = self._read_line(START_TIME_S)
            except BaseException:
                self.kill()
                raise
            if line.strip() == json.dumps(_grading_worker.READY).encode():
                return
            self.kill()
            raise TurnledgerError(
                f"grading cannot start its math-verify process: {_last_line(stderr)}; try "
                f"`{sys.executable} -c 'import math_verify'`"
            )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, pair: Pair, time_s: float) -> bool | None:
        """Returns the child's reply, or None if it ended or the deadline passed before."""
        try:
            _pipe(self._process.stdin).write(json.dumps([*pair, time_s]).encode() + b"\n")
        except BrokenPipeError:
            # The exit may not be known yet; without this wait it would pass for a deadline.
            self._process.wait()
            return None
        reply = self._read_line(time_s)
        return bool(json.loads(reply)) if reply.endswith(b"\n") else None

    def kill(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            _pipe(pipe).close()
        self._process.wait()

    def _read_line(self, time_s: float) -> bytes:
        """Returns the next line, or what there is of it at the deadline or the child's end."""
        descriptor = _pipe(self._process.stdout).fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + time_s
        line = b""
        while not line.endswith(b"\n"):
            remaining_ms = max(0, int(1000 * (deadline - time.monotonic())))
            if not poller.poll(remaining_ms):
                return line
            chunk = os.read(descriptor, 4096)
            if not chunk:
                self._process.wait()
                return line
            line += chunk
        return line


_permits = threading.BoundedSemaphore(PROCESSES)
_idle: list[_Child] = []
"""Children that wait; with those that a comparison holds they are never more than the permits."""


class _Comparison:
    """The use of one child, for as long as the context lasts; killed at a deadline."""

    def __init__(self, time_s: float) -> None:
        self._time_s = time_s
        self._child: _Child | None = None

    def __enter__(self) -> "_Comparison":
        _permits.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                self._kill()  # it may be at work on a pair whose reply nobody will read
            elif self._child is not None:
                _idle.append(self._child)
        finally:
            _permits.release()

    def verdict(self, prediction: str, answer: str) -> Verdict:
        """Returns what math-verify says, or `timeout` where the comparison did not end."""
        # A second try where the child ended by itself: it may have been killed from outside.
        for _ in range(2):
            child = self._child = self._child or _idle_child() or _Child()
            reply = child.ask((prediction, answer), self._time_s)
            if reply is not None:
                return Verdict.RIGHT if reply else Verdict.WRONG
            ended = child.has_ended()
            self._kill()
            if not ended:
                break
        return Verdict.TIMEOUT

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


def _command() -> list[str]:
    # With -P: nothing that lies in the working directory can take the place of a module.
    return [sys.executable, "-P", "-c", _SOURCE]


def _idle_child() -> _Child | None:
    """Takes a waiting child; one that has ended meanwhile, or runs something else, is put away."""
    while True:
        try:
            child = _idle.pop()
        except IndexError:
            return None
        if child.command == _command() and not child.has_ended():
            return child
        child.kill()


@atexit.register
def _kill_idle() -> None:
    while _idle:
        _idle.pop().kill()


# A forked process must not share the pipes: each would read the other's replies.
os.register_at_fork(after_in_child=_idle.clear)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise TurnledgerError("grading lost the pipe to its math-verify process")
    return pipe


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
