"""Follows the process of a snippet from outside: limits, output, and what became of it.

Standard library only: the supervisor inside the isolation runs this too. What a snippet did is
decided here from how its process ended, never from what it printed.

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

SETUP_TIME_S: Final = 20.0
"""Longest time from fork to the first line of the snippet; beyond it the machine has failed."""
MOST_WALL_TIMES: Final = 4
"""A snippet that waits for a processor gets more time, but no more than so many times its own."""

_LONG_S = 0.05
"""After so long a snippet gives way to those that have just begun."""
_GIVING_WAY = 10

_NOTE_BYTES = 4096
_CHUNK_BYTES = 65536


def watch(
    pid: int, stdout_fd: int, stderr_fd: int, note_fd: int, limits: dict[str, Any]
) -> dict[str, Any]:
    """Follows a child to its end, enforces time and output limits, and says what happened.

    Args:
        pid: Child of this process that leads, or will lead, its own process group.
        stdout_fd: Reading end of its standard output; closed on return, like the other two.
        stderr_fd: Reading end of its standard error.
        note_fd: Reading end of its note pipe.
        limits: `wall_time_s`, `cpu_time_s` and `output_kib`.

    Returns:
        `status`, `stdout`, `stderr`, `exit_code`, `wall_s` and `cpu_s` of one snippet.
    """
    end_fd = os.pidfd_open(pid)
    watched = _Watched(pid, stdout_fd, stderr_fd, note_fd, limits)
    poller = select.poll()
    poller.register(end_fd, select.POLLIN)
    pipes = {stdout_fd, stderr_fd, note_fd}
    for fd in pipes:
        poller.register(fd, select.POLLIN)
    ended = False
    while not ended:
        ready = {fd for fd, _ in poller.poll(watched.patience_ms())}
        if not ready:
            watched.on_silence()
        # A pipe may have been written to after its look and before that at the end: once the
        # child has ended, all are read.
        ended = end_fd in ready
        for fd in list(pipes if ended else pipes & ready):
            if not watched.read(fd):
                poller.unregister(fd)
                pipes.remove(fd)
    wall_s = time.monotonic() - watched.started
    _kill(pid)  # what is left of its group, where no pid namespace has ended it already
    _, wait_status, usage = os.wait4(pid, 0)
    for fd in (stdout_fd, stderr_fd, note_fd, end_fd):
        os.close(fd)
    cpu_s = usage.ru_utime + usage.ru_stime
    result = _judge(bytes(watched.note), watched.killed_for, wait_status, cpu_s, limits)
    result["stdout"] = watched.texts[stdout_fd].decode("utf-8", "replace")
    result["stderr"] = watched.texts[stderr_fd].decode("utf-8", "replace") + result["stderr"]
    return result | {"wall_s": wall_s, "cpu_s": cpu_s}


class _Watched:
    """What is known so far of a running child, and the limits it is held to."""

    def __init__(
        self, pid: int, stdout_fd: int, stderr_fd: int, note_fd: int, limits: dict[str, Any]
    ) -> None:
        self.texts = {stdout_fd: bytearray(), stderr_fd: bytearray()}
        self.note = bytearray()
        self.killed_for: str | None = None
        self.started = time.monotonic()
        self._pid = pid
        self._note_fd = note_fd
        self._wall_time_s = limits["wall_time_s"]
        self._deadline = self.started + SETUP_TIME_S
        self._last_deadline = self._deadline
        self._gives_way_at = float("inf")
        self._waited_before_s = 0.0
        self._room = limits["output_kib"] * 1024

    def patience_ms(self) -> float | None:
        """Returns how long to wait for a sign of life; without end once it has been killed."""
        if self.killed_for is not None:
            return None
        return max(0.0, min(self._deadline, self._gives_way_at) - time.monotonic()) * 1000

    def on_silence(self) -> None:
        """Does what is due once the patience is over: lets the child give way, or ends it."""
        now = time.monotonic()
        if now >= self._gives_way_at:
            self._gives_way_at = float("inf")
            # Gone, or not ours to touch as an ordinary user: then it is only slower for others.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PGRP, self._pid, _GIVING_WAY)
        if now < self._deadline:
            return
        # Time in which it was ready to run and had no processor is not its own: a busy machine
        # would turn right answers into timeouts.
        own_s = now - self.started - (_waited_s(self._pid) - self._waited_before_s)
        self._deadline = min(now + self._wall_time_s - own_s, self._last_deadline)
        if self._deadline - now < 0.001:
            self.kill("timeout")

    def kill(self, reason: str) -> None:
        self.killed_for = self.killed_for or reason
        _kill(self._pid)

    def read(self, fd: int) -> bool:
        """Takes what a pipe holds; returns whether there is any use in reading on."""
        if fd == self._note_fd:
            return self._read_note()
        text = self.texts[fd]
        before = len(text)
        is_open = _drain(fd, text, before + self._room + 1)
        self._room -= len(text) - before
        if self._room < 0:
            del text[self._room :]
            self._room = 0
            self.kill("output_limit")
        return is_open

    def _read_note(self) -> bool:
        was_set_up = bool(self.note)
        is_open = _drain(self._note_fd, self.note, _NOTE_BYTES)
        if self.note and not was_set_up:
            self.started = time.monotonic()
            self._deadline = self.started + self._wall_time_s
            self._last_deadline = self.started + MOST_WALL_TIMES * self._wall_time_s
            self._gives_way_at = self.started + _LONG_S
            self._waited_before_s = _waited_s(self._pid)
        return is_open and len(self.note) < _NOTE_BYTES


def _waited_s(pid: int) -> float:
    """Returns how long the main thread of a process was ready to run without a processor."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):  # it has ended, or the kernel does not count
        return 0.0


def _kill(pid: int) -> None:
    # By pid as well: a child that is still being set up leads no group yet.
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _drain(fd: int, into: bytearray, most: int) -> bool:
    """Reads what is there, up to a total length; returns whether the pipe is still open."""
    os.set_blocking(fd, False)
    while len(into) < most:
        try:
            chunk = os.read(fd, min(_CHUNK_BYTES, most - len(into)))
        except BlockingIOError:
            break
        if not chunk:
            return False
        into += chunk
    return True


def _judge(
    note: bytes, killed_for: str | None, wait_status: int, cpu_s: float, limits: dict[str, Any]
) -> dict[str, Any]:
    result: dict[str, Any] = {"status": "error", "stderr": "", "exit_code": None}
    if os.WIFEXITED(wait_status):
        result["exit_code"] = os.WEXITSTATUS(wait_status)
    if not note.startswith(b"R"):
        reason = note.decode("utf-8", "replace") or f"ended with wait status {wait_status}"
        result |= {"status": "infrastructure", "stderr": f"setup: {reason}", "exit_code": None}
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
            result["stderr"] = f"{signal.Signals(ended_by).name}\n"
    elif b"M" in note:
        result["status"] = "memory"
    elif result["exit_code"] == 0:
        result["status"] = "ok"
    return result
