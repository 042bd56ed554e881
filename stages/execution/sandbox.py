"""Execution in Linux namespaces, by unprivileged means: bubblewrap and a warm fork-server.

How. With the first snippet one process is started through bwrap: an empty read-only root with only
what Python needs bound read-only, no environment, fresh network, process, IPC and host-name
namespaces. Inside it a chain of interpreters imports the preloaded modules once, each one module
more than that before, and forks lanes, up to eight for each worker; a lane forks a child for each
snippet, from the least warm interpreter that has what the snippet names (`_supervisor.py`). The
child is the first process of its own process namespace, so that its end ends all its descendants;
it moves into its own user, mount and IPC namespaces, mounts a small tmpfs on /tmp, covers /proc,
gives up all capabilities and the making of further user namespaces, sets its resource limits, and
at last filters its system calls by a list of those allowed (`_seccomp.py`). Started by root, it
first becomes a user of a high number that owns nothing: inside a user namespace that maps root,
root would stay root to the kernel. Two parties outside the child enforce the wall time: its lane,
and beyond it this process. A snippet that takes long gives way to those that have just begun, and
the time in which it waits for a processor is not counted.

What it protects. Snippets reach no network and no file but the interpreter, the standard library,
installed packages, /usr and the folder that they are given; they see no process, environment, file
or shared memory of others, nor of the snippet before; they start no processes and programs, unless
that is allowed; they can write 16 MiB (`file_size_mib`) to /tmp; they cannot change what status
they get, except to one that they could have had honestly.

What it does not protect. A hole in one of the system calls that are allowed is open. There is no
memory cgroup: `memory_mib` holds for a process, and for the snippet as a whole only as long as
it may start no others; with `child_processes` it can be taken `threads` times over. The CPU limit
is per process too; the wall time bounds both. Side channels, timing and the load on the machine
are open. Run by an ordinary user, a snippet has that user's rights on the files bound. Files under
/usr, the interpreter's folder and site-packages are readable: keep no secrets there. Limiting
processes needs Linux 5.14. /dev/shm is absent, so multiprocessing locks and pools do not work.
"""

import os
import queue
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl

from schemas.config import ExecutionConfig
from schemas.errors import ExecutorError
from stages.execution.bubblewrap import bundled_bwrap, unprivileged_id
from stages.execution.lanes import Lane, Zygote
from stages.execution.probe import probe
from stages.execution.protocol import Outcome, cells_of, outcome_frame

_LANES_PER_WORKER = 8
"""Snippets in flight for each that can compute: most of these wait or hang at a time."""

_probed: set[tuple[Path, ExecutionConfig]] = set()
_probe_lock = threading.Lock()


class SandboxExecutor:
    """Runs snippets isolated from the machine and from each other.

    The warm interpreter inside the sandbox, and the lanes it has forked, live as long as the
    executor.

    Args:
        config: Limits of a snippet, and how many run beside each other.
        bwrap: Another bubblewrap than the one that is installed with this package.

    Raises:
        schemas.errors.ExecutorError: If a trial snippet cannot be run, or is not isolated. A
            trial that succeeded is not repeated in the same process.
    """

    def __init__(self, config: ExecutionConfig, *, bwrap: Path | None = None) -> None:
        _require_readable(config.files_path)
        path = bwrap or bundled_bwrap()
        self._zygote = Zygote(path, config)
        self._lanes = config.workers * _LANES_PER_WORKER
        self._idle: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        with _probe_lock:
            if (path, config) not in _probed:
                probe(self._zygote)
                _probed.add((path, config))

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        """Runs every snippet in a sandbox of its own; see `Executor.execute`."""
        requests = cells_of(snippets)
        outcomes: list[Outcome | None] = [None] * len(requests)
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(requests)):
            waiting.put(index)

        def work() -> None:
            with self._lane() as lane, suppress(queue.Empty):
                while True:
                    index = waiting.get_nowait()
                    outcomes[index] = lane.run(requests[index])

        if requests:
            lanes = min(self._lanes, len(requests))
            with ThreadPoolExecutor(lanes, thread_name_prefix="execution") as pool:
                try:
                    for future in [pool.submit(work) for _ in range(lanes)]:
                        future.result()
                finally:
                    # After Ctrl-C, or an error, only what is in flight is waited for.
                    with suppress(queue.Empty):
                        while True:
                            waiting.get_nowait()
        return outcome_frame(snippets, [outcome for outcome in outcomes if outcome is not None])

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """Lends a lane that has nothing to do, or a new one; those that broke are not kept."""
        try:
            lane = self._idle.get_nowait()
        except queue.Empty:
            lane = Lane(self._zygote)
        try:
            yield lane
        except BaseException:
            lane.close()
            raise
        self._idle.put(lane)

    def close(self) -> None:
        """Ends the warm interpreter; the next snippet starts another."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()
        self._zygote.close()


def _require_readable(path: str | None) -> None:
    """Raises ExecutorError where snippets of root, who are not root, could not read a folder."""
    if path is None or unprivileged_id() is None:
        return
    everybody = stat.S_IROTH | stat.S_IXOTH
    if os.stat(path).st_mode & everybody != everybody:
        raise ExecutorError(
            f"execution.files_path: others may not read {path}, and snippets run as a user without "
            f"rights: chmod -R o+rX {path}"
        )
