"""The ledger: results of stage runs by slot and by fingerprint, verified whenever read."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from schemas.errors import StoreError
from schemas.refs import Ref, StageOutput, TableRef
from storage import runs
from storage.digests import file_digest, files_below, folder_digest
from storage.files import (
    disk_errors,
    link_files,
    remove_stale,
    replace_json,
    staging_folder,
    sync_path,
    write_durably,
)
from storage.fingerprints import Fingerprint, explain
from storage.layout import MANIFEST_FILE, POLICY_FOLDER, STORE_FILE, STORE_FORMAT, Layout, Slot
from storage.manifests import (
    Environment,
    Manifest,
    StoredFile,
    StoredTable,
    content_problem,
    inspect,
)
from storage.publishing import candidates, publish, write_index
from storage.runs import RunRecord
from storage.tables import check_version, known_table, parquet_bytes, read_typed, validated


@dataclass(frozen=True, slots=True)
class Found:
    """Answer of `Store.find`."""

    output: StageOutput | None
    """The verified result; null if the stage must run."""
    reason: str
    """Why there is a result, or why the stage must run, in one line."""

    @property
    def is_hit(self) -> bool:
        """Whether there is a result."""
        return self.output is not None


class Store:
    """Results and runs in one folder of a local file system.

    Example:
        >>> store = Store.open("store", create=True)
        >>> found = store.find(slot, fingerprint)
        >>> if not found.is_hit:
        ...     output = store.write(slot, fingerprint, tables=..., seconds=1.2, parents=[])
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @property
    def layout(self) -> Layout:
        """Paths of the store."""
        return self._layout

    @property
    def root(self) -> Path:
        """Absolute path of the store."""
        return self._layout.root

    @classmethod
    def open(cls, path: str | Path, create: bool = False) -> "Store":
        """Opens a store, or makes an empty one.

        Args:
            path: Folder of the store.
            create: Whether to make a store where there is none.

        Raises:
            StoreError: If there is no store and `create` is false, if the folder holds
                something else, or if a newer version wrote the store.
        """
        layout = Layout(Path(path).absolute())
        with disk_errors("open store", layout.root):
            # Listed before the look at store.json: that one is the first file of a store.
            entries = _entries(layout.root)
            if not layout.store_file.exists():
                _refuse_place(layout.root, entries, create=create)
                layout.root.mkdir(parents=True, exist_ok=True)
                replace_json(layout.store_file, {"format": STORE_FORMAT})
            _check_format(layout.store_file)
            remove_stale(layout.tmp)
        return cls(layout)

    def find(self, slot: Slot, fingerprint: Fingerprint) -> Found:
        """Looks for the result of a fingerprint: in its slot, then anywhere in the store.

        A result of another slot is adopted: the slot gets the same files, by hard links where
        possible, and a manifest of its own. Every result is verified byte by byte.

        Raises:
            StoreError: If the store cannot be written while adopting.
        """
        digest = fingerprint.digest
        folder = self._layout.resolve(slot.uri)
        with disk_errors("use", folder):
            here = inspect(folder)
            problem = here.problem
            if here.manifest is not None and here.manifest.fingerprint_digest == digest:
                problem = content_problem(folder, here.manifest)
                if problem is None:
                    if not self._layout.index_file(digest).exists():
                        write_index(self._layout, digest, slot.uri)
                    return Found(here.manifest.output(slot.uri), "unchanged")
            old = None if here.manifest is None else here.manifest.fingerprint
            reasons = [problem] if problem else explain(fingerprint, old)
            for uri in candidates(self._layout, digest, slot):
                adopted = self._adopt(uri, slot, digest)
                if isinstance(adopted, Found):
                    mended = f" ({problem} in its own slot)" if problem else ""
                    return Found(adopted.output, adopted.reason + mended)
                reasons.append(adopted)
        return Found(None, "; ".join(reason for reason in reasons if reason))

    def write(
        self,
        slot: Slot,
        fingerprint: Fingerprint,
        *,
        tables: Mapping[str, pl.DataFrame],
        checkpoint_writer: Callable[[Path], None] | None = None,
        policy_version: int | None = None,
        seconds: float,
        parents: Sequence[Ref],
        replace: bool = False,
    ) -> StageOutput:
        """Stores the result of a stage run; it becomes visible whole or not at all.

        Args:
            slot: Place of the result; an older one there is kept among the replaced.
            fingerprint: What decided the result.
            tables: Table name to frame; each is validated against its schema.
            checkpoint_writer: Writes a policy into the empty folder that it is given.
            policy_version: Version of that policy; goes with `checkpoint_writer`.
            seconds: Wall time of the stage run.
            parents: References of its inputs.
            replace: Whether to take the slot from a right result of the same fingerprint, as
                a forced rerun wants; otherwise that one stays and is returned.

        Raises:
            StoreError: If a frame breaks its schema, or on a full disk and other errors of
                the file system; nothing is left of the result then.
        """
        if (checkpoint_writer is None) != (policy_version is None):
            raise ValueError("checkpoint_writer and policy_version go together")
        frames = {name: validated(name, frame) for name, frame in tables.items()}
        target = self._layout.resolve(slot.uri)
        with disk_errors("write", target), staging_folder(self._layout.tmp) as staged:
            for name, frame in frames.items():
                write_durably(staged / f"{name}.parquet", parquet_bytes(frame))
            if checkpoint_writer is not None:
                _write_checkpoint(staged / POLICY_FOLDER, checkpoint_writer)
            manifest = Manifest(
                slot=slot,
                fingerprint=fingerprint,
                fingerprint_digest=fingerprint.digest,
                tables={
                    name: StoredTable(rows=frame.height, schema_version=known_table(name).version)
                    for name, frame in frames.items()
                },
                policy_version=policy_version,
                files=_described(staged),
                parents=[Ref(uri=p.uri, name=p.name, digest=p.digest) for p in parents],
                created_at=datetime.now(UTC),
                seconds=seconds,
                environment=Environment.current(fingerprint.libraries),
            )
            _finish(staged, manifest)
            in_slot = publish(self._layout, staged, slot, manifest, replace=replace)
        return in_slot.output(slot.uri)

    def read(self, ref: TableRef) -> pl.DataFrame:
        """Reads a table, verified and with the types of its schema.

        Raises:
            StoreError: If it is missing, damaged, replaced by a newer result, or was written
                by a newer version.
        """
        check_version(ref.name, ref.schema_version, ref.uri)
        return read_typed(ref.name, self.path(ref))

    def scan(self, ref: TableRef) -> pl.LazyFrame:
        """Opens a table without reading it into memory; verified as in `read`.

        Raises:
            StoreError: As `read`.
        """
        check_version(ref.name, ref.schema_version, ref.uri)
        return pl.scan_parquet(self.path(ref), hive_partitioning=False, glob=False)

    def path(self, ref: Ref) -> Path:
        """Returns the file of a table or the folder of a checkpoint, verified.

        Raises:
            StoreError: If it is missing, damaged or replaced by a newer result.
        """
        path = self._layout.resolve(ref.uri)
        if not path.exists():
            raise StoreError(f"missing file {path}: run its stage again")
        with disk_errors("read", path):
            digest = folder_digest(path) if path.is_dir() else file_digest(path)
            if digest != ref.digest:
                raise StoreError(self._why_other_content(ref, path))
        return path

    def adopt(self, source: Slot, target: Slot) -> StageOutput | None:
        """Gives a slot the result of another one as it is stored, whatever made it.

        Returns:
            The result in its new slot; null if the source is empty or damaged.

        Raises:
            StoreError: If the store cannot be written.
        """
        folder = self._layout.resolve(target.uri)
        with disk_errors("use", folder):
            wanted = inspect(self._layout.resolve(source.uri)).manifest
            if wanted is None:
                return None
            here = inspect(folder).manifest
            if (
                here is not None
                and here.files == wanted.files
                and content_problem(folder, here) is None
            ):
                return here.output(target.uri)
            adopted = self._adopt(source.uri, target, wanted.fingerprint_digest)
        return adopted.output if isinstance(adopted, Found) else None

    def manifest(self, slot: Slot) -> Manifest | None:
        """Returns the manifest of what is in a slot; null for an empty slot.

        Raises:
            StoreError: If the manifest is missing or damaged.
        """
        folder = self._layout.resolve(slot.uri)
        here = inspect(folder)
        if here.problem is not None:
            raise StoreError(f"{here.problem} in {folder}: run its stage again")
        return here.manifest

    def runs(self) -> list[RunRecord]:
        """Returns the records of all runs, sorted by name.

        Raises:
            StoreError: If a record is damaged.
        """
        return runs.read_runs(self._layout)

    def run_record(self, name: str) -> RunRecord:
        """Returns the record of a run; one left "running" by a dead process is "interrupted".

        Raises:
            StoreError: If the run is not known, naming those that are, or its record damaged.
        """
        return runs.read_run(self._layout, name)

    def save_run(self, record: RunRecord) -> RunRecord:
        """Replaces the record of a run in one atomic step.

        Returns:
            The record as saved, with `updated_at` set to now.

        Raises:
            StoreError: If the name cannot be used or the file cannot be written.
        """
        return runs.save_run(self._layout, record)

    def lock_run(self, name: str) -> AbstractContextManager[None]:
        """Holds a run for this process; the lock ends with the process, however it ends.

        Raises:
            StoreError: On entering, if another process holds the run.
        """
        return runs.lock_run(self._layout, name)

    def _adopt(self, uri: str, slot: Slot, digest: str) -> Found | str:
        """Takes a result of another folder over; else returns what is wrong with it."""
        source = self._layout.resolve(uri)
        there = inspect(source).manifest
        if there is None or there.fingerprint_digest != digest:
            return ""  # a hint from before: the result is elsewhere now, or nowhere
        with staging_folder(self._layout.tmp) as staged:
            try:
                link_files(source, staged, list(there.files))
            except FileNotFoundError as error:
                return f"stored result in {uri}: missing file {Path(error.filename).name}"
            # After linking: now nobody can exchange the files under their names.
            problem = content_problem(staged, there)
            if problem is not None:
                return f"stored result in {uri}: {problem}"
            manifest = there.model_copy(
                update={"slot": slot, "adopted_from": uri, "adopted_at": datetime.now(UTC)}
            )
            _finish(staged, manifest)
            in_slot = publish(self._layout, staged, slot, manifest, replace=False)
        origin = there.slot.uri if uri.startswith("replaced/") else uri
        suffix = " (replaced since)" if uri.startswith("replaced/") else ""
        return Found(in_slot.output(slot.uri), f"reused from {origin}{suffix}")

    def _why_other_content(self, ref: Ref, path: Path) -> str:
        manifest = inspect(path.parent).manifest
        if manifest is not None:
            output = manifest.output(self._layout.uri(path.parent))
            stored = output.checkpoint if path.is_dir() else output.tables.get(ref.name)
            if stored is not None and stored.digest != ref.digest:
                return f"{path} holds a newer result than the reference names: run the flow again"
            problem = content_problem(path.parent, manifest)
            if problem is not None:
                return f"{problem} in {path.parent}: run its stage again"
        return f"damaged file {path}: run its stage again"


def _entries(root: Path) -> list[str]:
    """Returns the names in a folder, without those of a store that is being made."""
    if not root.exists():
        return []
    return [p.name for p in root.iterdir() if not p.name.startswith(f".{STORE_FILE}.")]


def _refuse_place(root: Path, entries: list[str], *, create: bool) -> None:
    if entries:
        raise StoreError(f"{root} is no store and not empty: name another folder")
    if not create:
        raise StoreError(f"no store at {root}: `turnledger train --store {root}` makes one")
    for part in root.parts:
        if part.partition("=")[0] in {*Slot.model_fields} and "=" in part:
            raise StoreError(
                f"{root} cannot hold a store: readers of Parquet would take the folder {part} "
                "for a partition"
            )


def _check_format(store_file: Path) -> None:
    try:
        written = json.loads(store_file.read_bytes())["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"damaged file {store_file}: it says no store format") from error
    if not isinstance(written, int) or written > STORE_FORMAT:
        raise StoreError(
            f"store {store_file.parent} has format {written}, this version reads up to "
            f"{STORE_FORMAT}: upgrade turnledger"
        )


def _write_checkpoint(folder: Path, writer: Callable[[Path], None]) -> None:
    folder.mkdir()
    writer(folder)
    for name in files_below(folder):
        sync_path(folder / name)


def _described(folder: Path) -> dict[str, StoredFile]:
    return {
        name: StoredFile(bytes=(folder / name).stat().st_size, digest=file_digest(folder / name))
        for name in files_below(folder)
    }


def _finish(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, the last file of a result."""
    content = manifest.model_dump_json(indent=2) + "\n"
    write_durably(folder / MANIFEST_FILE, content.encode())
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_path(path)
