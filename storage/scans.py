"""Any table of a run in one call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import polars as pl

from schemas.errors import StoreError
from storage.backend import Backend
from storage.layout import SPLITS, run_uri
from storage.manifests import Manifest
from storage.store import Store
from storage.tables import check_version, known_table, upgraded_scan


class MissingTableError(StoreError):
    """A run that is there has no files of a table that it could have."""


@dataclass(frozen=True, slots=True)
class RunTables:
    """The tables of a run from one look at its manifests, for those who open several.

    Example:
        >>> tables = RunTables.of("store", "demo")
        >>> turns, credit = tables.open("turns"), tables.open("advantages")
    """

    run: str
    """Name of the run."""
    iteration: int | None
    """The only iteration that was looked at; null for all."""
    backend: Backend
    """Where the store keeps its bytes."""
    found: Sequence[tuple[str, Manifest | None]]
    """Uri and manifest of every slot; null for a manifest that cannot be used."""

    @classmethod
    def of(
        cls, store: str | Path, run: str, *, table: str | None = None, iteration: int | None = None
    ) -> "RunTables":
        """Looks at the manifests of a run.

        Args:
            store: Folder of the store, or `s3://bucket/prefix`.
            run: Name of the run.
            table: The only table that is asked for, so that damage elsewhere does not matter; null
                for any.
            iteration: The only iteration to look at; null for all.

        Raises:
            StoreError: If store or run do not exist, or cannot be read.
        """
        backend = Store.open(store).backend
        with backend.errors("read", run_uri(run)):
            known = backend.runs()
            if run not in known:
                raise StoreError(
                    f"run {run} is not in {backend.url}; known runs: {', '.join(known) or 'none'}"
                )
            uris = backend.slots(run, table, iteration)
            manifests = [here.manifest for here in backend.inspect_all(uris)]
        return cls(run, iteration, backend, list(zip(uris, manifests, strict=True)))

    def open(
        self, table: str, *, split: str = "train", stage: str | None = None, verify: bool = False
    ) -> pl.LazyFrame:
        """Opens a table; arguments, rows and errors are those of `open_table`."""
        columns = pl.Schema(known_table(table).schema).names()
        found = self._results(table, split)
        if not found:
            self._refuse_unknown_split(split)
        by_stage = {manifest.slot.stage for _, manifest in found}
        chosen = [(uri, m) for uri, m in found if stage is None or m.slot.stage == stage]
        if not chosen:
            at = f" of iteration {self.iteration}" if self.iteration is not None else ""
            made_by = f" by stage {stage}" if stage is not None else ""
            raise MissingTableError(
                f"run {self.run} has no table {table}{at} of split {split}{made_by} yet"
            )
        if stage is None and len(by_stage) > 1:
            raise StoreError(
                f"table {table} was made by stages {', '.join(sorted(by_stage))}: name one"
            )
        for uri, manifest in chosen:
            check_version(table, manifest.tables[table].schema_version, f"{uri}/{table}.parquet")
        if verify:
            sources = [str(self.backend.fetch(m.output(uri).tables[table])) for uri, m in chosen]
            opened = _scan(self.run, table, chosen, sources, None)
        else:
            with self.backend.errors("read", run_uri(self.run)):
                sources = self.backend.sources(table, chosen)
            opened = _scan(self.run, table, chosen, sources, self.backend.scan_options)
        return opened.select("run", "iteration", *columns)

    def _refuse_unknown_split(self, split: str) -> None:
        with self.backend.errors("read", run_uri(self.run)):
            uris = self.backend.slots(self.run)
        known = {uri.partition("/split=")[2].partition("/")[0] for uri in uris} - {*SPLITS}
        if split not in (*SPLITS, *known):
            told = ", ".join((*SPLITS, *sorted(known)))
            raise StoreError(f"split {split} is unknown; known splits: {told}")

    def iterations(self, table: str, *, split: str = "train") -> set[int]:
        """Returns the iterations that have a table, be it an empty one."""
        return {manifest.slot.iteration for _, manifest in self._results(table, split)}

    def _results(self, table: str, split: str) -> list[tuple[str, Manifest]]:
        """Returns slot uri and manifest of every result that holds the table."""
        found = []
        for uri, manifest in self.found:
            if f"/split={split}/" not in uri:
                continue
            if manifest is None:
                # It may hold the table: to leave it out would drop rows silently.
                raise StoreError(
                    f"no usable manifest in {self.backend.address(uri)}: run its stage again"
                )
            if table in manifest.tables:
                found.append((uri, manifest))
        return found


def open_table(
    store: str | Path,
    run: str,
    table: str,
    *,
    split: str = "train",
    stage: str | None = None,
    iteration: int | None = None,
    verify: bool = False,
) -> pl.LazyFrame:
    """Opens a table of a run, all iterations, shards and turns of it, for lazy reading.

    Example:
        >>> turns = storage.open_table("store", "demo", "turns")
        >>> turns.filter(iteration=3).select("task_id", "code").collect()

    Args:
        store: Folder of the store, or `s3://bucket/prefix`.
        run: Name of the run.
        table: Name of the table, such as `advantages`.
        split: `train`, `evaluation`, or the name of a benchmark.
        stage: Stage that made the table; found by itself where only one did.
        iteration: The only iteration; files of others are not looked at. Null for all.
        verify: Whether to read every byte of the files now, to see that they are as they were
            stored; otherwise only their presence and size are looked at.

    Returns:
        Columns `run` (String), `iteration` (Int32) and those of the table's newest schema; rows
        in order of iteration, shard and turn.

    Raises:
        MissingTableError: If the table has no files yet.
        StoreError: If store, run or table do not exist, several stages made the table, a file is
            missing or damaged, a newer version wrote it, or an older one from which no upgrade
            leads on.
    """
    known_table(table)
    tables = RunTables.of(store, run, table=table, iteration=iteration)
    return tables.open(table, split=split, stage=stage, verify=verify)


@contextmanager
def scan_errors(what: str) -> Iterator[None]:
    """Turns errors of reading what `open_table` gave into one line.

    Also a file that was right when it was opened may be replaced, or its disk fail, before its rows
    are read.

    Args:
        what: Names the table, such as `turns of demo`.

    Raises:
        StoreError: In place of any `OSError` and of all that polars raises.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, pl.exceptions.ColumnNotFoundError):
            raise StoreError(
                f"cannot read {what}: {reason}; if its schema got this column, its version must go "
                "up in schemas.tables, with a step in schemas.upgrades"
            ) from error
        raise StoreError(
            f"cannot read {what}: {reason}; it may have been replaced meanwhile: do the same again"
        ) from error


def table_iterations(store: str | Path, run: str, table: str, *, split: str = "train") -> set[int]:
    """Returns the iterations of a run that have a table, be it an empty one.

    Raises:
        StoreError: As `open_table`.
    """
    return RunTables.of(store, run, table=table).iterations(table, split=split)


def _scan(
    run: str,
    table: str,
    chosen: Sequence[tuple[str, Manifest]],
    sources: Sequence[str],
    options: dict[str, str] | None,
) -> pl.LazyFrame:
    """Reads the files of each iteration, and puts the partitions beside their columns.

    The partitions come from the slots: one file may serve several of them, and in a bucket its
    name does not tell which. Files of an older version are upgraded, so those of an iteration are
    read together as long as their version is the same.
    """

    def read_alike(result: tuple[Manifest, str]) -> tuple[int, int]:
        manifest = result[0]
        return manifest.slot.iteration, manifest.tables[table].schema_version

    scans = []
    placed = zip((manifest for _, manifest in chosen), sources, strict=True)
    for (iteration, version), results in groupby(placed, read_alike):
        files = [source for _, source in results]
        frame = pl.scan_parquet(files, glob=False, hive_partitioning=False, storage_options=options)
        scans.append(
            upgraded_scan(table, version, frame, files[0]).with_columns(
                run=pl.lit(run), iteration=pl.lit(iteration, dtype=pl.Int32)
            )
        )
    return pl.concat(scans)
