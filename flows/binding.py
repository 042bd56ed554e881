"""Binds a stage to the store: look the fingerprint up, else compute and keep."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import polars as pl
from dataframely.exc import SchemaError, ValidationError
from pydantic import BaseModel, ConfigDict

from flows.catalogue import ENGINE_MODULES, EVERY_STAGE, STAGES
from flows.events import StageEvent, tell
from schemas.errors import ClusterError, StageError
from schemas.refs import Ref, StageOutput
from storage import Fingerprint, Found, Slot, Store, module_closure
from storage.layout import Split
from storage.tables import in_one_line


class Place(BaseModel):
    """Where in a store a stage run belongs; small enough to travel as a task parameter."""

    model_config = ConfigDict(frozen=True)

    store: str
    """Folder or `s3://` address of the store."""
    run: str
    iteration: int
    split: Split = "train"
    verify: Literal["full", "sampled"] = "full"
    """How stored results are verified when they are found."""
    refresh: tuple[str, ...] = ()
    """Stages that are computed even if their results are stored."""

    def at(self, iteration: int) -> "Place":
        """Returns the place of another iteration."""
        return self.model_copy(update={"iteration": iteration})

    def of_evaluation(self) -> "Place":
        """Returns the place of the evaluation of the same iteration."""
        return self.model_copy(update={"split": "evaluation"})

    def on(self, benchmark: str) -> "Place":
        """Returns the place of the same iteration's policy on a benchmark."""
        return self.model_copy(update={"split": benchmark})

    def slot(self, stage: str, *, shard: int | None = None, turn: int | None = None) -> Slot:
        """Returns the slot of a stage run at this place."""
        return Slot(
            run=self.run,
            iteration=self.iteration,
            split=self.split,
            stage=stage,
            shard=shard,
            turn=turn,
        )

    def open(self) -> Store:
        """Opens the store, once a process."""
        return open_store(self.store, self.verify)


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """What a stage computed, before it is stored."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    checkpoint_writer: Callable[[Path], None] | None = None
    policy_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """One stage run: all that decides its result, and how to compute it if it is not stored."""

    place: Place
    slot: Slot
    config: Mapping[str, Any]
    """Settings that decide the result, and no others; JSON."""
    inputs: Mapping[str, Ref]
    """Input name to reference."""
    seed: int | None = None
    """Seed of a stage that draws at random."""
    libraries: tuple[str, ...] = ()
    """Distributions that decide the result by its settings, beside those of its stage."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of what decides the result in another process than this one."""
    compute: Callable[[], Produced]
    """Reads the inputs and does the work."""
    modules: tuple[str, ...] = ()
    """Modules that decide the result by its settings, beside those of its stage."""
    needs_device: bool = False
    """Whether it computes with torch on the flow's device, so that no worker can."""
    made_by: str | None = None
    """Stage whose code computes it, where that is another one than the slot's."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of its tables, where they are known before it has run."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides the result, as digests."""
        stage = self.made_by or self.slot.stage
        return Fingerprint(
            stage=stage,
            code=_code(stage, self.modules),
            config=dict(self.config),
            inputs={name: ref.content for name, ref in self.inputs.items()},
            seed=self.seed,
            libraries={**_libraries(stage, self.libraries), **self.versions},
        )


@lru_cache(maxsize=8)
def open_store(url: str, verify: Literal["full", "sampled"] = "full") -> Store:
    """Opens a store that exists, once a process."""
    return Store.open(url, verify=verify)


def look_up(run: StageRun) -> Found:
    """Looks for the stored result of a stage run, and tells listeners if there is one.

    Raises:
        StoreError: If the store cannot be used.
    """
    started = time.perf_counter()
    found = run.place.open().find(run.slot, run.fingerprint, list(run.inputs.values()))
    if found.output is not None:
        seconds = time.perf_counter() - started
        tell(
            StageEvent(
                slot=run.slot,
                kind="reused",
                reason=found.reason,
                seconds=seconds,
                computed_s=found.seconds,
                output=found.output,
            )
        )
    return found


def compute_and_keep(
    run: StageRun,
    reason: str,
    *,
    replace: bool = False,
    elsewhere: Callable[[], StageOutput] | None = None,
) -> StageOutput:
    """Computes a stage run and stores its result.

    Args:
        run: What to compute.
        reason: Why, for listeners.
        replace: Whether a right result with the same fingerprint is pushed out.
        elsewhere: Has another process compute and store it; null does it here.

    Raises:
        TurnledgerError: If inputs or store cannot be used, or the stage makes rows that break
            their schema; nothing is stored then.
    """
    tell(StageEvent(slot=run.slot, kind="started", reason=reason))
    if elsewhere is None:
        output, seconds = _kept_here(run, replace)
    else:
        output = elsewhere()
        seconds = _seconds_of(run, output)
    tell(
        StageEvent(
            slot=run.slot,
            kind="computed",
            reason=reason,
            seconds=seconds,
            computed_s=seconds,
            output=output,
        )
    )
    return output


def _kept_here(run: StageRun, replace: bool) -> tuple[StageOutput, float]:
    """Computes and stores; returns what was stored, and the seconds inside the stage."""
    started = time.perf_counter()
    try:
        produced = run.compute()
    except (SchemaError, ValidationError) as error:
        raise StageError(
            f"{run.slot.uri}: what the stage made breaks its schema: {in_one_line(error)}"
        ) from error
    seconds = time.perf_counter() - started
    output = run.place.open().write(
        run.slot,
        run.fingerprint,
        tables=produced.tables,
        checkpoint_writer=produced.checkpoint_writer,
        policy_version=produced.policy_version,
        seconds=seconds,
        parents=list(run.inputs.values()),
        replace=replace,
    )
    return output, seconds


def _seconds_of(run: StageRun, output: StageOutput) -> float:
    """Returns the seconds inside a stage run that another process stored.

    Raises:
        ClusterError: If what it stored is not in the store of this process.
    """
    manifest = run.place.open().manifest(run.slot)
    if manifest is None or manifest.output(run.slot.uri) != output:
        raise ClusterError(
            f"{run.slot.uri}: what a worker stored is not in {run.place.store} of this machine: a "
            "store for several machines is a bucket, or a folder that all of them mount"
        )
    return manifest.seconds


def freeze_code() -> None:
    """Digests the code of all stages now; called when their modules have just been imported.

    A process goes on with the modules that it imported, whatever is edited meanwhile. So must
    its fingerprints: else results of the old code would be kept under the new one's name.
    """
    for stage in STAGES:
        _code(stage, ())
    for modules in ENGINE_MODULES.values():
        _code("rollout", modules)


@lru_cache
def _code(stage: str, more: tuple[str, ...]) -> dict[str, str]:
    closure: dict[str, str] = {}
    for module in (*STAGES[stage].code, *more):
        if module.startswith("storage."):
            closure[module] = module_closure(module, packages=("storage",))[module]
        else:
            closure |= module_closure(module)
    return closure


@lru_cache
def _libraries(stage: str, more: tuple[str, ...]) -> dict[str, str]:
    names = (*EVERY_STAGE, *STAGES[stage].libraries, *more)
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
