"""What the views read of a store: records, and tables that need not be there yet."""

import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from schemas.errors import StoreError
from schemas.refs import Ref
from storage import MissingTableError, RunRecord, Slot, Store, open_table
from storage.layout import POLICY_FOLDER, RUN_NAME
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

    def table(
        self, run: str, table: str, *, iteration: int | None = None, split: str = "train"
    ) -> pl.LazyFrame:
        """Opens a table of a run, as `storage.open_table`; one that is not there has no rows.

        Raises:
            StoreError: If it is there and damaged.
        """
        try:
            return open_table(self.store.url, run, table, split=split, iteration=iteration)
        except MissingTableError:
            columns = {"run": pl.String(), "iteration": pl.Int32()}
            return pl.LazyFrame(schema={**columns, **pl.Schema(known_table(table).schema)})

    def iterations(self, run: str) -> list[int]:
        """Returns the iterations of a run that hold any result, ascending."""
        with self.store.backend.errors("read", run):
            slots = self.store.backend.slots(run)
        parts = (part for uri in slots for part in uri.split("/"))
        return sorted({int(part[10:]) for part in parts if part.startswith("iteration=")})

    def policy_state(self, run: str, iteration: int) -> str:
        """Says whether the policy that an iteration made is kept, released or not there."""
        stage = "cold_start" if iteration == 0 else "optimisation"
        slot = Slot(run=run, iteration=iteration, split="train", stage=stage)
        manifest = self.store.manifest(slot)
        if manifest is None or manifest.policy_version is None:
            return "none"
        return "released" if manifest.released else "kept"

    def tokenizer_file(self, run: str, iteration: int) -> Path | None:
        """Returns the tokenizer of a policy of the run; null where none is kept.

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
                return self.store.path(ref)
        return None
