"""What the tasks share: their options, the references they take, reading and storing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import dataframely as dy
import polars as pl
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from flows.binding import Place, Produced, open_store, run_stage
from flows.events import StageEvent, tell
from schemas.config import ComputeConfig, RolloutConfig
from schemas.refs import Ref, TableRef
from schemas.tables import Executions, Prompts, Turns
from storage import Slot
from storage.digests import digest_of_files, file_digest


class TaskOptions(TypedDict):
    """Options that every task shares."""

    cache_policy: Any
    persist_result: bool


OPTIONS: TaskOptions = {"cache_policy": NO_CACHE, "persist_result": False}


class Shard(BaseModel):
    """One of several parts of whole groups."""

    model_config = ConfigDict(frozen=True)

    index: int
    of: int


class Sampling(BaseModel):
    """How a rollout samples, and on what."""

    model_config = ConfigDict(frozen=True)

    config: RolloutConfig
    compute: ComputeConfig
    seed: int


class Trajectories(BaseModel):
    """References to everything that a rollout stored."""

    model_config = ConfigDict(frozen=True)

    prompts: TableRef
    turns: tuple[TableRef, ...]
    executions: tuple[TableRef, ...]

    def inputs(self) -> dict[str, Ref]:
        """Returns the references by input name, for a fingerprint."""
        refs: dict[str, Ref] = {"prompts": self.prompts}
        refs |= {f"turns.{i}": ref for i, ref in enumerate(self.turns)}
        refs |= {f"executions.{i}": ref for i, ref in enumerate(self.executions)}
        return refs


def tell_progress(slot: Slot, how_far: str) -> None:
    """Tells listeners how far a stage run is."""
    tell(StageEvent(slot=slot, kind="progress", reason=how_far))


def read_turns(store: str, refs: Sequence[TableRef]) -> dy.DataFrame[Turns]:
    """Reads turns of several tables as one frame."""
    frames = [open_store(store).read(ref) for ref in refs]
    return Turns.validate(pl.concat([Turns.create_empty(), *frames]))


def read_trajectories(
    store: str, refs: Trajectories
) -> tuple[dy.DataFrame[Prompts], dy.DataFrame[Turns], dy.DataFrame[Executions]]:
    """Reads prompts, turns and executions of a rollout."""
    opened = open_store(store)
    executions = [opened.read(ref) for ref in refs.executions]
    return (
        Prompts.validate(opened.read(refs.prompts)),
        read_turns(store, refs.turns),
        Executions.validate(pl.concat([Executions.create_empty(), *executions])),
    )


def table_of(
    place: Place,
    stage: str,
    config: BaseModel | dict[str, Any],
    inputs: dict[str, Ref],
    compute: Callable[[], pl.DataFrame],
    *,
    table: str | None = None,
) -> TableRef:
    """Runs a stage that yields one table, named like the stage unless said otherwise."""
    name = table or stage
    settings = config if isinstance(config, dict) else config.model_dump(mode="json")
    output = run_stage(
        place,
        place.slot(stage),
        config=settings,
        inputs=inputs,
        compute=lambda: Produced(tables={name: compute()}),
    )
    return output.tables[name]


def foreign_ref(path: str, files: Sequence[Path]) -> Ref:
    """Names something outside the store by the content of its files, in their order."""
    digests = {str(number): file_digest(file) for number, file in enumerate(files)}
    digest = digest_of_files(digests)
    return Ref(uri=path, name="foreign", digest=digest, content=digest)
