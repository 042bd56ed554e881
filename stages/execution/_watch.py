"""Follows the process of a snippet from outside: limits, and what became of it.

Standard library only: the lanes inside the isolation run this too. What a snippet did is decided
here from how its process ended, never from what it printed.

A child tells two things through the note pipe. `R`, written once when the child is set up and
before any foreign code runs; an end without it is a failure of the machine, not of the snippet.
`M`, after a MemoryError reached the top level. A snippet could write the second by hand, and
would gain what `raise MemoryError` gives it; it can never take back the first.
"""

import contextlib
import os
import select
import signal
import time
from typing import Any, Final

from stages.execution._outputs import Outputs, drain

SETUP_TIME_S: Final = 20.0
"""Longest time from fork to the first line of the snippet; beyond it the machine has failed."""
MOST_WALL_TIMES: Final = 10
"""A snippet that waits for a processor gets more time, but no more than so many times its own.

One that gave way beside busy processes may get a twentieth of a processor.
"""

_LONG_S = 0.05
"""After so long a snippet gives way to those that have just begun."""
_GIVING_WAY = 10

_LOOK_S = 0.25
"""How often a watcher looks how long a snippet has waited for a processor."""

_NOTE_BYTES = 4096


def watch(
    pid: int,
    note_fd: int,
    limits: dict[str, Any],
    *,
    outputs: Outputs | None = None,
    stop_fd: int | None = None,
) -> dict[str, Any]:
    """Follows a child to its end, enforces its limits, and says what happened.

    Args:
        pid: Child of this process that leads, or will lead, its own process group.
        note_fd: Reading end of its note pipe; closed on return.
        limits: `wall_time_s` and `cpu_time_s`.
        outputs: Its standard streams, where they are read here; closed on return.
        stop_fd: What becomes readable when whoever reads the streams has had enough.

    Returns:
        `status`, `reason` (what is to be added to the standard error), `exit_code`, `wall_s` and
        `cpu_s` of one snippet.
    """
    end_fd = os.pidfd_open(pid)
    watched = _Watched(pid, note_fd, limits)
    poller = select.poll()
    pipes = {note_fd} | (set() if outputs is None else set(outputs.open_fds))
    for fd in {end_fd, *pipes} | ({stop_fd} if stop_fd is not None else set()):
        poller.register(fd, select.POLLIN)
    ended = False
    while not ended:
        ready = {fd for fd, _ in poller.poll(watched.patience_ms())}
        if end_fd not in ready:
            watched.do_what_is_due()
        if stop_fd in ready:
            poller.unregister(stop_fd)
            watched.kill("output_limit")
        # A pipe may have been written to after its look and before that at the end: once the
        # child has ended, all are read.
        ended = end_fd in ready
        for fd in list(pipes if ended else pipes & ready):
            if not _read(fd, watched, outputs):
                poller.unregister(fd)
                pipes.remove(fd)
    wall_s = time.monotonic() - watched.started
    _kill(pid)  # what is left of its group, where no pid namespace has ended it already
    _, wait_status, usage = os.wait4(pid, 0)
    os.close(note_fd)
    os.close(end_fd)
    if outputs is not None:
        outputs.close()
    cpu_s = usage.ru_utime + usage.ru_stime
    result = _judge(bytes(watched.note), watched.killed_for, wait_status, cpu_s, limits)
    return result | {"wall_s": wall_s, "cpu_s": cpu_s}


def _read(fd: int, watched: "_Watched", outputs: Outputs | None) -> bool:
    """Takes what a pipe holds; returns whether there is any use in reading on."""
    if outputs is None or fd == watched.note_fd:
        return watched.read_note()
    outputs.read(fd)
    if outputs.is_exceeded:
        watched.kill("output_limit")
    return fd in outputs.open_fds


class _Watched:
    """What is known so far of a running child, and the limits it is held to."""

    def __init__(self, pid: int, note_fd: int, limits: dict[str, Any]) -> None:
        self.note = bytearray()
        self.note_fd = note_fd
        self.killed_for: str | None = None
        self.started = time.monotonic()
        self._pid = pid
        self._wall_time_s = limits["wall_time_s"]
        self._deadline = self.started + SETUP_TIME_S
        self._last_deadline = self._deadline
        self._gives_way_at = float("inf")
        self._next_look = float("inf")
        self._waited_s = 0.0
        self._waited_by_thread: dict[str, float] = {}

    def patience_ms(self) -> float | None:
        """Returns how long to wait for a sign of life; without end once it has been killed."""
        if self.killed_for is not None:
            return None
        due = min(self._deadline, self._gives_way_at, self._next_look)
        return max(0.0, due - time.monotonic()) * 1000

    def do_what_is_due(self) -> None:
        """Lets the child give way, looks how long it has waited, ends it when its time is up."""
        now = time.monotonic()
        if now >= self._gives_way_at:
            self._gives_way_at = float("inf")
            # Gone, or not ours to touch as an ordinary user: then it is only slower for others.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PGRP, self._pid, _GIVING_WAY)
        if now >= min(self._next_look, self._deadline):
            self._look(now)
        if now >= self._deadline:
            # Time in which it was ready to run and had no processor is not its own: a busy machine
            # would turn right answers into timeouts.
            own_s = now - self.started - self._waited_s
            self._deadline = min(now + self._wall_time_s - own_s, self._last_deadline)
            if self._deadline - now < 0.001:
                self.kill("timeout")

    def _look(self, now: float) -> None:
        """Adds what the child has waited since the last look.

        Of several threads, the one that waited longest counts; at each look anew, since threads
        take turns and end. A look that comes late counts too: a virtual machine that is paused,
        or whose processors are given to others, stands still while the clock goes on.
        """
        before, self._waited_by_thread = self._waited_by_thread, _waited_s(self._pid)
        waited = (s - before.get(thread, 0.0) for thread, s in self._waited_by_thread.items())
        late_s = now - self._next_look  # below zero before the first look is due
        self._waited_s += max(0.0, late_s, *waited)
        self._last_deadline += max(0.0, late_s)
        self._next_look = now + _LOOK_S

    def kill(self, reason: str) -> None:
        self.killed_for = self.killed_for or reason
        _kill(self._pid)

    def read_note(self) -> bool:
        """Takes what the note pipe holds; returns whether there is any use in reading on."""
        was_set_up = bool(self.note)
        is_open = drain(self.note_fd, self.note, _NOTE_BYTES)
        if self.note and not was_set_up:
            self.started = time.monotonic()
            self._deadline = self.started + self._wall_time_s
            self._last_deadline = self.started + MOST_WALL_TIMES * self._wall_time_s
            self._gives_way_at = self.started + _LONG_S
            self._next_look = self.started + _LOOK_S
            self._waited_by_thread = _waited_s(self._pid)
        return is_open and len(self.note) < _NOTE_BYTES


def _waited_s(pid: int) -> dict[str, float]:
    """Returns for each thread of a process how long it had no processor to run on."""
    waited = {}
    for thread in _listed(f"/proc/{pid}/task"):
        # It may have ended since, and not every kernel counts.
        path = f"/proc/{pid}/task/{thread}/schedstat"
        with contextlib.suppress(OSError, IndexError), open(path, "rb") as file:
            waited[thread] = int(file.read().split()[1]) / 1e9
    return waited


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _kill(pid: int) -> None:
    # By pid as well: a child that is still being set up leads no group yet.
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _judge(
    note: bytes, killed_for: str | None, wait_status: int, cpu_s: float, limits: dict[str, Any]
) -> dict[str, Any]:
    result: dict[str, Any] = {"status": "error", "reason": "", "exit_code": None}
    if os.WIFEXITED(wait_status):
        result["exit_code"] = os.WEXITSTATUS(wait_status)
    if not note.startswith(b"R"):
        reason = note.decode("utf-8", "replace") or f"ended with wait status {wait_status}"
        result |= {"status": "infrastructure", "reason": f"setup: {reason}", "exit_code": None}
    elif killed_for is not None:
        result |= {"status": killed_for, "exit_code": None}
    elif os.WIFSIGNALED(wait_status):
        ended_by = os.WTERMSIG(wait_status)
        # The kernel enforces the CPU limit by counting ticks, and reports the time it measured:
        # by that the kill may seem some per cent early.
        if ended_by == signal.SIGKILL and cpu_s > 0.8 * limits["cpu_time_s"]:
            result["status"] = "timeout"
        elif ended_by == signal.SIGKILL:
            # Nobody inside can kill the first process of a pid namespace, and we did not: what
            # remains is the kernel, out of memory.
            result["status"] = "memory"
        else:
            result["reason"] = f"{_name_of(ended_by)}\n"
    elif b"M" in note:
        result["status"] = "memory"
    elif result["exit_code"] == 0:
        result["status"] = "ok"
    return result


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time signals have none
        return f"signal {number}"
