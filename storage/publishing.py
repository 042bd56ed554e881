"""How a finished result takes its slot: one atomic rename, and nothing is lost by it.

Renames and index files are changed under one short lock a store, so that two processes with
the same slot end with one right result. A process killed between two of the steps leaves an
empty slot or a wrong index entry at worst; both are only hints to `Store.find`, which verifies.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.errors import StoreError
from storage.files import (
    are_same_files,
    make_folder_durably,
    replace_json,
    staging_folder,
    sync_path,
    write_durably,
)
from storage.layout import MANIFEST_FILE, Layout
from storage.manifests import Manifest, content_problem, inspect, written

_LOCK_WAIT_S = 60.0
_WITHOUT_MANIFEST = "unknown"
"""Stands for the fingerprint of a replaced result whose manifest cannot be read."""


def seal(folder: Path, manifest: Manifest, *, sync: Sequence[str] = ()) -> None:
    """Writes the manifest, the last file of a result, once the disk has all others.

    Args:
        folder: Folder of the result.
        manifest: What to write.
        sync: Relative names of the files that the disk may not have yet.
    """
    for name in sync:
        sync_path(folder / name)
    write_durably(folder / MANIFEST_FILE, written(manifest))
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_path(path)


def publish(layout: Layout, staged: Path, manifest: Manifest, *, replace: bool) -> Manifest:
    """Makes a finished folder the result of its slot.

    Args:
        layout: Paths of the store.
        staged: Folder on the store's file system, complete with its manifest.
        manifest: Manifest of `staged`.
        replace: Whether to push out a right result with the same fingerprint as well;
            otherwise that one stays, for another process was faster.

    Returns:
        Manifest of the result that is in the slot now.
    """
    uri = manifest.slot.uri
    target = layout.resolve(uri)
    fingerprint = manifest.fingerprint_digest
    with publish_lock(layout):
        present = inspect(target).manifest
        if (
            not replace
            and present is not None
            and present.fingerprint_digest == fingerprint
            and content_problem(target, present) is None
        ):
            write_index(layout, fingerprint, uri)
            return present
        make_folder_durably(target.parent)
        if target.exists():
            _exchange(layout, staged, target, present)
        else:
            staged.rename(target)
        sync_path(target.parent)
        write_index(layout, fingerprint, uri)
    return manifest


def candidates(layout: Layout, fingerprint: str, slot: str) -> list[str]:
    """Returns the folders besides the slot that may hold a result, the index's hint first."""
    hinted = read_index(layout, fingerprint)
    shelf = layout.replaced(fingerprint)
    replaced = [layout.uri(folder) for folder in sorted(shelf.glob("*"), reverse=True)]
    uris = [hinted, *replaced] if hinted is not None else replaced
    return [uri for uri in dict.fromkeys(uris) if uri != slot]


def read_index(layout: Layout, fingerprint: str) -> str | None:
    """Returns where a fingerprint was last seen; null without a usable hint."""
    try:
        hint = json.loads(layout.index_file(fingerprint).read_bytes())
        uri = hint["uri"]
        layout.resolve(uri)
    except (OSError, ValueError, KeyError, TypeError, StoreError):
        return None  # a hint that cannot be used is as good as none
    return str(uri)


def write_index(layout: Layout, fingerprint: str, uri: str) -> None:
    """Notes where the result of a fingerprint is, unless that is noted already."""
    if read_index(layout, fingerprint) != uri:
        replace_json(layout.index_file(fingerprint), {"uri": uri}, durable=False)


def _exchange(layout: Layout, staged: Path, target: Path, present: Manifest | None) -> None:
    """Moves what is in a slot to the replaced results, and `staged` into the slot.

    All that takes time comes before and after the two renames: a process killed between them
    leaves the slot empty.
    """
    fingerprint = _WITHOUT_MANIFEST if present is None else present.fingerprint_digest
    shelf = layout.replaced(fingerprint)
    make_folder_durably(shelf)
    twins = (p for p in shelf.glob("*") if are_same_files(p, target, besides=MANIFEST_FILE))
    twin = next(twins, None)
    kept = twin or next(p for n in count() if not (p := shelf / f"{n:04d}").exists())
    with staging_folder(layout.tmp) as bin_folder:
        # With a twin, the slot only gave the same bytes a second name, which may go.
        target.rename(bin_folder / "second_name" if twin else kept)
        staged.rename(target)
    sync_path(shelf)
    if present is not None and read_index(layout, fingerprint) == layout.uri(target):
        write_index(layout, fingerprint, layout.uri(kept))


@contextmanager
def publish_lock(layout: Layout) -> Iterator[None]:
    """Holds the lock under which results change their places.

    Raises:
        StoreError: If another process holds it for too long.
    """
    lock = FileLock(layout.publish_lock, timeout=_LOCK_WAIT_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"store {layout.root} has been locked by another process for {_LOCK_WAIT_S:.0f} s"
        ) from error
    try:
        yield
    finally:
        lock.release()
