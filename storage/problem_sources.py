"""Raw rows of problem files: JSONL, Parquet, and Hugging Face dataset folders.

Nothing is judged here beyond whether a line is a JSON object; see `storage.problems`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ProblemFileError

_JSON_LINES = (".jsonl", ".ndjson")
_KNOWN_TYPES = (*_JSON_LINES, ".parquet", ".arrow")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_NO_TEXT = {
    b"\xff\xfe": "UTF-16 text: write it as UTF-8",
    b"\xfe\xff": "UTF-16 text: write it as UTF-8",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"PAR1": "Parquet: name it so",
}
"""First bytes of files that hold no lines of JSON, to what they are."""
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the file has it."""

    text: str
    """The row as text, to show a person which one it is."""
    fields: dict[str, Any] | None
    """Field name to value; null if the row has none."""
    problem: str | None = None
    """Why it has none; null if it has."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files that make one problem set."""

    name: str
    """Name for the `source` column: the file's stem, or the folder's name and split."""
    files: list[Path]
    """In reading order."""

    def rows(self) -> Iterator[RawRow]:
        """Yields the rows of all files in order; an empty line of JSONL is none.

        Raises:
            ProblemFileError: If a file cannot be read as what its name says.
        """
        for file in self.files:
            yield from _json_rows(file) if file.suffix in _JSON_LINES else _arrow_rows(file)


def find_source(path: Path) -> Source:
    """Returns the files behind a path.

    A folder with several splits is refused, because training on held-out problems would go
    unnoticed; `folder/train` names one, whether that is a subfolder or `train-*.parquet`.

    Raises:
        ProblemFileError: If there is nothing, or nothing that can be read, or several splits.
    """
    if path.is_dir():
        splits = _splits(path)
        if len(splits) > 1:
            names = ", ".join(str(split) for split in splits)
            raise ProblemFileError(
                f"{path} holds several splits ({names}): name one, as in {path / 'train'}"
            )
        is_split = path.name in _SPLITS
        name = f"{path.parent.name}-{path.name}" if is_split else path.name
        return Source(name, next(iter(splits.values())))
    if not path.exists():
        splits = _splits(path.parent) if path.parent.is_dir() and path.name in _SPLITS else {}
        if path.name in splits:
            return Source(f"{path.parent.name}-{path.name}", splits[path.name])
        raise ProblemFileError(f"problem file {path} does not exist")
    if path.suffix not in _KNOWN_TYPES:
        raise ProblemFileError(
            f"problem file {path} has an unknown type: take .jsonl, .parquet or a Hugging Face "
            "dataset folder"
        )
    return Source(path.stem, [path])


def _splits(folder: Path) -> dict[str | None, list[Path]]:
    """Returns split name to files; null for files whose path names no split."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in _KNOWN_TYPES]
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for file in files:
        if _is_part_of_set(file):
            splits[_split_of(file.relative_to(folder))].append(file)
    if not splits:
        raise ProblemFileError(f"{folder} holds no .jsonl, .parquet or .arrow files")
    return dict(splits)


def _is_part_of_set(file: Path) -> bool:
    """Whether a file belongs to the set: `datasets` keeps caches beside a saved set's files."""
    state = file.parent / "state.json"
    if file.suffix != ".arrow" or not state.exists():
        return not file.name.startswith((".", "cache-"))
    try:
        listed = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProblemFileError(f"{state} does not list the files of its dataset") from error
    return file.name in listed


def _split_of(relative: Path) -> str | None:
    names = [*relative.parent.parts, _SHARD.sub("", relative.stem)]
    return next((name for name in names if name in _SPLITS), None)


def _json_rows(file: Path) -> Iterator[RawRow]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines):
                if number == 0:
                    _refuse_other_content(file, line)
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                if content.strip():
                    yield _json_row(content)
    except OSError as error:
        raise ProblemFileError(f"cannot read {file}: {error.strerror}") from error


def _refuse_other_content(file: Path, line: bytes) -> None:
    for start, told in _NO_TEXT.items():
        if line.startswith(start):
            raise ProblemFileError(f"{file} is named as JSON lines and is {told}")


def _json_row(line: bytes) -> RawRow:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        return RawRow(line.decode(errors="replace").strip(), None, "not UTF-8")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return RawRow(text, None, "not JSON")
    if not isinstance(value, dict):
        return RawRow(text, None, "not a JSON object")
    return RawRow(text, value)


def _arrow_rows(file: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = (
            pq.ParquetFile(file).iter_batches()
            if file.suffix == ".parquet"
            else pa.ipc.open_stream(pa.memory_map(str(file)))
        )
        for batch in batches:
            for fields in batch.to_pylist():
                yield RawRow(json.dumps(fields, ensure_ascii=False, default=str), fields)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ProblemFileError(f"cannot read {file} as {file.suffix[1:]}: {reason}") from error


def field_names(source: Source) -> list[str]:
    """Returns the names of the fields of the first row that has any; none where no row has.

    Raises:
        ProblemFileError: As `Source.rows`.
    """
    return next((list(row.fields) for row in source.rows() if row.fields), [])
