"""What the tasks share: what they take beside references, and reading the tables behind these."""

from collections.abc import Sequence
from pathlib import Path

import dataframely as dy
import polars as pl
from pydantic import BaseModel, ConfigDict

from flows.binding import Place
from flows.events import StageEvent, tell
from schemas.config import ComputeConfig, RolloutConfig, VllmConfig
from schemas.refs import FOREIGN, CheckpointRef, Ref, StageOutput, TableRef
from schemas.tables import Executions, Prompts, Turns
from storage import Slot
from storage.digests import digest_of_files, file_digest


class Shard(BaseModel):
    """One of several parts of the groups of a round, each of whole groups."""

    model_config = ConfigDict(frozen=True)

    index: int
    of: int
    before: int = 0
    """Parts of earlier rounds, or of earlier samples."""
    first_sample: int = 0
    """Index of the first sample of its groups."""

    @property
    def number(self) -> int:
        """Its number among the shards of all rounds, from 0."""
        return self.before + self.index


class Sampling(BaseModel):
    """How a rollout samples, and on what."""

    model_config = ConfigDict(frozen=True)

    config: RolloutConfig
    compute: ComputeConfig
    vllm: VllmConfig
    seed: int


class UpdateStart(BaseModel):
    """What an update begins with, and where in its run it stands."""

    model_config = ConfigDict(frozen=True)

    policy: CheckpointRef
    reference: CheckpointRef | None
    """Policy that the update is held near to; null where it is not."""
    sampler_version: int
    """Version of the policy that sampled."""
    iterations: int
    """Iterations of the run."""
    seed: int


class Trajectories(BaseModel):
    """References to everything that a rollout, or one shard of it, stored."""

    model_config = ConfigDict(frozen=True)

    prompts: tuple[TableRef, ...]
    turns: tuple[TableRef, ...]
    executions: tuple[TableRef, ...]

    @classmethod
    def of(
        cls,
        prompts: Sequence[TableRef],
        turns: Sequence[StageOutput],
        executions: Sequence[StageOutput],
    ) -> "Trajectories":
        """Names what stage runs of rollout and execution stored."""
        return cls(
            prompts=tuple(prompts),
            turns=tuple(output.tables["turns"] for output in turns),
            executions=tuple(output.tables["executions"] for output in executions),
        )

    def inputs(self) -> dict[str, Ref]:
        """Returns the references by input name, for a fingerprint."""
        refs = numbered("prompts", self.prompts)
        refs |= numbered("turns", self.turns)
        refs |= numbered("executions", self.executions)
        return refs


def numbered(name: str, refs: Sequence[Ref]) -> dict[str, Ref]:
    """Returns references of one kind as inputs `name.0`, `name.1` and so on."""
    return {f"{name}.{number}": ref for number, ref in enumerate(refs)}


def tell_progress(slot: Slot, how_far: str) -> None:
    """Tells listeners how far a stage run is."""
    tell(StageEvent(slot=slot, kind="progress", reason=how_far))


def read_prompts(place: Place, refs: Sequence[TableRef]) -> dy.DataFrame[Prompts]:
    """Reads prompts of several rounds as one frame."""
    return Prompts.validate(pl.concat([place.open().read(ref) for ref in refs]))


def read_turns(place: Place, refs: Sequence[TableRef]) -> dy.DataFrame[Turns]:
    """Reads turns of several tables as one frame."""
    frames = [place.open().read(ref) for ref in refs]
    return Turns.validate(pl.concat([Turns.create_empty(), *frames]))


def read_trajectories(
    place: Place, refs: Trajectories
) -> tuple[dy.DataFrame[Prompts], dy.DataFrame[Turns], dy.DataFrame[Executions]]:
    """Reads prompts, turns and executions of a rollout."""
    executions = [place.open().read(ref) for ref in refs.executions]
    return (
        read_prompts(place, refs.prompts),
        read_turns(place, refs.turns),
        Executions.validate(pl.concat([Executions.create_empty(), *executions])),
    )


def foreign_ref(path: str, files: Sequence[Path]) -> Ref:
    """Names something outside the store by its content.

    Args:
        path: As the user wrote it.
        files: Its files. The names of several count, below their folder; a single file may have
            been renamed.
    """
    # A path such as `folder/train` may name a split, and lead to nothing itself.
    folder = Path(path) if Path(path).is_dir() else Path(path).parent

    def name_of(file: Path) -> str:
        return "file" if len(files) == 1 else str(file.relative_to(folder))

    digest = digest_of_files({name_of(file): file_digest(file) for file in files})
    return Ref(uri=path, name=FOREIGN, digest=digest, content=digest)
