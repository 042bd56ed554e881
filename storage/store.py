"""The ledger: results of stage runs by slot and by fingerprint, verified whenever read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from schemas.errors import StoreError
from schemas.refs import CheckpointRef, Ref, StageOutput, TableRef
from storage import runs
from storage.backend import Backend
from storage.environment import Environment
from storage.fingerprints import Fingerprint
from storage.folder import Folder
from storage.found import Found, search, take
from storage.layout import Layout, Slot, is_address, record_uri, run_uri
from storage.manifests import Manifest, bare
from storage.runs import RunRecord
from storage.staged import write_policy, write_tables
from storage.tables import check_version, read_typed, upgraded_scan, validated
from storage.verification import Verify


class Store:
    """Results and runs in one folder of a local file system, or in a bucket.

    Example:
        >>> store = Store.open("store", create=True)
        >>> found = store.find(slot, fingerprint)
        >>> if not found.is_hit:
        ...     output = store.write(slot, fingerprint, tables=..., seconds=1.2, parents=[])
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @classmethod
    def open(cls, path: str | Path, create: bool = False, verify: Verify = "full") -> "Store":
        """Opens a store, or makes an empty one.

        Args:
            path: Folder of the store, or `s3://bucket/prefix`. Endpoint and keys of a bucket
                come from the usual environment variables, such as `AWS_ENDPOINT_URL`.
            create: Whether to make a store where there is none; never a bucket.
            verify: How thoroughly results are verified whenever they are found or read: `full`
                reads every byte; `sampled` all of the small files and a few blocks of larger
                ones, so that it finds lost and cut files, but only by luck a single bit.

        Raises:
            StoreError: If there is no store and `create` is false, if the place holds
                something else, cannot be reached, or if a newer version wrote the store.
        """
        if isinstance(path, str) and path.startswith("s3://"):
            from storage.bucket import Bucket  # takes its time, and few need it

            return cls(Bucket.open(path, create=create, verify=verify))
        if is_address(Path(path)):
            raise StoreError(f"{path} is no address of a store: write s3://bucket/prefix, as text")
        return cls(Folder.open(Path(path), create=create, verify=verify))

    @property
    def url(self) -> str:
        """Absolute path of the store's folder, or `s3://bucket/prefix`; `open` takes both."""
        return self._backend.url

    @property
    def backend(self) -> Backend:
        """Where the store keeps its bytes."""
        return self._backend

    @property
    def layout(self) -> Layout:
        """Paths of a store in a folder.

        Raises:
            StoreError: If the store is in a bucket, which has no paths.
        """
        if not isinstance(self._backend, Folder):
            raise StoreError(f"{self.url} has no local paths: open its tables through the store")
        return self._backend.layout

    @property
    def root(self) -> Path:
        """Absolute path of a store in a folder; fails as `layout` does."""
        return self.layout.root

    def find(
        self, slot: Slot, fingerprint: Fingerprint, parents: Sequence[Ref] | None = None
    ) -> Found:
        """Looks for the result of a fingerprint: in its slot, then anywhere in the store.

        A result of another slot is adopted: the slot gets the same bytes and a manifest of its
        own. Every result is verified as `open` says.

        Args:
            slot: Where the result belongs.
            fingerprint: What decides it.
            parents: Inputs of the stage run that asks; an adopted result names them in place of
                those of the stage run that computed it. Null keeps these.

        Raises:
            StoreError: If the store cannot be written while adopting.
        """
        return search(self._backend, slot, fingerprint, adopting=True, parents=parents)

    def look(self, slot: Slot, fingerprint: Fingerprint) -> Found:
        """Tells what `find` would return, and changes nothing in the store.

        A result that would be adopted is a hit: its references name the slot, where nothing is
        yet, with the digests of the bytes that it would get.

        Raises:
            StoreError: If the store cannot be read.
        """
        return search(self._backend, slot, fingerprint, adopting=False)

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
        with self._backend.errors("write", slot.uri), self._backend.staging() as staged:
            files, described = write_tables(staged, frames)
            if checkpoint_writer is not None:
                files |= write_policy(staged, checkpoint_writer)
            manifest = Manifest(
                slot=slot,
                fingerprint=fingerprint,
                fingerprint_digest=fingerprint.digest,
                tables=described,
                policy_version=policy_version,
                files=dict(sorted(files.items())),
                parents=bare(parents),
                created_at=datetime.now(UTC),
                seconds=seconds,
                environment=Environment.current(fingerprint.libraries),
            )
            in_slot = self._backend.publish(staged, manifest, replace=replace)
        return in_slot.output(slot.uri)

    def read(self, ref: TableRef) -> pl.DataFrame:
        """Reads a table, verified, as rows of the newest version of its schema.

        Raises:
            StoreError: If it is missing, damaged, replaced by a newer result, was written by a
                newer version, or by an older one from which no upgrade leads on.
        """
        check_version(ref.name, ref.schema_version, ref.uri)
        with self._backend.errors("read", ref.uri):
            return read_typed(ref.name, self.path(ref), ref.schema_version)

    def scan(self, ref: TableRef) -> pl.LazyFrame:
        """Opens a table without reading it into memory; verified as in `read`.

        Raises:
            StoreError: As `read`.
        """
        check_version(ref.name, ref.schema_version, ref.uri)
        path = self.path(ref)
        frame = pl.scan_parquet(path, hive_partitioning=False, glob=False)
        return upgraded_scan(ref.name, ref.schema_version, frame, str(path))

    def path(self, ref: Ref) -> Path:
        """Returns the file of a table or the folder of a checkpoint, verified.

        For a store in a bucket it is a copy in a local cache. Not to be written to.

        Raises:
            StoreError: If it is missing, damaged or replaced by a newer result.
        """
        if isinstance(ref, CheckpointRef):
            self.refuse_released(ref)
        return self._backend.fetch(ref)

    def release_policy(self, slot: Slot) -> None:
        """Frees the files of a policy that is not wanted any more.

        Its tables stay, and so does what the ledger says of it: its digest, and every result that
        was made from it. Using it is refused from then on. In a bucket `gc` frees the bytes.

        Raises:
            StoreError: If the store cannot be written.
        """
        manifest = self.manifest(slot)
        if manifest is not None and manifest.policy_version is not None:
            with self._backend.errors("release", slot.uri):
                self._backend.release(slot.uri, manifest)

    def refuse_released(self, ref: CheckpointRef) -> None:
        """Refuses a policy whose files are not kept any more.

        Raises:
            StoreError: If so, or if the store cannot be read.
        """
        uri = ref.uri.rpartition("/")[0]
        with self._backend.errors("read", ref.uri):
            manifest = self._backend.inspect(uri).manifest
        if manifest is not None and manifest.released:
            slot = manifest.slot
            raise StoreError(
                f"the policy of iteration {slot.iteration} of {slot.run} is not kept any more "
                "(compute.keep_policies); all updates of the run are computed again, and kept, by "
                f"turnledger train --run {slot.run} --refresh optimisation "
                "--set compute.keep_policies=1000"
            )

    def adopt(self, source: Slot, target: Slot) -> StageOutput | None:
        """Gives a slot the result of another one as it is stored, whatever made it.

        Returns:
            The result in its new slot; null if the source is empty.

        Raises:
            StoreError: If the source is damaged, or the store cannot be written.
        """
        wanted = self.manifest(source)
        if wanted is None:
            return None
        with self._backend.errors("use", target.uri):
            here = self._backend.inspect(target.uri).manifest
            if (
                here is not None
                and here.files == wanted.files
                and self._backend.content_problem(target.uri, here) is None
            ):
                return here.output(target.uri)
            adopted = take(self._backend, source.uri, target, wanted)
        if not isinstance(adopted, Manifest):
            raise self._damaged(source, adopted)
        return adopted.output(target.uri)

    def verified(self, slot: Slot) -> Manifest | None:
        """Returns the manifest of what is in a slot, whose files are right; null if it is empty.

        Raises:
            StoreError: If the result is damaged.
        """
        manifest = self.manifest(slot)
        if manifest is not None:
            with self._backend.errors("read", slot.uri):
                problem = self._backend.content_problem(slot.uri, manifest)
            if problem is not None:
                raise self._damaged(slot, problem)
        return manifest

    def manifest(self, slot: Slot) -> Manifest | None:
        """Returns the manifest of what is in a slot; null for an empty slot.

        Raises:
            StoreError: If the manifest is missing or damaged.
        """
        with self._backend.errors("read", slot.uri):
            here = self._backend.inspect(slot.uri)
        if here.problem is not None:
            raise self._damaged(slot, here.problem)
        return here.manifest

    def results(
        self, run: str | None = None, iteration: int | None = None
    ) -> Iterator[tuple[str, Manifest]]:
        """Yields slot uri and manifest of every result, without verifying its files.

        Slots with a damaged manifest are left out.

        Args:
            run: Name of a run; null for all of them.
            iteration: The only iteration; null for all.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._backend.errors("read", ""):
            for name in [run] if run is not None else self._backend.runs():
                uris = self._backend.slots(name, iteration=iteration)
                for uri, here in zip(uris, self._backend.inspect_all(uris), strict=True):
                    if here.manifest is not None:
                        yield uri, here.manifest

    def changes(self, run: str, seen: dict[str, str]) -> Iterator[tuple[str, Manifest]]:
        """Yields slot uri and manifest of the results that came since the last call.

        A result that replaced another one counts as one that came; a result whose manifest cannot
        be used does not.

        Args:
            run: Name of the run, which need not be there yet.
            seen: What the last call left here, empty at first; brought up to date.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._backend.errors("read", run_uri(run)):
            marks = self._backend.marks(run)
            new = sorted(uri for uri, mark in marks.items() if seen.get(uri) != mark)
            found = self._backend.inspect_all(new)
        for uri, here in zip(new, found, strict=True):
            if here.manifest is not None:
                seen[uri] = marks[uri]
                yield uri, here.manifest

    def has_results(self, name: str) -> bool:
        """Says whether any result is stored in a run.

        Raises:
            StoreError: If the name cannot be used or the store not be read.
        """
        with self._backend.errors("read", run_uri(name)):
            return bool(self._backend.slots(name))

    def runs(self) -> list[RunRecord]:
        """Returns the records of all runs that can be read, sorted by name."""
        return runs.read_runs(self._backend)[0]

    def damaged_runs(self) -> dict[str, str]:
        """Returns the runs whose record cannot be read: name to what is wrong, in one line."""
        return runs.read_runs(self._backend)[1]

    def run_names(self) -> list[str]:
        """Returns the names of the runs that have a record, readable or not, sorted."""
        with self._backend.errors("read", ""):
            return runs.recorded(self._backend)

    def has_run(self, name: str) -> bool:
        """Says whether a run has a record, readable or not.

        Raises:
            StoreError: If the name cannot be used or the store not be read.
        """
        with self._backend.errors("read", record_uri(name)):
            return self._backend.read_record(name) is not None

    def run_record(self, name: str) -> RunRecord:
        """Returns the record of a run; one left "running" by a dead process is "interrupted".

        Raises:
            StoreError: If the run is not known, naming those that are, or its record damaged.
        """
        return runs.read_run(self._backend, name)

    def save_run(self, record: RunRecord) -> RunRecord:
        """Replaces the record of a run in one atomic step.

        Returns:
            The record as saved, with `updated_at` set to now; later than that of any other
            record in the store, also after a clock was set back.

        Raises:
            StoreError: If the name cannot be used or the record cannot be written.
        """
        return runs.save_run(self._backend, record)

    def lock_run(self, name: str) -> AbstractContextManager[None]:
        """Holds a run for this process; the lock ends with the process, however it ends.

        Raises:
            StoreError: On entering, if another process holds the run.
        """
        return self._backend.lock_run(name)

    def watch_lock(self, name: str) -> Callable[[], bool]:
        """Returns what may be asked again and again whether a process holds the run.

        Nothing is held for it. In a bucket a holder that died on another machine is known after
        some questions within `storage.lease.LEASE_S` seconds.
        """
        ask = self._backend.watch_lock(name)

        def is_held() -> bool:
            with self._backend.errors("read", run_uri(name)):
                return ask()

        return is_held

    def _damaged(self, slot: Slot, problem: str) -> StoreError:
        return StoreError(
            f"{problem} in {self._backend.address(slot.uri)}: `turnledger train --run {slot.run}` "
            "makes it again"
        )
