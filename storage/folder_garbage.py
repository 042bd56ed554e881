"""What no run refers to in a store in a folder: finding it, and taking it out.

Files are moved into a staging folder under the lock that guards their place, and deleted without
it. The manifest of a result is renamed first: who looks for the result finds it whole or not at
all. What a killed removal leaves in place, and in its staging folder, is found as garbage again.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from schemas.tables import TABLES
from storage.backend import Garbage, Kept, Kind
from storage.digests import files_below
from storage.files import is_held, remove_unheld, staging_folders
from storage.layout import (
    MANIFEST_FILE,
    PICTURE_FILE,
    POLICY_FOLDER,
    REPLACED,
    Layout,
    incomplete_uri,
)
from storage.manifests import inspect, parsed
from storage.publishing import publish_lock, read_index, write_index

_SLOTS = ("", "shard=*", "turn=*", "shard=*/turn=*")
_LEAVING = "manifest.json.leaving"
"""Name of the manifest of a result that is being removed."""
_FINGERPRINT = re.compile("[0-9a-f]{64}")


def find(layout: Layout, kept: Kept) -> list[Garbage]:
    """Returns what is in the store and not kept; files whose names are not known are left out."""
    found = [*_hints(layout, kept), *_runs(layout, kept), *_replaced(layout), *_staging(layout)]
    return _with_freed_bytes(layout, found)


def redirect(layout: Layout, kept: Kept) -> None:
    """Lets the hints to results that are kept lead to places that are kept."""
    with publish_lock(layout):
        for fingerprint, places in kept.places.items():
            is_noted = layout.index_file(fingerprint).exists()
            if is_noted and read_index(layout, fingerprint) not in places:
                write_index(layout, fingerprint, places[0])


def take_out(layout: Layout, garbage: Garbage, kept: Kept, trash: Path) -> None:
    """Moves hints or a replaced result into a staging folder; the publish lock must be held."""
    files = [layout.resolve(uri) for uri in garbage.files]
    if garbage.kind == "hints":
        _move([path for path in files if path.stem not in kept.places], trash)
        return
    _move(files, trash)
    folder = layout.resolve(garbage.uri)
    _remove_empty(folder)
    with suppress(OSError):  # other results of the fingerprint are on the shelf
        folder.parent.rmdir()


def take_out_run(layout: Layout, garbage: Garbage, run: str, trash: Path) -> None:
    """Moves what is left of a run into a staging folder; the run must be held by this process."""
    dropped, mark = layout.dropped_run_file(run), layout.resolve(incomplete_uri(run))
    if (garbage.kind == "record") != layout.run_file(run).exists():
        return  # it was trained, dropped or brought back meanwhile
    if garbage.kind == "record":
        _move([dropped, mark], trash)
        return
    # First: from now on nobody brings back what is only a part of the run, and nobody takes what
    # a killed removal leaves for a run that lost its record.
    mark.touch()
    held = [layout.run_lock_holder(run), layout.run_lock(run)]
    files = [layout.resolve(uri) for uri in garbage.files]
    _move([dropped, *(path for path in files if path not in (*held, mark))], trash)
    _move([mark], trash)
    for path in held:
        # Deleted at once: who waits for the lock sees that the file has no name any more, and
        # makes another. One that was only moved would be locked by two processes.
        path.unlink(missing_ok=True)
    _remove_empty(layout.run_folder(run))


def empty(trash: Path, removed: Callable[[], None]) -> None:
    """Deletes the files in a staging folder, and tells of each."""
    for path in list(trash.iterdir()):
        path.unlink()
        removed()


def remove_staging(layout: Layout, garbage: Garbage, removed: Callable[[], None]) -> None:
    """Deletes a staging folder, unless a process holds it by now."""
    if remove_unheld(layout.resolve(garbage.uri)):
        for _ in garbage.files:
            removed()


def _hints(layout: Layout, kept: Kept) -> Iterator[Garbage]:
    hints = [
        path
        for path in sorted(layout.root.glob("index/??/*.json"))
        if _FINGERPRINT.fullmatch(path.stem)
        and path.stem not in kept.places
        and path == layout.index_file(path.stem)
    ]
    if hints:
        yield _garbage(layout, "hints", layout.root / "index", hints)


def _runs(layout: Layout, kept: Kept) -> Iterator[Garbage]:
    for run in layout.run_names():
        folder, dropped = layout.run_folder(run), layout.dropped_run_file(run)
        mark = layout.resolve(incomplete_uri(run))
        if run in kept.runs:
            stale = [path for path in (dropped, mark) if path.exists()]
            if stale:
                yield _garbage(layout, "record", folder, stale)
            continue
        slots = (p for n in _SLOTS for p in folder.glob(f"iteration=*/split=*/stage=*/{n}"))
        beside = (folder / PICTURE_FILE, layout.run_lock_holder(run), layout.run_lock(run))
        files = [
            dropped,
            mark,
            *(f for slot in sorted(slots) for f in _files_of(slot)),
            *beside,
        ]
        files = [path for path in files if path.is_file()]
        if files or not files_below(folder):
            yield _garbage(layout, "run", folder, files)


def _replaced(layout: Layout) -> Iterator[Garbage]:
    for shelf in sorted((layout.root / REPLACED).glob("*/")):
        results = sorted(shelf.glob("*/"))
        for folder in results:
            files = _files_of(folder)
            if files or not files_below(folder):
                yield _garbage(layout, "replaced", folder, files)
        if not any(shelf.iterdir()):
            yield _garbage(layout, "replaced", shelf, [])


def _staging(layout: Layout) -> Iterator[Garbage]:
    for folder in staging_folders(layout.tmp):
        if not is_held(folder):
            files = [folder / name for name in files_below(folder)]
            yield _garbage(layout, "staging", folder, files)


def _files_of(folder: Path) -> list[Path]:
    """Returns the files of a result, the manifest first; without one, those that it could have."""
    manifest = inspect(folder).manifest
    if manifest is None and (folder / _LEAVING).is_file():
        manifest = parsed((folder / _LEAVING).read_bytes()).manifest
    names = [MANIFEST_FILE, _LEAVING]
    if manifest is not None:
        names += manifest.files
    else:
        names += [f"{table}.parquet" for table in TABLES]
        if any((folder / name).is_file() for name in names):
            names += [f"{POLICY_FOLDER}/{name}" for name in files_below(folder / POLICY_FOLDER)]
    return [path for name in names if (path := folder / name).is_file()]


def _garbage(layout: Layout, kind: Kind, place: Path, files: Sequence[Path]) -> Garbage:
    uris = tuple(layout.uri(path) for path in files)
    return Garbage(kind=kind, uri=layout.uri(place), files=uris, bytes=0)


def _with_freed_bytes(layout: Layout, found: Sequence[Garbage]) -> list[Garbage]:
    """Counts a file where its last name goes: one with a name that stays frees nothing."""
    status = {}
    for uri in (uri for item in found for uri in item.files):
        with suppress(FileNotFoundError):
            status[uri] = layout.resolve(uri).lstat()
    going = Counter((s.st_dev, s.st_ino) for s in status.values())
    counted = []
    for item in found:
        freed = 0
        for uri in item.files:
            if uri not in status:
                continue
            inode = status[uri].st_dev, status[uri].st_ino
            if going[inode] == status[uri].st_nlink:
                freed += status[uri].st_size
                going[inode] = 0  # its other names are counted with this one
        counted.append(replace(item, bytes=freed))
    return counted


def _move(files: Sequence[Path], trash: Path) -> None:
    """Moves files into a staging folder.

    The manifest of a result is renamed before its other files go, so that nobody takes it for
    whole, and goes after them: a killed removal leaves it to tell which files are the result's.
    """
    numbers = count(len(list(trash.iterdir())))
    leaving: list[Path] = []
    for path in files:
        with suppress(FileNotFoundError):  # another process was faster
            if path.name in (MANIFEST_FILE, _LEAVING):
                leaving.append(path.rename(path.with_name(_LEAVING)))
            else:
                path.rename(trash / str(next(numbers)))
    for path in leaving:
        with suppress(FileNotFoundError):
            path.rename(trash / str(next(numbers)))


def _remove_empty(folder: Path) -> None:
    """Removes a folder and those below it that hold no file."""
    below = [p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()]
    for path in (*sorted(below, reverse=True), folder):
        with suppress(OSError):  # it holds a file that is not ours
            path.rmdir()
