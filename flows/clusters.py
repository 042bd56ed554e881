"""Clusters: shards computed on the workers of Ray or Dask, through Prefect's task runners.

A stage run stays a task of the flow's process, where it is named, looked up, retried and told of.
Only its computing is handed over, as a task of its own, with references and settings: a worker
reads the tables from the store, and stores what it makes. What needs the policy in memory is not
handed over; see `scales_out` in `flows.stage_tasks`.
"""

import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import CrashedRun
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.binding import StageRun, compute_and_keep, freeze_code, look_up
from flows.cluster_addresses import require_task_runner
from schemas.config import ComputeConfig
from schemas.errors import ClusterError, StoreError, StoreUnavailable
from schemas.refs import StageOutput
from storage import Fingerprint, explain

Failures = tuple[type[BaseException], ...]
"""What a task runner raises in place of a result, where a worker or the cluster is lost."""

AT_ONCE = 128
"""Most stage runs of a flow that are handed over or wait for their inputs; each holds a thread."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Memory that Ray sets aside for objects; none of ours is larger than some kilobytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A stage run as it goes to a worker: what describes it there again, and no rows."""

    name: str
    """Name of its task run."""
    module: str
    """Module of its stage task."""
    task: str
    """Name of the stage task in there."""
    arguments: Mapping[str, Any]
    """What the stage task was called with."""
    fingerprint: Fingerprint
    """What decides the result, as the flow's process knows it."""
    reason: str
    replace: bool
    """Whether a right result with the same fingerprint is pushed out."""


class Cluster:
    """A Prefect task runner with workers, and threads of the flow that wait for them."""

    def __init__(
        self,
        kind: str,
        runner: TaskRunner[Any],
        failures: Failures,
        waiting: ThreadPoolTaskRunner[Any],
    ) -> None:
        """Takes task runners that are started.

        Args:
            kind: What errors call it.
            runner: Has the workers.
            failures: What it raises where a worker or the cluster is lost.
            waiting: Runs the tasks of stage runs that are handed over, which only wait.
        """
        self._kind = kind
        self._runner = runner
        self._failures: Failures = (*failures, CrashedRun)
        self._waiting = waiting

    def submit(
        self, task: Task[..., StageOutput], parameters: dict[str, Any]
    ) -> PrefectFuture[Any]:
        """Has a task of the flow wait for its inputs and hand its stage run over."""
        return self._waiting.submit(task, parameters=parameters)

    def compute(self, handed: Handed) -> StageOutput:
        """Has a worker compute and store a stage run, and waits for it.

        Ray and Dask give the work of a worker that dies to another one, a few times.

        Raises:
            ClusterError: If the cluster is gone, its workers died again and again, or they run
                other code.
            TurnledgerError: Whatever the stage run raised on the worker.
        """
        try:
            future = self._runner.submit(compute_on_worker, parameters={"handed": handed})
            output: StageOutput = future.result()
        except self._failures as error:
            raise ClusterError(
                f"{handed.name}: the {self._kind} cluster could not compute it: "
                f"{_first_line(error)}"
            ) from error
        return output


_cluster: ContextVar[Cluster | None] = ContextVar("cluster", default=None)


def cluster_at_work() -> Cluster | None:
    """Returns the cluster of this context; null where everything stays in this process."""
    return _cluster.get()


@contextmanager
def scaled_out(compute: ComputeConfig) -> Iterator[None]:
    """Has shards computed as `compute.task_runner` says within the block, inside a flow.

    Raises:
        ClusterError: If the cluster cannot be used.
    """
    if compute.task_runner == "threads":
        yield
        return
    require_task_runner(compute, prefect_url=get_current_settings().api.url)
    start = _start_ray if compute.task_runner == "ray" else _start_dask
    waiting: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=AT_ONCE)
    # The cluster ends before the threads that wait for it are waited for.
    with _server_that_workers_know(), waiting, ExitStack() as running:
        runner, failures = start(compute.cluster_url, running)
        token = _cluster.set(Cluster(compute.task_runner, runner, failures, waiting))
        try:
            yield
        finally:
            _cluster.reset(token)


@contextmanager
def _server_that_workers_know() -> Iterator[None]:
    """Names the temporary server, if it is one, in the settings that workers are given.

    Else each of them would start a server of its own.
    """
    if get_current_settings().api.url is not None:
        yield
        return
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    with temporary_settings({PREFECT_API_URL: url}):
        yield


@task(
    name="on a worker", task_run_name="{handed.name}", cache_policy=NO_CACHE, persist_result=False
)
def compute_on_worker(handed: Handed) -> StageOutput:
    """Computes and stores a stage run; called on a worker."""
    return compute_handed(handed)


def compute_handed(handed: Handed) -> StageOutput:
    """Describes a stage run again, with the code of this process, computes and stores it.

    Raises:
        ClusterError: If this process has other code or libraries than the flow's.
        TurnledgerError: Whatever the stage run raises.
    """
    stage_task = getattr(importlib.import_module(handed.module), handed.task)
    freeze_code()
    run: StageRun = stage_task.describe(**handed.arguments)
    host = socket.gethostname()
    differing = explain(run.fingerprint, handed.fingerprint)
    if differing:
        raise ClusterError(
            f"{handed.name}: the worker on {host} is another installation than the flow's "
            f"({'; '.join(differing)}): install the same version on all machines"
        )
    try:
        run.place.open()
    except StoreUnavailable:
        raise
    except StoreError as error:
        raise ClusterError(
            f"{handed.name}: the worker on {host} has no such store: {error}"
        ) from error
    if not handed.replace:
        # A worker that died may have come as far as storing it.
        stored = look_up(run).output
        if stored is not None:
            return stored
    return compute_and_keep(run, handed.reason, replace=handed.replace)


def _start_ray(url: str | None, running: ExitStack) -> tuple[TaskRunner[Any], Failures]:
    # Else a thread that still waits when an interrupt has ended the cluster starts another one.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    from prefect_ray.task_runners import RayTaskRunner
    from ray.exceptions import RayError

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if url is None:
        settings |= {
            "address": "local",  # else it joins whatever cluster runs on this machine
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",  # else it listens where other machines reach it
        }
    runner = RayTaskRunner(url, settings)
    try:
        with _apart_from_signals():
            running.enter_context(runner)
    except (OSError, RuntimeError, ValueError) as error:
        reason = _first_line(error)
        if url is None:
            raise ClusterError(f"Ray cannot start one: {reason}") from error
        raise ClusterError(
            f"Ray cannot use the one at {url}: {reason}; if it asks for a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to what it was started with"
        ) from error
    return runner, (RayError,)


@contextmanager
def _apart_from_signals() -> Iterator[None]:
    """Keeps what this process does on signals, and Ctrl-C from what is started within the block.

    A terminal sends Ctrl-C to all processes that it runs. Workers that died of it would take their
    tasks with them before the flow is interrupted. A process and a thread inherit which signals
    are blocked. Ray would also abort this process when it is told to end.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:  # no other thread may set it, nor has set it
            signal.signal(signal.SIGTERM, before)


_IGNORES_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""Code of a Dask worker's start: asyncio answers Ctrl-C there, whether blocked or not."""


def _start_dask(url: str | None, running: ExitStack) -> tuple[TaskRunner[Any], Failures]:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError
    from prefect_dask.task_runners import DaskTaskRunner

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if url is None:
        runner = DaskTaskRunner(
            cluster_kwargs={
                "n_workers": os.cpu_count(),
                "threads_per_worker": 1,
                "dashboard_address": "127.0.0.1:0",
                "silence_logs": logging.CRITICAL,
                "preload": _IGNORES_CTRL_C,
            }
        )
    else:
        runner = DaskTaskRunner(address=url)
    try:
        with _apart_from_signals():
            running.enter_context(runner)
            # Started with its client, which threads must not ask for at the same time.
            _ = runner.client
    except (OSError, RuntimeError) as error:
        told = "start one" if url is None else f"use the one at {url}"
        raise ClusterError(f"Dask cannot {told}: {_first_line(error)}") from error
    return runner, (KilledWorker, CommClosedError, CancelledError)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
