"""SHA-256 digests of files, folders and JSON values; all are hexadecimal."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    """Returns the digest of a file's content, read in chunks.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def folder_digest(path: Path) -> str:
    """Returns the digest of a folder: of its files' relative names and contents.

    The order in which the file system lists the files does not matter; empty folders do not
    count.

    Raises:
        OSError: If the folder does not exist or one of its files cannot be read.
    """
    if not path.is_dir():
        raise FileNotFoundError(2, "No such folder", str(path))
    return digest_of_files({name: file_digest(path / name) for name in files_below(path)})


def digest_of_files(digests: Mapping[str, str]) -> str:
    """Returns the digest of a folder whose files (relative name to digest) are known.

    It is that of the bytes which `canonical_json` makes of them.
    """
    return json_digest(digests)


def files_below(folder: Path) -> list[str]:
    """Returns the relative names of all files below a folder, with `/` between the parts."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def json_digest(value: Any) -> str:
    """Returns the digest of a JSON value, whatever the order of its keys; fails as its bytes do."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Returns a JSON value as bytes, the same ones whatever the order of its keys.

    Raises:
        TypeError: If the value is no JSON.
        ValueError: If it holds a number that JSON has not, such as NaN.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8", "surrogatepass")
