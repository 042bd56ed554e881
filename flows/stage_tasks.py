"""Stages as Prefect tasks, cached by the fingerprint of the store.

A function that is decorated with `stage_task` describes a stage run: where its result belongs,
what decides it, and how to compute it. Describing is cheap and touches no model. The same
function serves the task, its cache key, and a plan that only asks what would run.

Prefect's caches are used with care. Its key functions would hash too little (the task's own text,
not the modules that it imports) and its record of a result says nothing about the files. So the
key of a stage run names its fingerprint and the digests of its result as the store verified it a
moment ago; without a verified result there is no key, and the task runs.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.transactions import get_transaction

from flows.binding import Place, StageRun, compute_and_keep, look_up
from flows.clusters import Handed, cluster_at_work
from schemas.errors import ClusterError, ExecutorError, StoreUnavailable, TurnledgerError
from schemas.refs import StageOutput
from storage import Found, Slot
from storage.digests import json_digest

P = ParamSpec("P")

RETRIES = 2
"""Of a task that the machine failed: the sandbox, the store's connection, or a cluster."""


class Planner(Protocol):
    """Answers for stage runs instead of running them; see `flows.plan`."""

    def stage(self, run: StageRun) -> StageOutput:
        """Notes what a stage run would do; returns the output that it would have."""

    def adoption(self, place: Place, source: Slot, target: Slot) -> StageOutput | None:
        """Notes that a result would be taken over; returns null where there is none."""


_planner: ContextVar[Planner | None] = ContextVar("planner", default=None)
_looked_up: ContextVar[tuple[object, Found] | None] = ContextVar("looked_up", default=None)
"""Task run and what its cache key was made of, so that the task need not verify it again."""


@contextmanager
def planning(planner: Planner) -> Iterator[None]:
    """Has every stage task within the block answered by a planner, without Prefect."""
    token = _planner.set(planner)
    try:
        yield
    finally:
        _planner.reset(token)


def planner_at_work() -> Planner | None:
    """Returns the planner of this context; null where stages really run."""
    return _planner.get()


@dataclass
class LedgerPolicy(CachePolicy):
    """Cache policy of a stage: its fingerprint, together with the verified result."""

    describe: Callable[..., StageRun] | None = None

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """Returns the key of the stored result; null if there is none, or it is not wanted."""
        if self.describe is None or task_ctx.task.refresh_cache:
            return None
        try:
            run = self.describe(**inputs)
            found = look_up(run)
        except TurnledgerError:
            return None  # Prefect would only log it; the task meets it again and fails of it
        _looked_up.set((task_ctx.task_run.id, found))
        return None if found.output is None else _key(run, found.output)


class StageTask(Generic[P]):
    """A stage as Prefect task: references and a config in, references out."""

    def __init__(
        self, describe: Callable[P, StageRun], run_name: str, *, scales_out: bool = False
    ) -> None:
        self.describe = describe
        """Returns the stage run of some arguments, without computing anything."""
        self.scales_out = scales_out
        """Whether the workers of a cluster may compute it."""

        @functools.wraps(describe)
        def body(*args: P.args, **kwargs: P.kwargs) -> StageOutput:
            return self._run_as_task(describe(*args, **kwargs), args, kwargs)

        self.task: Task[P, StageOutput] = Task(
            body,
            name=describe.__name__.removesuffix("_task"),
            task_run_name=run_name,
            cache_policy=LedgerPolicy(describe=describe),
            persist_result=True,
            result_serializer="json",
            retries=RETRIES,
            retry_delay_seconds=[1, 5],
            retry_condition_fn=is_infrastructure_failure,
        )
        """The task itself, for options such as `with_options(refresh_cache=True)`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> StageOutput:
        """Runs the stage inside a flow and waits for it."""
        planner = planner_at_work()
        if planner is not None:
            return planner.stage(self.describe(*args, **kwargs))
        return self._chosen(args, kwargs)(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Has the stage run as soon as its inputs, which may be futures, are there.

        Returns:
            A future; where a planner is at work, the output.
        """
        planner = planner_at_work()
        if planner is not None:
            return planner.stage(self.describe(*args, **kwargs))
        chosen, cluster = self._chosen(args, kwargs), cluster_at_work()
        if cluster is None or not self.scales_out:
            return chosen.submit(*args, **kwargs)
        return cluster.submit(chosen, self._named(args, kwargs))

    def here(self, *args: P.args, **kwargs: P.kwargs) -> StageOutput:
        """Runs the stage at once, without Prefect: stored results are used, new ones kept."""
        run = self.describe(*args, **kwargs)
        found = look_up(run)
        return found.output or compute_and_keep(run, found.reason)

    def _chosen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task[P, StageOutput]:
        place = kwargs.get("place", args[0] if args else None)
        if self.task.name in getattr(place, "refresh", ()):
            return self.task.with_options(refresh_cache=True)
        return self.task

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(inspect.signature(self.describe).bind(*args, **kwargs).arguments)

    def _run_as_task(
        self, run: StageRun, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StageOutput:
        """Returns the result of a stage run inside its task; computes it if it must."""
        context = TaskRunContext.get()
        is_refresh = context is not None and bool(context.task.refresh_cache)
        if is_refresh:
            output = self._computed(run, args, kwargs, "refresh was asked for", replace=True)
        else:
            found = _handed_over(context) or look_up(run)
            output = found.output or self._computed(run, args, kwargs, found.reason, replace=False)
        transaction = get_transaction()
        if transaction is not None:
            # Prefect asked for the key before there was a result. Kept under the key that the next
            # run will ask for, the reference is found then.
            transaction.key = _key(run, output)
        return output

    def _computed(
        self,
        run: StageRun,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reason: str,
        *,
        replace: bool,
    ) -> StageOutput:
        """Computes a stage run, here or on a worker."""
        context, cluster = TaskRunContext.get(), cluster_at_work()
        if cluster is None or context is None or not self.scales_out or run.needs_device:
            return compute_and_keep(run, reason, replace=replace)
        handed = Handed(
            name=f"{context.task_run.name} on a worker",
            module=self.describe.__module__,
            task=self.describe.__name__,
            arguments=self._named(args, kwargs),
            fingerprint=run.fingerprint,
            reason=reason,
            replace=replace,
        )
        return compute_and_keep(
            run, reason, replace=replace, elsewhere=lambda: cluster.compute(handed)
        )


def stage_task(
    run_name: str, *, scales_out: bool = False
) -> Callable[[Callable[P, StageRun]], StageTask[P]]:
    """Makes a stage task of a function that describes a stage run.

    Args:
        run_name: Name of its task runs, with parameters in braces. The name of the function
            without `_task` is that of the stage.
        scales_out: Whether the workers of a cluster may compute it: it needs no engine, and its
            inputs are small enough for a machine without a GPU.
    """

    def decorate(describe: Callable[P, StageRun]) -> StageTask[P]:
        return StageTask(describe, run_name, scales_out=scales_out)

    return decorate


def is_infrastructure_failure(task: object, run: object, state: State[Any]) -> bool:
    """Says whether a task failed by the machine's fault, which may pass; else it fails again."""
    return isinstance(state.data, ExecutorError | StoreUnavailable | ClusterError)


def _handed_over(context: TaskRunContext | None) -> Found | None:
    """Returns what the cache key was made of, once: a retry looks again."""
    known = _looked_up.get()
    _looked_up.set(None)
    if known is None or context is None or known[0] != context.task_run.id:
        return None
    return known[1]


def _key(run: StageRun, output: StageOutput) -> str:
    """Returns the cache key of a stored result: changes with all that a reference says."""
    parts = {
        "store": run.place.store,
        "slot": run.slot.uri,
        "fingerprint": run.fingerprint.digest,
        "output": output.model_dump(mode="json"),
    }
    return f"turnledger-{run.slot.stage}-{json_digest(parts)}"
