"""A store in a bucket of an object store.

A result is its manifest, put last and in one request, on condition that nobody changed the slot
since it was looked at. Its bytes are blobs named by their digest, uploaded before, which nobody
sees without a manifest and which no other content ever replaces. So publishing is one atomic put,
adopting is one more manifest, and a killed upload leaves nothing to be seen.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from schemas.errors import StoreError
from schemas.refs import CheckpointRef, Ref
from storage import bucket_garbage, bucket_publishing, lease
from storage.backend import Garbage, Kept, Waste
from storage.cache import Cache
from storage.digests import canonical_json
from storage.files import disk_errors, write_with_digest
from storage.layout import (
    COLLECTION_LEASE,
    MANIFEST_FILE,
    POLICY_FOLDER,
    STORE_FILE,
    STORE_FORMAT,
    blob_uri,
    check_uri,
    dropped_record_uri,
    incomplete_uri,
    index_uri,
    iteration_uri,
    lease_uri,
    record_uri,
    run_uri,
    runs_among,
)
from storage.manifests import Inspection, Manifest, parsed, written
from storage.objects import Object, Objects, allows_http, in_parallel
from storage.opening import check_format, refuse_lost_format
from storage.verification import BLOCK_BYTES, StoredFile, Verify, described_bytes, drawn_blocks

_SCAN_VARIABLES = (
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "AWS_REGION"),
)


class Bucket:
    """Keeps results and run records in a bucket; see `Backend`."""

    def __init__(self, objects: Objects, cache: Cache, verify: Verify) -> None:
        self._objects, self._cache = objects, cache
        self._verify: Verify = verify
        self._held: dict[str, lease.Held] = {}
        self._is_collecting = False

    @classmethod
    def open(cls, url: str, *, create: bool, verify: Verify) -> "Bucket":
        """Opens the store at `s3://bucket/prefix`, or makes an empty one; see `Store.open`."""
        parts = urlsplit(url)
        if not parts.netloc or parts.query or parts.fragment or ".." in parts.path.split("/"):
            raise StoreError(f"{url} is no address of a store: write s3://bucket/prefix")
        objects = Objects(parts.netloc, parts.path.strip("/"))
        written = objects.get(STORE_FILE)
        if written is None:
            entries = objects.names()
            refuse_lost_format(entries, url)
            if entries:
                raise StoreError(
                    f"{url} is no store and not empty ({entries[0]}): name another place"
                )
            if not create:
                raise StoreError(f"no store at {url}: `turnledger train --store {url}` makes one")
            content = json.dumps({"format": STORE_FORMAT}).encode()
            objects.create(STORE_FILE, content)
            written = Object(content, "")
        check_format(written.content, objects.url)
        with disk_errors("open the cache of", Path(objects.url)):
            return cls(objects, Cache.of_user(), verify)

    @property
    def url(self) -> str:
        """Address of the store, `s3://bucket/prefix`."""
        return self._objects.url

    @property
    def scan_options(self) -> dict[str, str]:
        """Endpoint and keys of the environment, for polars."""
        options = {"aws_allow_http": str(allows_http(self._objects.endpoint)).lower()}
        named = {name: os.environ.get(name) for name in _SCAN_VARIABLES}
        return options | {name.lower(): value for name, value in named.items() if value}

    def address(self, uri: str) -> str:
        """Returns the full address of a `uri`."""
        return f"{self.url}/{check_uri(uri)}".rstrip("/")

    @contextmanager
    def errors(self, action: str, uri: str) -> Iterator[None]:
        """Turns errors of the local file system into one line; those of the bucket are already."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            what = f"{error.filename}: {reason}" if error.filename else reason
            raise StoreError(f"cannot {action} {self.address(uri)}: {what}") from error

    def inspect(self, uri: str) -> Inspection:
        """Reads the manifest of a result."""
        present = self._objects.get(bucket_publishing.manifest_uri(uri))
        return Inspection(None, None) if present is None else parsed(present.content)

    def inspect_all(self, uris: Sequence[str]) -> list[Inspection]:
        """Reads several manifests at once."""
        return in_parallel(self.inspect, uris)

    def content_problem(self, uri: str, manifest: Manifest) -> str | None:
        """Returns what is wrong with the blobs of a result, or null if they are right."""
        files = sorted((manifest.files | _listing(manifest)).items())
        problems = in_parallel(lambda file: self._blob_problem(file[1]), files)
        for (name, _), problem in zip(files, problems, strict=True):
            if problem is not None:
                return f"{problem} file {name}"
        return None

    def candidates(self, fingerprint: str, slot: str) -> list[str]:
        """Returns the places besides the slot that may hold a result, the index's hint first."""
        return bucket_publishing.candidates(self._objects, fingerprint, slot)

    def note(self, fingerprint: str, uri: str) -> None:
        """Notes where a fingerprint is, unless there is a note."""
        # Asked first: who may only read still finds results.
        if self._objects.size(index_uri(fingerprint)) is None:
            self._objects.create(index_uri(fingerprint), bucket_publishing.hint_to(uri))

    def staging(self) -> AbstractContextManager[Path]:
        """Gives an empty folder in the local cache."""
        return self._cache.staging()

    def publish(self, staged: Path, manifest: Manifest, *, replace: bool) -> Manifest:
        """Uploads the files of a result, and its manifest last.

        Blobs that are there already are put again: one of them may be damaged.
        """

        def upload(name: str) -> None:
            self._objects.put(blob_uri(manifest.files[name].digest), staged / name)

        in_parallel(upload, list(manifest.files))
        for file in _listing(manifest).values():
            self._objects.put(blob_uri(file.digest), canonical_json(_listed(manifest)))
        return self._settled(manifest, replace=replace)

    def release(self, uri: str, manifest: Manifest) -> None:
        """Lets a result's manifest name the policy's blobs no more; a collection frees them."""
        if manifest.released:
            return
        key = bucket_publishing.manifest_uri(uri)
        present = self._objects.get(key)
        if present is not None and parsed(present.content).manifest == manifest:
            self._objects.exchange(key, written(manifest.without_policy()), present.etag)

    def take(self, uri: str, manifest: Manifest) -> Manifest | str:
        """Gives a slot a manifest that names the blobs of another result."""
        return self.content_problem(uri, manifest) or self._settled(manifest, replace=False)

    def fetch(self, ref: Ref) -> Path:
        """Returns a verified copy in the local cache."""
        check_uri(ref.uri)
        with self.errors("read", ref.uri):
            download = partial(self._download, ref)
            if not isinstance(ref, CheckpointRef):
                return self._cache.file(ref.digest, download)
            listed = json.loads(self._cache.file(ref.digest, download).read_bytes())
            return self._cache.folder(ref.digest, listed, download)

    def sources(self, table: str, results: Sequence[tuple[str, Manifest]]) -> list[str]:
        """Returns the addresses of a table's blobs."""
        files = [manifest.files[f"{table}.parquet"] for _, manifest in results]
        sizes = in_parallel(lambda file: self._objects.size(blob_uri(file.digest)), files)
        for (uri, _), file, size in zip(results, files, sizes, strict=True):
            if size != file.bytes:
                problem = "missing" if size is None else "damaged"
                address = self.address(f"{uri}/{table}.parquet")
                raise StoreError(f"{problem} file {address}: run its stage again")
        return [self.address(blob_uri(file.digest)) for file in files]

    def runs(self) -> list[str]:
        """Returns the names of all runs of which there is anything, sorted."""
        return runs_among(self._objects.names())

    def slots(self, run: str, table: str | None = None, iteration: int | None = None) -> list[str]:
        """Returns the slots of a run, sorted; only their manifests tell which tables they hold."""
        keys = self._objects.keys(iteration_uri(run, iteration))
        end = f"/{MANIFEST_FILE}"
        return sorted(key.removesuffix(end) for key in keys if key.endswith(end))

    def marks(self, run: str) -> dict[str, str]:
        """Returns the slots of a run, each with the version of its manifest."""
        end = f"/{MANIFEST_FILE}"
        etags = self._objects.etags(run_uri(run))
        return {key.removesuffix(end): etag for key, etag in etags.items() if key.endswith(end)}

    def read_record(self, run: str) -> bytes | None:
        """Returns the record of a run; null without one."""
        present = self._objects.get(record_uri(run))
        return None if present is None else present.content

    def write_record(self, run: str, values: Mapping[str, object]) -> None:
        """Replaces the record of a run; refused once this process lost its hold on the run."""
        held = self._held.get(run)
        if held is not None and held.is_lost:
            raise StoreError(
                f"run {run} was taken over by another process, as this one was not heard of for "
                f"{lease.LEASE_S:.0f} s: leave it to that one, or run the same again later"
            )
        content = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        self._objects.put(record_uri(run), content.encode())

    @contextmanager
    def lock_run(self, run: str) -> Iterator[None]:
        """Holds a run by a lease; see `storage.lease`.

        The lease comes first and the look at the collection after it. A collection does it the
        other way round, so that of two that start at once at least one sees the other.
        """
        refusal = (
            f"run {run} is being trained by another process ({{who}}): wait for it, stop it, or "
            "take another run name"
        )
        with lease.hold(self._objects, lease_uri(run), refusal) as held:
            if not self._is_collecting:
                lease.refuse_while_held(self._objects, COLLECTION_LEASE, self._in_collection)
            self._held[run] = held
            try:
                yield
            finally:
                del self._held[run]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keeps others from holding runs; see `lock_run`."""
        with lease.hold(self._objects, COLLECTION_LEASE, self._in_collection):
            self._is_collecting = True
            try:
                yield
            finally:
                self._is_collecting = False

    @property
    def _in_collection(self) -> str:
        return f"garbage of {self.url} is being removed ({{who}}): try again when that is done"

    def is_locked(self, run: str) -> bool:
        """Says whether a process holds the run; see `lease.is_held` for what cannot be told."""
        return lease.is_held(self._objects, lease_uri(run))

    def watch_lock(self, run: str) -> Callable[[], bool]:
        """Returns what tells whether a process holds the run; see `lease.Watched`."""
        return lease.Watched(self._objects, lease_uri(run)).is_held

    def copy_files(self, uri: str, manifest: Manifest, folder: Path) -> str | None:
        """Downloads the blobs of a result into an empty folder, every byte of them verified."""
        for name, file in manifest.files.items():
            parts = self._objects.stream(blob_uri(file.digest))
            if parts is None:
                return f"missing file {name}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if write_with_digest(parts, folder / name) != file.digest:
                return f"damaged file {name}"
        return None

    def dropped_runs(self) -> list[str]:
        """Returns the names of the runs that were dropped and are still there, sorted."""

        def is_dropped(run: str) -> bool:
            has_record = self._objects.size(record_uri(run)) is not None
            return not has_record and self._objects.size(dropped_record_uri(run)) is not None

        names = self.runs()
        return [run for run, d in zip(names, in_parallel(is_dropped, names), strict=True) if d]

    def mark_incomplete(self, run: str) -> None:
        """Marks a run whose import or removal begins."""
        self._objects.put(incomplete_uri(run), b"")

    def unmark_incomplete(self, run: str) -> None:
        """Takes the mark away."""
        self._objects.delete(incomplete_uri(run))

    def is_incomplete(self, run: str) -> bool:
        """Says whether a run is marked."""
        return self._objects.size(incomplete_uri(run)) is not None

    def drop_record(self, run: str) -> None:
        """Moves the record of a run; killed halfway it leaves the run as it was."""
        self._move(record_uri(run), dropped_record_uri(run))

    def restore_record(self, run: str) -> None:
        """Moves the record of a dropped run back."""
        self._move(dropped_record_uri(run), record_uri(run))

    def garbage(self, kept: Kept) -> Waste:
        """Returns what is in the bucket and not kept, as far as its names are known."""
        return bucket_garbage.find(self._objects, kept)

    def redirect(self, kept: Kept) -> None:
        """Lets the hints to results that are kept lead to places that are kept."""
        bucket_garbage.redirect(
            partial(bucket_publishing.read_hint, self._objects),
            partial(bucket_publishing.point, self._objects),
            kept,
        )

    def remove(self, garbage: Garbage, kept: Kept, removed: Callable[[], None]) -> None:
        """Deletes the objects of garbage that still is some."""
        if garbage.kind not in ("run", "record"):
            bucket_garbage.remove(self._objects, garbage, kept, removed)
            return
        run = garbage.uri.removeprefix("run=")
        with self.lock_run(run):
            bucket_garbage.remove_run(self._objects, garbage, run, removed)

    def _move(self, key: str, to: str) -> None:
        present = self._objects.get(key)
        if present is None:
            raise StoreError(f"cannot move {self.address(key)}: it is not there")
        self._objects.put(to, present.content)
        self._objects.delete(key)

    def _settled(self, manifest: Manifest, *, replace: bool) -> Manifest:
        def is_right(there: Manifest) -> bool:
            return self.content_problem(manifest.slot.uri, there) is None

        return bucket_publishing.settle(self._objects, manifest, is_right, replace=replace)

    def _blob_problem(self, file: StoredFile) -> str | None:
        key = blob_uri(file.digest)
        if self._verify == "sampled" and file.blocks is not None:
            size = self._objects.size(key)
            if size is None:
                return "missing"
            drawn = drawn_blocks(file.blocks).items()
            right = size == file.bytes and all(self._has_block(key, *block) for block in drawn)
            return None if right else "damaged"
        parts = self._objects.stream(key)
        if parts is None:
            return "missing"
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return None if digest.hexdigest() == file.digest else "damaged"

    def _has_block(self, key: str, index: int, digest: str) -> bool:
        block = self._objects.part(key, index * BLOCK_BYTES, BLOCK_BYTES)
        return hashlib.sha256(block).hexdigest() == digest

    def _download(self, ref: Ref, digest: str, path: Path) -> None:
        """Writes a blob into a file; tells the reference that it belongs to if it is not right."""
        address = self.address(ref.uri)
        parts = self._objects.stream(blob_uri(digest))
        if parts is None:
            raise StoreError(f"missing file {address}: run its stage again")
        if write_with_digest(parts, path) != digest:
            raise StoreError(f"damaged file {address}: run its stage again")


def _listed(manifest: Manifest) -> dict[str, str]:
    """Returns the files of a checkpoint: name to digest."""
    return manifest.policy_digests


def _listing(manifest: Manifest) -> dict[str, StoredFile]:
    """Describes the blob by which a reference to a checkpoint finds its files; empty without one.

    Its digest is that of the checkpoint.
    """
    if manifest.policy_version is None or manifest.released:
        return {}
    return {POLICY_FOLDER: described_bytes(canonical_json(_listed(manifest)))}
