"""Any table of a run in one call."""

from collections import defaultdict
from pathlib import Path
from typing import get_args

import polars as pl

from schemas.errors import StoreError
from storage.layout import Split
from storage.manifests import inspect
from storage.store import Store
from storage.tables import check_version, known_table


class MissingTableError(StoreError):
    """A run that is there has no files of a table that it could have."""


_PARTITION_TYPES: dict[str, type[pl.DataType]] = {"iteration": pl.Int32}
"""Types of partition columns that are no text."""


def open_table(
    store: str | Path, run: str, table: str, *, split: str = "train", stage: str | None = None
) -> pl.LazyFrame:
    """Opens a table of a run, all iterations, shards and turns of it, for lazy reading.

    The files are not verified here; `Store.read` does that for one reference.

    Example:
        >>> turns = storage.open_table("store", "demo", "turns")
        >>> turns.filter(iteration=3).select("task_id", "code").collect()

    Args:
        store: Folder of the store.
        run: Name of the run.
        table: Name of the table, such as `advantages`.
        split: `train` or `evaluation`.
        stage: Stage that made the table; found by itself where only one did.

    Returns:
        Columns `run` (String), `iteration` (Int32) and those of the table's schema; rows in
        order of iteration, shard and turn.

    Raises:
        MissingTableError: If the table has no files yet.
        StoreError: If store, run or table do not exist, several stages made the table, or a newer
            version wrote it.
    """
    layout = Store.open(store).layout
    schema = known_table(table).schema
    if split not in get_args(Split):
        raise StoreError(f"split {split} is unknown; known splits: {', '.join(get_args(Split))}")
    folder = layout.run_folder(run)
    if not folder.is_dir():
        known = ", ".join(layout.run_names()) or "none"
        raise StoreError(f"run {run} is not in {layout.root}; known runs: {known}")
    files = sorted(folder.glob(f"iteration=*/split={split}/stage=*/**/{table}.parquet"))
    by_stage: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_stage[_partitions(file.relative_to(folder))["stage"]].append(file)
    chosen = by_stage.get(stage, []) if stage is not None else files
    if not chosen:
        made_by = f" by stage {stage}" if stage is not None else ""
        message = f"run {run} has no table {table} of split {split}{made_by} yet"
        raise MissingTableError(message)
    if stage is None and len(by_stage) > 1:
        raise StoreError(f"table {table} was made by stages {', '.join(by_stage)}: name one")
    for file in chosen:
        _check_written_version(table, file, layout.uri(file))
    return _scan(chosen).select("run", "iteration", *pl.Schema(schema).names())


def _scan(files: list[Path]) -> pl.LazyFrame:
    """Reads hive partitions; files of different depth have different ones."""
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for file in files:
        groups[tuple(_partitions(file))].append(file)
    scans = [
        pl.scan_parquet(
            group,
            glob=False,
            hive_partitioning=True,
            # All partitions of the path: also those of folders above the store.
            hive_schema={name: _PARTITION_TYPES.get(name, pl.String) for name in names},
        )
        for names, group in groups.items()
    ]
    return scans[0] if len(scans) == 1 else pl.concat(scans, how="diagonal")


def _partitions(path: Path) -> dict[str, str]:
    parts = (part.partition("=") for part in path.parent.parts)
    return {name: value for name, equals, value in parts if equals}


def _check_written_version(table: str, file: Path, uri: str) -> None:
    manifest = inspect(file.parent).manifest
    if manifest is None or table not in manifest.tables:
        raise StoreError(f"no usable manifest beside {file}: run its stage again")
    check_version(table, manifest.tables[table].schema_version, uri)
