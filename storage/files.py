"""Writing so that a reader sees all or nothing, also after a crash."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from schemas.errors import StoreError
from storage.digests import files_below

_STALE_S = 24 * 3600
_CHUNK_BYTES = 1 << 20


@contextmanager
def disk_errors(action: str, path: Path) -> Iterator[None]:
    """Turns errors of the file system into one line for the user.

    Raises:
        StoreError: In place of any `OSError`: action, path and the system's words.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {action} {path}: {error.strerror or error}") from error


@contextmanager
def staging_folder(tmp: Path, prefix: str = "") -> Iterator[Path]:
    """Makes a folder to write in; what is left of it at the end is removed.

    The folder is held locked meanwhile, so that nobody takes it for one of a killed process.

    Args:
        tmp: Where to make it.
        prefix: Of its name; the rest are 32 hexadecimal digits.
    """
    folder, held = _held_folder(tmp, prefix)
    try:
        yield folder
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def staging_folders(tmp: Path, prefix: str = "") -> list[Path]:
    """Returns the folders that `staging_folder` made in `tmp` and that are there, sorted."""
    ours = re.compile(re.escape(prefix) + "[0-9a-f]{32}")
    return sorted(p for p in tmp.glob("*") if ours.fullmatch(p.name) and p.is_dir())


def remove_stale(tmp: Path) -> None:
    """Removes what killed processes left in `tmp` more than a day ago, as far as it can.

    The age is only a first sieve, for clocks are set: what a process still holds is kept.
    """
    for path in tmp.glob("*"):
        try:
            is_old = path.is_dir() and time.time() - path.stat().st_mtime > _STALE_S
        except FileNotFoundError:  # another process was faster
            continue
        if is_old:
            remove_unheld(path)


def is_held(path: Path) -> bool:
    """Says whether a process holds a staging folder or a lock file.

    It takes no right but to read; where that is missing the answer is true.
    """
    descriptor = _free_descriptor(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def remove_unheld(folder: Path) -> bool:
    """Removes a staging folder unless a process holds it, and returns whether it did."""
    descriptor = _free_descriptor(folder)
    if descriptor is None:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
    return True


def _held_folder(tmp: Path, prefix: str) -> tuple[Path, int]:
    """Makes a folder, and returns it with the descriptor that holds its lock."""
    while True:
        folder = tmp / f"{prefix}{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(held, fcntl.LOCK_EX)
        if folder.exists():
            return folder, held
        os.close(held)  # taken for one of a killed process before it was locked


def _free_descriptor(path: Path) -> int | None:
    """Returns a descriptor that holds the lock of a path; null if another process does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # gone, or not ours to remove
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes a JSON file in one atomic step, making its folder where needed.

    Args:
        path: File to make or to replace.
        value: JSON value.
        durable: Whether to wait until the disk has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    replace_file(path, content, durable=durable)


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file in one atomic step; its folder is there.

    Args:
        path: File to make or to replace.
        content: Its content.
        durable: Whether to wait until the disk has it.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        if durable:
            write_durably(temporary, content)
        else:
            temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Waits until the disk has a file's content or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder_durably(folder: Path) -> None:
    """Makes a folder with its parents, so that a crash does not lose their entries."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_path(path.parent)


def link_files(source: Path, target: Path, names: list[str]) -> None:
    """Gives files a second name in another folder; copies where the file system cannot link."""
    for name in names:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, copy)
        except FileNotFoundError:
            raise
        except OSError:  # no hard links here, or too many of them
            shutil.copyfile(source / name, copy)
            sync_path(copy)


def copy_with_digest(source: Path, target: Path) -> str:
    """Copies a file into a new one, making its folder; returns the digest of what was copied.

    Raises:
        OSError: If the file system refuses: `FileNotFoundError` only if there is no source, and
            with the name of the source wherever it is that which cannot be read.
    """
    with source.open("rb") as reader:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_with_digest(_chunks(reader, source), target)


def _chunks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Reads a file in chunks; an error names it, as the system does only when it opens one."""
    try:
        yield from iter(partial(file.read, _CHUNK_BYTES), b"")
    except OSError as error:
        error.filename = str(path)
        raise


def write_with_digest(parts: Iterable[bytes | memoryview], path: Path) -> str:
    """Writes a file in parts; returns the digest of what was written."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def are_same_files(folder: Path, other: Path, *, besides: str) -> bool:
    """Whether two folders hold the same files by inode, `besides` left out."""
    names = [n for n in files_below(folder) if n != besides]
    if names != [n for n in files_below(other) if n != besides]:
        return False
    return all((folder / n).samefile(other / n) for n in names)
