"""Local copies of what lies in buckets, by digest.

A copy is verified whenever it is used and fetched again where it is damaged, so the folder may be
deleted at any time, and several processes and stores may share it.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from storage.digests import file_digest, folder_digest
from storage.files import link_files, remove_stale, staging_folder

Download = Callable[[str, Path], None]
"""Writes the bytes of a digest into a new file, and raises if they are not right."""


class Cache:
    """A folder of verified files and folders."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        remove_stale(self._tmp)

    @classmethod
    def of_user(cls) -> "Cache":
        """Returns the cache in `TURNLEDGER_CACHE`, or in the user's own cache folder."""
        named = os.environ.get("TURNLEDGER_CACHE")
        return cls(Path(named) if named else Path.home() / ".cache" / "turnledger")

    def staging(self) -> AbstractContextManager[Path]:
        """Gives an empty folder to write in; what is left of it is removed."""
        return staging_folder(self._tmp)

    def file(self, digest: str, download: Download) -> Path:
        """Returns a file with the bytes of a digest.

        Raises:
            OSError: If the file system refuses.
        """
        path = self._root / "blobs" / digest[:2] / digest
        if path.is_file() and file_digest(path) == digest:
            return path
        with self.staging() as staged:
            download(digest, staged / digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            (staged / digest).replace(path)
        return path

    def folder(self, digest: str, files: Mapping[str, str], download: Download) -> Path:
        """Returns a folder with the files of a digest.

        Args:
            digest: Digest of the folder.
            files: Relative name to digest of each file.
            download: Fetches the files that the cache lacks.

        Raises:
            OSError: If the file system refuses.
        """
        path = self._root / "folders" / digest
        if path.is_dir():
            if folder_digest(path) == digest:
                return path
            self._discard(path)
        with self.staging() as staged:
            whole = staged / digest
            whole.mkdir()
            for name, of_file in files.items():
                blob = self.file(of_file, download)
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                link_files(blob.parent, whole, [blob.name])
                (whole / blob.name).rename(whole / name)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                whole.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
                # Another process was faster; what it made is verified like any other copy.
                return self.folder(digest, files, download)
        return path

    @property
    def _tmp(self) -> Path:
        return self._root / "tmp"

    def _discard(self, path: Path) -> None:
        """Moves a damaged folder out of the way, unless another process already has."""
        away = self._tmp / uuid.uuid4().hex
        away.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.rename(away)
        shutil.rmtree(away, ignore_errors=True)
