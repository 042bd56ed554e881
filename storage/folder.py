"""A store in a folder of a local file system."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.errors import StoreError
from schemas.refs import Ref
from schemas.tables import TABLES
from storage import folder_garbage
from storage.backend import Garbage, Kept, Waste
from storage.digests import file_digest, folder_digest
from storage.files import (
    copy_with_digest,
    disk_errors,
    is_held,
    link_files,
    remove_stale,
    replace_file,
    replace_json,
    staging_folder,
    sync_path,
)
from storage.layout import (
    MANIFEST_FILE,
    POLICY_FOLDER,
    STORE_FORMAT,
    Layout,
    check_run_name,
    incomplete_uri,
    iteration_uri,
)
from storage.manifests import (
    Inspection,
    Manifest,
    content_problem,
    inspect,
    unexpected_file,
    written,
)
from storage.opening import check_format, entries_of, refuse_place
from storage.publishing import candidates, publish, publish_lock, seal, write_index
from storage.verification import Verify

_LOCK_WAIT_S = 0.5
"""Longer than the moment for which a reader of records probes the lock."""


class Folder:
    """Keeps results and run records as `storage.layout` lays them out; see `Backend`."""

    scan_options = None

    def __init__(self, layout: Layout, verify: Verify) -> None:
        self.layout = layout
        self._verify: Verify = verify

    @classmethod
    def open(cls, path: Path, *, create: bool, verify: Verify) -> "Folder":
        """Opens the store in a folder, or makes an empty one; see `Store.open`."""
        layout = Layout(path.absolute())
        with disk_errors("open store", layout.root):
            # Listed before the look at store.json: that one is the first file of a store.
            entries = entries_of(layout.root)
            if not layout.store_file.exists():
                refuse_place(layout.root, entries, create=create)
                layout.root.mkdir(parents=True, exist_ok=True)
                replace_json(layout.store_file, {"format": STORE_FORMAT})
            check_format(layout.store_file.read_bytes(), str(layout.root))
            remove_stale(layout.tmp)
        return cls(layout, verify)

    @property
    def url(self) -> str:
        """Absolute path of the store."""
        return str(self.layout.root)

    def address(self, uri: str) -> str:
        """Returns the path of a `uri`."""
        return str(self.layout.resolve(uri))

    def errors(self, action: str, uri: str) -> AbstractContextManager[None]:
        """Turns errors of the file system into one line."""
        return disk_errors(action, self.layout.resolve(uri))

    def inspect(self, uri: str) -> Inspection:
        """Reads the manifest of a result."""
        return inspect(self.layout.resolve(uri))

    def inspect_all(self, uris: Sequence[str]) -> list[Inspection]:
        """Reads several manifests."""
        return [self.inspect(uri) for uri in uris]

    def content_problem(self, uri: str, manifest: Manifest) -> str | None:
        """Returns what is wrong with the files of a result, or null if they are right."""
        return content_problem(self.layout.resolve(uri), manifest, self._verify)

    def candidates(self, fingerprint: str, slot: str) -> list[str]:
        """Returns the folders besides the slot that may hold a result, the index's hint first."""
        return candidates(self.layout, fingerprint, slot)

    def note(self, fingerprint: str, uri: str) -> None:
        """Notes where a fingerprint is, unless there is a note."""
        if not self.layout.index_file(fingerprint).exists():
            write_index(self.layout, fingerprint, uri)

    def staging(self) -> AbstractContextManager[Path]:
        """Gives an empty folder on the store's own file system."""
        return staging_folder(self.layout.tmp)

    def publish(self, staged: Path, manifest: Manifest, *, replace: bool) -> Manifest:
        """Makes a staging folder the result of a slot by one rename."""
        seal(staged, manifest, sync=list(manifest.files))
        return publish(self.layout, staged, manifest, replace=replace)

    def release(self, uri: str, manifest: Manifest) -> None:
        """Rewrites a result's manifest without the policy, then removes the policy's files."""
        folder = self.layout.resolve(uri)
        if manifest.released and not (folder / POLICY_FOLDER).exists():
            return
        with self.staging() as trash:
            with publish_lock(self.layout):
                if inspect(folder).manifest != manifest:
                    return  # another result has taken the slot meanwhile
                if not manifest.released:
                    replace_file(folder / MANIFEST_FILE, written(manifest.without_policy()))
                with suppress(FileNotFoundError):
                    (folder / POLICY_FOLDER).rename(trash / POLICY_FOLDER)
            sync_path(folder)

    def take(self, uri: str, manifest: Manifest) -> Manifest | str:
        """Gives the files of a result a second name in the manifest's slot."""
        with self.staging() as staged:
            try:
                link_files(self.layout.resolve(uri), staged, list(manifest.files))
            except FileNotFoundError as error:
                return f"missing file {Path(error.filename).name}"
            # After linking: now nobody can exchange the files under their names.
            problem = content_problem(staged, manifest, self._verify)
            if problem is not None:
                return problem
            seal(staged, manifest)
            return publish(self.layout, staged, manifest, replace=False)

    def fetch(self, ref: Ref) -> Path:
        """Returns the file of a table or the folder of a checkpoint, verified."""
        path = self.layout.resolve(ref.uri)
        with disk_errors("read", path):
            if not path.exists():
                raise StoreError(f"missing file {path}: run its stage again")
            if not self._has_bytes(ref, path):
                raise StoreError(self._why_other_bytes(ref, path))
        return path

    def sources(self, table: str, results: Sequence[tuple[str, Manifest]]) -> list[str]:
        """Returns the paths of a table."""
        found = []
        for uri, manifest in results:
            path = self.layout.resolve(uri) / f"{table}.parquet"
            with disk_errors("read", path):
                size = path.stat().st_size if path.exists() else None
            if size != manifest.files[path.name].bytes:
                problem = "missing" if size is None else "damaged"
                raise StoreError(f"{problem} file {path}: run its stage again")
            found.append(str(path))
        return found

    def runs(self) -> list[str]:
        """Returns the names of all runs that have a folder, sorted."""
        return self.layout.run_names()

    def slots(self, run: str, table: str | None = None, iteration: int | None = None) -> list[str]:
        """Returns the slots of a run that have a manifest or a file of a table, sorted.

        A result that lost one of them is damaged, not gone.
        """
        folder = self.layout.resolve(iteration_uri(run, iteration))
        wanted = {f"{name}.parquet" for name in (TABLES if table is None else (table,))}
        found = []
        if folder.exists():
            for path, below, files in os.walk(folder, onerror=_refuse):
                below[:] = [name for name in below if "=" in name]
                if "stage=" in path and not (wanted | {MANIFEST_FILE}).isdisjoint(files):
                    found.append(self.layout.uri(Path(path)))
        return sorted(found)

    def marks(self, run: str) -> dict[str, str]:
        """Returns the slots of a run, each with what the file system tells of its manifest."""
        marks = {}
        for uri in self.slots(run):
            try:
                told = (self.layout.resolve(uri) / MANIFEST_FILE).stat()
            except FileNotFoundError:  # damaged, or replaced in this moment
                continue
            marks[uri] = f"{told.st_ino} {told.st_mtime_ns}"
        return marks

    def read_record(self, run: str) -> bytes | None:
        """Returns the record of a run; null without one."""
        try:
            return self.layout.run_file(run).read_bytes()
        except FileNotFoundError:
            return None

    def write_record(self, run: str, values: Mapping[str, object]) -> None:
        """Replaces the record of a run by one rename."""
        replace_json(self.layout.run_file(run), values)

    @contextmanager
    def lock_run(self, run: str) -> Iterator[None]:
        """Holds a run; the operating system ends the lock with the process."""
        path = self.layout.run_lock(check_run_name(run))
        holder = self.layout.run_lock_holder(run)
        with disk_errors("lock", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=_LOCK_WAIT_S)
            try:
                lock.acquire()
            except Timeout as error:
                raise StoreError(
                    f"run {run} is being trained by another process ({self._holder(run)}): "
                    "wait for it, stop it, or take another run name"
                ) from error
        try:
            with disk_errors("lock", path):
                holder.write_text(f"{os.getpid()}\n")
            yield
        finally:
            with suppress(OSError):  # the file only serves the message above
                holder.unlink(missing_ok=True)
            lock.release()

    def collecting(self) -> AbstractContextManager[None]:
        """Keeps nobody out: who takes a result over links its files before it verifies them."""
        return nullcontext()

    def is_locked(self, run: str) -> bool:
        """Says whether a process holds the run."""
        path = self.layout.run_lock(run)
        return path.exists() and is_held(path)

    def watch_lock(self, run: str) -> Callable[[], bool]:
        """Returns what tells whether a process holds the run; the operating system knows."""
        return lambda: self.is_locked(run)

    def copy_files(self, uri: str, manifest: Manifest, folder: Path) -> str | None:
        """Copies the files of a result into an empty folder, every byte of them verified."""
        source = self.layout.resolve(uri)
        for name, stored in manifest.files.items():
            try:
                copied = copy_with_digest(source / name, folder / name)
            except (FileNotFoundError, NotADirectoryError):
                return f"missing file {name}"
            except OSError as error:
                if error.filename != str(source / name):
                    raise  # it is the copy that cannot be written
                return f"unreadable file {name}: {error.strerror}"
            if copied != stored.digest:
                return f"damaged file {name}"
        return unexpected_file(source, manifest)

    def dropped_runs(self) -> list[str]:
        """Returns the names of the runs that were dropped and are still there, sorted."""
        return [
            run
            for run in self.layout.run_names()
            if self.layout.dropped_run_file(run).exists() and self.read_record(run) is None
        ]

    def mark_incomplete(self, run: str) -> None:
        """Marks a run whose import or removal begins."""
        self.layout.run_folder(run).mkdir(parents=True, exist_ok=True)
        self.layout.resolve(incomplete_uri(run)).touch()

    def unmark_incomplete(self, run: str) -> None:
        """Takes the mark away."""
        self.layout.resolve(incomplete_uri(run)).unlink(missing_ok=True)

    def is_incomplete(self, run: str) -> bool:
        """Says whether a run is marked."""
        return self.layout.resolve(incomplete_uri(run)).exists()

    def drop_record(self, run: str) -> None:
        """Renames the record of a run."""
        self.layout.run_file(run).replace(self.layout.dropped_run_file(run))
        sync_path(self.layout.run_folder(run))

    def restore_record(self, run: str) -> None:
        """Renames the record of a dropped run back."""
        self.layout.dropped_run_file(run).replace(self.layout.run_file(run))
        sync_path(self.layout.run_folder(run))

    def garbage(self, kept: Kept) -> Waste:
        """Returns what is in the store and not kept, as far as its names are known."""
        return Waste(items=folder_garbage.find(self.layout, kept))

    def redirect(self, kept: Kept) -> None:
        """Lets the hints to results that are kept lead to places that are kept."""
        folder_garbage.redirect(self.layout, kept)

    def remove(self, garbage: Garbage, kept: Kept, removed: Callable[[], None]) -> None:
        """Moves files out of their places under the lock that guards them, then deletes them."""
        if garbage.kind == "staging":
            folder_garbage.remove_staging(self.layout, garbage, removed)
        elif garbage.kind in ("run", "record"):
            run = garbage.uri.removeprefix("run=")
            with self.staging() as trash:
                with self.lock_run(run):
                    folder_garbage.take_out_run(self.layout, garbage, run, trash)
                folder_garbage.empty(trash, removed)
        else:
            with self.staging() as trash:
                with publish_lock(self.layout):
                    folder_garbage.take_out(self.layout, garbage, kept, trash)
                folder_garbage.empty(trash, removed)

    def _holder(self, run: str) -> str:
        try:
            return f"pid {int(self.layout.run_lock_holder(run).read_text())}"
        except (OSError, ValueError):  # it is just starting or just ending
            return "pid unknown"

    def _has_bytes(self, ref: Ref, path: Path) -> bool:
        if self._verify == "sampled":
            manifest = inspect(path.parent).manifest
            stored = None if manifest is None else self._stored(ref, path, manifest)
            if manifest is not None and stored is not None and stored.digest == ref.digest:
                return self._problem(path, manifest) is None
        return (folder_digest(path) if path.is_dir() else file_digest(path)) == ref.digest

    def _why_other_bytes(self, ref: Ref, path: Path) -> str:
        manifest = inspect(path.parent).manifest
        if manifest is not None:
            stored = self._stored(ref, path, manifest)
            if stored is not None and stored.digest != ref.digest:
                return f"{path} holds a newer result than the reference names: run the flow again"
            problem = content_problem(path.parent, manifest)
            if problem is not None:
                return f"{problem} in {path.parent}: run its stage again"
        return f"damaged file {path}: run its stage again"

    def _stored(self, ref: Ref, path: Path, manifest: Manifest) -> Ref | None:
        output = manifest.output(self.layout.uri(path.parent))
        return output.checkpoint if path.is_dir() else output.tables.get(ref.name)

    def _problem(self, path: Path, manifest: Manifest) -> str | None:
        """Returns what is wrong with one file or folder of a result."""

        def concerns(name: str) -> bool:
            return name == path.name or name.startswith(f"{path.name}/")

        return content_problem(path.parent, manifest, self._verify, concerns=concerns)


def _refuse(error: OSError) -> None:
    """Stops a walk: what cannot be listed may hold results."""
    raise error
