"""What the views read of a store: records, and tables that need not be there yet."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from schemas.errors import StoreError
from schemas.refs import Ref
from schemas.tables import GROUP_KEY, TRAJECTORY_KEY
from storage import MissingTableError, RunRecord, RunTables, Slot, Store
from storage.layout import POLICY_FOLDER, RUN_NAME, SPLITS
from storage.tables import known_table

TOKENIZER_FILE = "tokenizer.json"


class NotFoundError(StoreError):
    """What an address asks for is not in the store."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the tables of a store for the pages."""

    store: Store

    def record(self, run: str) -> RunRecord:
        """Returns the record of a run.

        Raises:
            NotFoundError: If there is no such run.
            StoreError: If its record is damaged.
        """
        if not re.fullmatch(RUN_NAME, run) or not self.store.has_run(run):
            raise NotFoundError(f"there is no run {run} in this store")
        return self.store.run_record(run)

    def tables(self, run: str, iteration: int | None = None, split: str = "train") -> "Tables":
        """Looks at the tables of a run, or of one of its iterations.

        Raises:
            StoreError: If the run has no folder, or it cannot be read.
        """
        found = RunTables.of(self.store.url, run, iteration=iteration)
        return Tables(run, split, found)

    def iterations(self, run: str, split: str | None = None) -> list[int]:
        """Returns the iterations of a run that hold a result, of a split or any, ascending."""
        return sorted({number for number, part in self.parts(run) if split in (None, part)})

    def parts(self, run: str) -> set[tuple[int, str]]:
        """Returns iteration and split of all that a run holds."""
        with self.store.backend.errors("read", run):
            slots = self.store.backend.slots(run)
        return {_part(uri) for uri in slots}

    def policy_state(self, run: str, iteration: int) -> str:
        """Says whether the policy that an iteration made is kept, released or not there."""
        stage = "cold_start" if iteration == 0 else "optimisation"
        slot = Slot(run=run, iteration=iteration, split="train", stage=stage)
        manifest = self.store.manifest(slot)
        if manifest is None or manifest.policy_version is None:
            return "none"
        return "released" if manifest.released else "kept"

    def tokenizer_file(self, run: str, iteration: int) -> tuple[Path, str] | None:
        """Returns file and digest of the tokenizer of the run; null where no policy is kept.

        All policies of a run have the same one. Nothing else of a policy is read, for its weights
        may be large.

        Args:
            run: Name of the run.
            iteration: Whose rollout was sampled; the policy before it is looked for first.
        """
        for of in dict.fromkeys((0, iteration - 1, iteration)):
            stage = "cold_start" if of == 0 else "optimisation"
            if of < 0:
                continue
            slot = Slot(run=run, iteration=of, split="train", stage=stage)
            manifest = self.store.manifest(slot)
            file = None if manifest is None else manifest.policy_files.get(TOKENIZER_FILE)
            if file is not None:
                uri = f"{slot.uri}/{POLICY_FOLDER}/{TOKENIZER_FILE}"
                ref = Ref(uri=uri, name="tokenizer", digest=file.digest, content=file.digest)
                return self.store.path(ref), file.digest
        return None


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a run, or of one of its iterations, opened when they are asked for."""

    run: str
    split: str
    found: RunTables

    @property
    def splits(self) -> list[str]:
        """Splits that hold any result, as `in_order`."""
        return in_order({m.slot.split for _, m in self.found.found if m is not None})

    @property
    def iterations(self) -> list[int]:
        """Iterations that hold any result, ascending."""
        return sorted({m.slot.iteration for _, m in self.found.found if m is not None})

    def has(self, table: str) -> bool:
        """Says whether any result of the run holds a table."""
        return any(m is not None and table in m.tables for _, m in self.found.found)

    def open(self, table: str, *, split: str | None = None) -> pl.LazyFrame:
        """Opens a table, as `storage.open_table`; one that is not there has no rows.

        Args:
            table: Its name.
            split: Null for that of these tables.

        Raises:
            StoreError: If it is there and damaged.
        """
        try:
            return self.found.open(table, split=split or self.split)
        except MissingTableError:
            columns = {"run": pl.String(), "iteration": pl.Int32()}
            return pl.LazyFrame(schema={**columns, **pl.Schema(known_table(table).schema)})

    def rows(self, table: str, where: pl.Expr) -> pl.DataFrame:
        """Returns the few rows of a table for which a condition holds.

        They are found by the columns of the condition, and only they are read: in one step polars
        decodes the lists of all rows that are stored beside them, a hundred times as much.
        """
        opened = self.open(table)
        keys = opened.select(where.meta.root_names()).with_row_index("row")
        positions = keys.filter(where).select("row").collect()
        if positions.is_empty():
            return opened.clear().collect()
        together = positions.group_by(start=pl.col("row") - pl.int_range(pl.len()))
        spans = together.agg(first=pl.col("row").min(), length=pl.len()).sort("first")
        return pl.concat(
            opened.slice(first, length).collect()
            for first, length in spans.select("first", "length").iter_rows()
        )

    def tasks(self) -> pl.DataFrame:
        """Returns the `task_id` of every group, in the order in which they were asked."""
        asked = self.open("prompts").select(*GROUP_KEY).collect()
        if len(asked):
            return asked
        return self.open("turns").select(*GROUP_KEY).unique(maintain_order=True).collect()

    def outcomes(self) -> pl.LazyFrame:
        """Returns `task_id`, `sample_index` and `outcome`, 1 or 0, a row a trajectory."""
        if self.split != "train":
            graded = self.open("evaluations")
            return graded.select(*TRAJECTORY_KEY, outcome=pl.col("correct").cast(pl.Float64))
        lasts = self.open("turn_rewards").filter("is_last")
        return lasts.select(*TRAJECTORY_KEY, "outcome")


def in_order(splits: Iterable[str]) -> list[str]:
    """Returns splits as they are told: `train`, `evaluation`, then benchmarks by name."""
    return sorted(splits, key=lambda split: (split not in SPLITS, split != "train", split))


def _part(uri: str) -> tuple[int, str]:
    keys = dict(part.split("=", 1) for part in uri.split("/") if "=" in part)
    return int(keys["iteration"]), keys["split"]
