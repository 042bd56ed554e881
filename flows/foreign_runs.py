"""Imported trajectories as a run: its stage runs, written behind a mark, its record last.

The run looks like one that was sampled: prompts, and turns and executions by shard and turn, in
iteration 1. So a rerun takes them over as it does any others. What made them is the stage
`trajectories`, whose own slot holds what no sampled run has: labels and rejected rows.

Until the record is saved the run does not exist for any command, as with `storage.transfer`; what
a killed import left is used by the same import, or removed by gc.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dataframely as dy
import polars as pl

from flows.binding import Place, Produced, StageRun, compute_and_keep, look_up
from flows.sessions import refuse_left_over, stored_config
from flows.task_inputs import foreign_ref
from schemas.config import RolloutConfig, RunConfig
from schemas.errors import ConfigError, StoreError, TrajectoryFileError
from schemas.refs import Ref
from schemas.tables import Prompts
from stages.foreign import ImportedTables, format_of, read_trajectories
from stages.shards import take_shard
from storage import RunRecord, Slot, Store, explain
from storage.layout import run_uri
from storage.problem_sources import Source
from storage.trajectory_files import find_trajectories

STAGE = "trajectories"


@dataclass(frozen=True)
class TrajectoryFile:
    """A file to import, parsed once and only when it must be."""

    path: Path
    source: Source
    ref: Ref
    """Names its content."""
    format_name: str
    on_row: Callable[[int], None]
    """Told the number of every row that is read."""

    @classmethod
    def find(
        cls, path: Path, format_name: str | None, on_row: Callable[[int], None]
    ) -> "TrajectoryFile":
        """Looks at a file, and at its first rows where its format is not said.

        Raises:
            TrajectoryFileError: If it is missing or its format is not known.
        """
        source = find_trajectories(path)
        try:
            name = format_name or format_of(source.rows())
        except TrajectoryFileError as error:
            raise TrajectoryFileError(f"{path}: {error}") from error
        return cls(path, source, foreign_ref(str(path), source.files), name, on_row)

    @cached_property
    def tables(self) -> ImportedTables:
        """Its trajectories.

        Raises:
            TrajectoryFileError: If none can be used.
        """
        rows = self.source.rows()
        try:
            return read_trajectories(
                rows, self.format_name, source=self.source.name, on_row=self.on_row
            )
        except TrajectoryFileError as error:
            raise TrajectoryFileError(f"{self.path}: {error}") from error


def import_file(store: Store, run: str, file: TrajectoryFile) -> bool:
    """Makes a run of a file, or mends the one that was made of it.

    Args:
        store: Where the run shall be.
        run: Its name.
        file: What to import.

    Returns:
        Whether anything was written; if not, the run holds the file already.

    Raises:
        ConfigError: If the name is that of a run of something else.
        TrajectoryFileError: If nothing in the file can be used.
        StoreError: If the store cannot be used, or another process holds the run.
    """
    place = Place(store=store.url, run=run, iteration=1)
    config = None if store.has_run(run) else _config_of(file.tables)
    with store.lock_run(run):
        if config is None or store.has_run(run):
            _require_same_import(store, place, file)
            return _keep(place, file, stored_config(store.run_record(run)))
        if not store.backend.is_incomplete(run):
            refuse_left_over(store, run)
        _refuse_left_of_others(store, run, {r.slot.uri for r in _stage_runs(place, file, config)})
        with store.backend.errors("write", run_uri(run)):
            store.backend.mark_incomplete(run)
        _keep(place, file, config)
        store.save_run(RunRecord.new(run, config, status="finished", imported_from=file.path.name))
    return True


def _config_of(tables: ImportedTables) -> RunConfig:
    """Returns the settings of an imported run: the usual ones, with the shape of the rollout."""
    rollout = RolloutConfig(
        prompts=len(tables.prompts), samples=tables.max_samples, max_turns=tables.max_turns
    )
    return RunConfig(iterations=1, rollout=rollout)


def _require_same_import(store: Store, place: Place, file: TrajectoryFile) -> None:
    manifest = store.manifest(place.slot(STAGE))
    if manifest is None:
        raise ConfigError(f"run {place.run} exists and is no import: take another --run")
    reasons = explain(_labels_run(place, file).fingerprint, manifest.fingerprint)
    if reasons:
        raise ConfigError(
            f"run {place.run} holds another import ({'; '.join(reasons)}): take another --run"
        )


def _refuse_left_of_others(store: Store, run: str, ours: set[str]) -> None:
    """Refuses to write beside what a killed import of another file left: it would be taken in."""
    with store.backend.errors("read", run_uri(run)):
        left = [uri for uri in store.backend.slots(run) if uri not in ours]
    if left:
        raise StoreError(
            f"{store.backend.address(left[0])} is left of another import: `turnledger gc` removes "
            "it, or take another --run"
        )


def _keep(place: Place, file: TrajectoryFile, config: RunConfig) -> bool:
    """Stores every result that is not stored yet; says whether there was one."""
    written = False
    for run in _stage_runs(place, file, config):
        found = look_up(run)
        if found.output is None:
            compute_and_keep(run, found.reason)
            written = True
    return written


def _stage_runs(place: Place, file: TrajectoryFile, config: RunConfig) -> Iterator[StageRun]:
    """Yields the stage runs of an import, that of the labels last."""
    groups, turns = config.rollout.prompts, config.rollout.max_turns
    shards = min(config.rollout.shards, groups)
    yield _stage_run(
        place, file, place.slot("prompts"), {}, lambda: {"prompts": file.tables.prompts}
    )
    for shard in range(shards):
        for turn in range(turns):
            yield _turn_run(place, file, "rollout", "turns", shard, shards, turn)
        # As in a rollout of ours, where nobody would see what the code of the last turn shows.
        for turn in range(turns - 1):
            yield _turn_run(place, file, "execution", "executions", shard, shards, turn)
    yield _labels_run(place, file)


def _labels_run(place: Place, file: TrajectoryFile) -> StageRun:
    def tables() -> dict[str, pl.DataFrame]:
        made = file.tables
        return {"rejected_trajectories": made.rejected, "foreign_labels": made.labels}

    return _stage_run(place, file, place.slot(STAGE), {}, tables)


def _turn_run(
    place: Place, file: TrajectoryFile, stage: str, table: str, shard: int, shards: int, turn: int
) -> StageRun:
    def tables() -> dict[str, pl.DataFrame]:
        rows: pl.DataFrame = getattr(file.tables, table)
        asked: dy.DataFrame[Prompts] = take_shard(file.tables.prompts, shard, shards)
        ours = rows.filter(pl.col("turn_index") == turn)
        return {table: ours.join(asked, on="task_id", how="semi", maintain_order="left")}

    slot = place.slot(stage, shard=shard, turn=turn)
    return _stage_run(place, file, slot, {"shard": shard, "of": shards, "turn": turn}, tables)


def _stage_run(
    place: Place,
    file: TrajectoryFile,
    slot: Slot,
    part: dict[str, int],
    tables: Callable[[], dict[str, pl.DataFrame]],
) -> StageRun:
    return StageRun(
        place=place,
        slot=slot,
        # The name of the file becomes part of the rows: their source, and ids of tasks.
        config={
            "format": file.format_name,
            "source": file.source.name,
            "made_for": slot.stage,  # else all of them would be the same stage run
            **part,
        },
        inputs={"file": file.ref},
        compute=lambda: Produced(tables=tables()),
        made_by=STAGE,
    )
