"""The parent's side of the sandbox: the warm interpreter, and lanes that run snippets in it."""

import json
import os
import re
import select
import socket
import struct
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from schemas.categories import ExecutionStatus
from schemas.config import ExecutionConfig
from schemas.errors import ExecutorError
from stages.execution import _cells, _child, _outputs, _seccomp, _supervisor, _watch
from stages.execution._outputs import Outputs
from stages.execution.bubblewrap import (
    DEVICES,
    bwrap_arguments,
    interpreter_path,
    packages_inside,
    unprivileged_id,
    what_is_missing,
)
from stages.execution.protocol import Outcome, refusal_of
from stages.execution.runtime import interpreter_command, limits_of, sources_of

_MODULES = sources_of(_cells, _seccomp, _child, _outputs, _watch, _supervisor)
_START_TIME_S = 60.0
_START_ATTEMPTS = 2
_GRACE_S = 10.0
"""How much longer than a lane's own limits the parent waits for its answer."""


class _EndedError(Exception):
    """The other side closed its connection, or did not answer in time."""


class Zygote:
    """A warm interpreter inside the isolation; started when first needed, again when it has died.

    May be used from several threads at once.
    """

    def __init__(self, bwrap: Path, config: ExecutionConfig) -> None:
        self._bwrap = bwrap
        self._config = config
        self.limits = limits_of(config)
        packages = [name.partition(".")[0] for name in config.preload]
        self._names = [re.compile(rf"\b{re.escape(name)}\b") for name in packages]
        self._lock = threading.Lock()
        self._running: _Running | None = None
        # The kernel ends what a thread has started when that thread ends: this one stays.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        weakref.finalize(self, self._keeper.shutdown, wait=False)

    def warmth_for(self, cells: Sequence[str]) -> int:
        """Returns how many of the preloaded modules are imported where some code is to run.

        As few as serve it, since a fork costs the more the more is imported: all up to the last
        that its text names. A module that it imports beyond these costs only the time.
        """
        text = "\n".join(cells)
        named = (k for k, name in enumerate(self._names, 1) if name.search(text))
        return max(named, default=0)

    def lane(self, warmth: int) -> socket.socket:
        """Has a lane forked; returns the connection with it.

        Args:
            warmth: How many of the preloaded modules it has imported.

        Raises:
            ExecutorError: If code cannot be isolated here.
        """
        with self._lock:
            for attempt in range(_START_ATTEMPTS):
                if self._running is None:
                    self._running = self._keeper.submit(self._started).result()
                try:
                    return self._running.forked_lane(warmth)
                except (OSError, _EndedError) as error:  # it has died
                    reason = self._running.last_words() or str(error)
                    self._stop()
                    if attempt == _START_ATTEMPTS - 1:
                        raise ExecutorError(what_is_missing(reason)) from error
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Ends the interpreter and all that runs in it."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
        self._running = None

    def _started(self) -> "_Running":
        for attempt in range(_START_ATTEMPTS):
            try:
                running = _Running(self._bwrap, self._config, self.limits)
            except OSError as error:
                raise ExecutorError(what_is_missing(f"{self._bwrap}: {error.strerror}")) from error
            try:
                answer = _receive(running.control, _START_TIME_S)
            except TimeoutError as error:
                running.close()
                raise ExecutorError(
                    f"execution.preload: {', '.join(self._config.preload)} were not imported "
                    f"within {_START_TIME_S:.0f} s: take out what hangs"
                ) from error
            except (OSError, _EndedError) as error:
                reason = running.last_words() or str(error)
                running.close()
                if attempt == _START_ATTEMPTS - 1:
                    raise ExecutorError(what_is_missing(reason)) from error
                continue
            if answer["failed"] is not None:
                running.close()
                raise ExecutorError(
                    f"execution.preload: {answer['failed']}: install it, or take it out of the list"
                )
            return running
        raise AssertionError("unreachable")


class _Running:
    """One process of bubblewrap with a warm interpreter in it."""

    def __init__(self, bwrap: Path, config: ExecutionConfig, limits: dict[str, Any]) -> None:
        drop_to = unprivileged_id()
        settings = {
            "limits": limits,
            "path": packages_inside(),
            "devices": DEVICES,
            "drop_to": drop_to,
            "preload": list(config.preload),
        }
        command = [
            str(bwrap),
            *bwrap_arguments(unshare_user=drop_to is None, files=config.files_path),
            "--",
            *interpreter_command(interpreter_path(), _MODULES, settings),
        ]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.control, far_end = socket.socketpair()
        with far_end:
            self._process = subprocess.Popen(
                command,
                stdin=far_end.fileno(),
                stdout=self._log,  # modules may print when they are imported
                stderr=self._log,
                env={},
                cwd="/",
                # Ctrl-C goes to all that a terminal runs; it must not look like a broken sandbox.
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._process, self.control, self._log)

    def forked_lane(self, warmth: int) -> socket.socket:
        """Returns the connection with a lane that lives."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.control, [bytes([warmth])], [theirs.fileno()])
            _receive(ours, _START_TIME_S)
        except (OSError, _EndedError):
            ours.close()
            raise
        return ours

    def last_words(self) -> str:
        """Returns the last line that was written as an error; empty if there is none."""
        # By position: the processes inside write through the same open file.
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 4096, max(0, size - 4096)).decode("utf-8", "replace")
        return text.strip().rpartition("\n")[2]

    def close(self) -> None:
        """Ends the process and all inside it."""
        self._end()


def _end(process: "subprocess.Popen[bytes]", control: socket.socket, log: IO[bytes]) -> None:
    control.close()
    process.kill()  # bwrap takes everything inside with it
    process.wait()
    log.close()


class Lane:
    """Runs one snippet at a time; gets itself a new connection where the old one broke."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        limits = zygote.limits
        most_s = limits["wall_time_s"] * _watch.MOST_WALL_TIMES
        self._answer_time_s = most_s + _watch.SETUP_TIME_S + _GRACE_S
        self._connections: dict[int, socket.socket] = {}

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; what it runs is ended too."""
        for warmth in list(self._connections):
            self._close(warmth)

    def run(self, cells: Sequence[str]) -> Outcome:
        """Runs the last cell on the state that those before it leave."""
        refusal = refusal_of(cells)
        if refusal is not None:
            return refusal
        warmth = self._zygote.warmth_for(cells)
        connection = self._connections.get(warmth)
        if connection is not None and not _is_open(connection):
            # The lane has died while it had nothing to do: that costs nobody anything.
            self._close(warmth)
            connection = None
        if connection is None:
            connection = self._connections[warmth] = self._zygote.lane(warmth)
        try:
            return self._outcome(connection, cells)
        except (OSError, _EndedError) as error:
            self._close(warmth)
            return Outcome(ExecutionStatus.INFRASTRUCTURE, stderr=f"sandbox: {error}")

    def _outcome(self, connection: socket.socket, cells: Sequence[str]) -> Outcome:
        """Hands the code over as a file and reads what is printed; the lane sees neither."""
        connection.settimeout(self._answer_time_s)
        (stdout_fd, stdout_end), (stderr_fd, stderr_end) = os.pipe(), os.pipe()
        code = os.memfd_create("code")
        outputs = Outputs(stdout_fd, stderr_fd, self._zygote.limits["output_kib"])
        try:
            try:
                os.write(code, json.dumps(cells).encode())
                os.lseek(code, 0, os.SEEK_SET)
                socket.send_fds(connection, [b"S"], [code, stdout_end, stderr_end])
            finally:
                for fd in (code, stdout_end, stderr_end):
                    os.close(fd)
            answer = self._answer(connection, outputs)
        finally:
            outputs.close()
        stdout, stderr = outputs.texts()
        if outputs.is_exceeded:
            answer |= {"status": ExecutionStatus.OUTPUT_LIMIT, "exit_code": None}
        return Outcome(stdout=stdout, stderr=stderr + answer.pop("reason"), **answer)

    def _answer(self, connection: socket.socket, outputs: Outputs) -> dict[str, Any]:
        """Reads the output until the lane answers, and has a snippet ended that prints too much."""
        deadline = time.monotonic() + self._answer_time_s
        poller = select.poll()
        for fd in (connection.fileno(), *outputs.open_fds):
            poller.register(fd, select.POLLIN)
        is_told = False
        while True:
            ready = {fd for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if not ready:
                raise _EndedError("did not answer in time")
            has_answered = connection.fileno() in ready
            for fd in set(outputs.open_fds) & (outputs.open_fds if has_answered else ready):
                outputs.read(fd)
                if fd not in outputs.open_fds or outputs.is_exceeded:
                    poller.unregister(fd)
                    outputs.open_fds.discard(fd)
            if has_answered:
                return _receive(connection, self._answer_time_s)
            if outputs.is_exceeded and not is_told:
                connection.sendall(b"K")
                is_told = True

    def _close(self, warmth: int) -> None:
        self._connections.pop(warmth).close()


def _is_open(connection: socket.socket) -> bool:
    """Says whether a lane that owes no answer is still there."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _receive(connection: socket.socket, patience_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + patience_s
    (length,) = struct.unpack("!I", _receive_exactly(connection, 4, deadline))
    message: dict[str, Any] = json.loads(_receive_exactly(connection, length, deadline))
    return message


def _receive_exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(min(count - len(data), 1 << 16))
        if not chunk:
            raise _EndedError("ended before it answered")
        data += chunk
    return bytes(data)
