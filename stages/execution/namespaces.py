"""Execution in Linux namespaces, by unprivileged means: bubblewrap and a fork-server.

How. `execute` starts up to `workers` supervisors through bwrap: an empty read-only root with
only what Python needs bound read-only, no environment, fresh network, process, IPC and host-name
namespaces. A supervisor (`_supervisor.py`) forks a child for each snippet. The child is the first
process of its own process namespace, so that its end ends all its descendants; it moves into its
own user, mount and IPC namespaces, mounts a small tmpfs on /tmp, covers /proc, gives up all
capabilities and the making of further user namespaces, and sets its resource limits. Started by
root, it first becomes a user of a high number that owns nothing: inside a user namespace that
maps root, root would stay root to the kernel. Two parties outside the child enforce the wall
time: the supervisor, and beyond it this process.

What it protects. Snippets reach no network and no file but the interpreter, the standard library,
installed packages and /usr; they see no process, environment, file or shared memory of others,
nor of the snippet before; they can write 16 MiB (`file_size_mib`) to /tmp; they cannot change
what status they get, except to one that they could have had honestly.

What it does not protect. There is no filter of system calls yet: a hole in the kernel that an
unprivileged process can reach is open. There is no memory cgroup: `memory_mib` holds for a
process, so a snippet can take it `threads` times over, and files in memory (memfd) and SysV shared
memory besides; the CPU limit is per process too, the wall time bounds both. Side channels, timing
and the load on the machine are open. Run by an ordinary user, a snippet has that user's rights on
the files bound. Files under /usr, the interpreter's folder and site-packages are readable: keep no
secrets there. Limiting processes needs Linux 5.14. /dev/shm is absent, so multiprocessing locks
and pools do not work.
"""

import json
import os
import queue
import socket
import struct
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import polars as pl

from schemas.config import ExecutionConfig
from schemas.errors import ExecutorError
from schemas.tables import ExecutionStatus
from stages.execution import _child, _supervisor, _watch
from stages.execution.protocol import Outcome, outcome_frame, why_refused
from stages.execution.runtime import interpreter_command, limits_of, sources_of
from stages.execution.sandbox import (
    bundled_bwrap,
    bwrap_arguments,
    interpreter_path,
    packages_inside,
    unprivileged_id,
    what_is_missing,
)

_MODULES = sources_of(_child, _watch, _supervisor)
_START_TIME_S = 30.0
_START_ATTEMPTS = 2
_GRACE_S = 10.0
"""How much longer than a supervisor's own limits the parent waits for its answer."""

_probed: set[Path] = set()
_probe_lock = threading.Lock()


class NamespaceExecutor:
    """Runs snippets isolated from the machine and from each other.

    Args:
        config: Limits of a snippet and number of supervisors.
        bwrap: Another bubblewrap than the one that is installed with this package.

    Raises:
        schemas.errors.ExecutorError: If a trial snippet cannot be run, or is not isolated. A
            trial that succeeded is not repeated in the same process.
    """

    def __init__(self, config: ExecutionConfig, *, bwrap: Path | None = None) -> None:
        self._bwrap = bwrap or bundled_bwrap()
        self._limits = limits_of(config)
        self._workers = config.workers
        with _probe_lock:
            if self._bwrap not in _probed:
                _probe(self._bwrap)
                _probed.add(self._bwrap)

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        """Runs every snippet in a sandbox of its own; see `Executor.execute`."""
        codes = snippets["code"].to_list()
        outcomes: list[Outcome | None] = [None] * len(codes)
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(codes)):
            waiting.put(index)

        def work() -> None:
            # The supervisor belongs to this thread: the kernel ends it when its starter ends.
            with _Supervisor(self._bwrap, self._limits) as supervisor, suppress(queue.Empty):
                while True:
                    index = waiting.get_nowait()
                    outcomes[index] = supervisor.run(codes[index])

        if codes:
            workers = min(self._workers, len(codes))
            with ThreadPoolExecutor(workers, thread_name_prefix="execution") as pool:
                for future in [pool.submit(work) for _ in range(workers)]:
                    future.result()
        return outcome_frame(snippets, [outcome for outcome in outcomes if outcome is not None])


class _SupervisorEndedError(Exception):
    """The supervisor closed its connection, or did not answer in time."""


class _Supervisor:
    """A fork-server behind a socket; started when first needed, and again when it has died."""

    def __init__(self, bwrap: Path, limits: dict[str, Any]) -> None:
        self._bwrap = bwrap
        self._limits = limits
        self._answer_time_s = limits["wall_time_s"] + _watch.SETUP_TIME_S + _GRACE_S
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> "_Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, code: str) -> Outcome:
        refusal = why_refused(code)
        if refusal is not None:
            return Outcome(ExecutionStatus.REFUSED, stderr=refusal)
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            payload = json.dumps({"code": code}).encode()
            self._connection.settimeout(self._answer_time_s)
            self._connection.sendall(struct.pack("!I", len(payload)) + payload)
            return Outcome(**_receive(self._connection, self._answer_time_s))
        except (OSError, _SupervisorEndedError) as error:
            reason = str(error)
            self._close()
            return Outcome(ExecutionStatus.INFRASTRUCTURE, stderr=f"supervisor: {reason}")

    def _start(self) -> None:
        for attempt in range(_START_ATTEMPTS):
            try:
                self._start_once()
                return
            except (OSError, _SupervisorEndedError) as error:
                reason = self._last_words() or str(error)
                self._close()
                if attempt == _START_ATTEMPTS - 1:
                    raise ExecutorError(what_is_missing(reason)) from error

    def _start_once(self) -> None:
        drop_to = unprivileged_id()
        settings = {"limits": self._limits, "path": packages_inside(), "drop_to": drop_to}
        command = [
            str(self._bwrap),
            *bwrap_arguments(unshare_user=drop_to is None),
            "--",
            *interpreter_command(interpreter_path(), _MODULES, settings),
        ]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._connection, far_end = socket.socketpair()
        with far_end:
            self._process = subprocess.Popen(
                command,
                stdin=far_end.fileno(),
                stdout=far_end.fileno(),
                stderr=self._log,
                env={},
                cwd="/",
                # Ctrl-C goes to all that a terminal runs; it must not look like a broken sandbox.
                start_new_session=True,
            )
        _receive(self._connection, _START_TIME_S)

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace").strip()
        return text.rpartition("\n")[2]

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()  # bwrap takes everything inside with it
            self._process.wait()
        if self._log is not None:
            self._log.close()
        self._connection = self._process = self._log = None


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
            raise _SupervisorEndedError("ended before it answered")
        data += chunk
    return bytes(data)


_PROBE = """
import fractions, os, socket
assert fractions.Fraction(1, 2) == 0.5
breaches = []
for name, attempt in {{
    "reads files": lambda: open({secret!r}),
    "writes files": lambda: open(os.path.join({prefix!r}, "breach"), "w"),
    "reaches the network": lambda: socket.create_connection(("127.0.0.1", {port}), timeout=2),
}}.items():
    try:
        attempt()
    except OSError:
        continue
    breaches.append(name)
print(",".join(breaches) or "isolated")
"""


def _probe(bwrap: Path) -> None:
    """Runs a trial snippet that does real work and attempts what must be denied."""
    with (
        tempfile.NamedTemporaryFile() as secret,
        socket.create_server(("127.0.0.1", 0)) as listener,
        # Limits are not what is tried here, so those of the run play no part.
        _Supervisor(bwrap, limits_of(ExecutionConfig())) as supervisor,
    ):
        port = listener.getsockname()[1]
        outcome = supervisor.run(
            _PROBE.format(secret=secret.name, prefix=os.path.dirname(os.__file__), port=port)
        )
    if outcome.status != ExecutionStatus.OK:
        words = outcome.stderr.strip().rpartition("\n")[2]
        raise ExecutorError(what_is_missing(f"trial snippet: {outcome.status} {words}".strip()))
    if outcome.stdout != "isolated\n":
        raise ExecutorError(what_is_missing(f"trial snippet {outcome.stdout.strip()}"))
