"""Problem sets of the user: rows that can be used, and rows that cannot, with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl

from schemas.errors import ProblemFileError
from schemas.tables import Problems
from schemas.texts import as_text
from storage.problem_sources import RawRow, find_source

_ANSWER_MARK = "####"
"""GSM8K writes the solution, then this mark, then the answer."""
_SHOWN_CHARS = 80
_SHOWN_REASONS = 3
_MISSING = object()


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """A problem set as read."""

    problems: dy.DataFrame[Problems]
    """Rows that can be used, in the order of the file."""
    rejected: pl.DataFrame
    """`row` (Int64, from 1), `reason` (String), `text` (String, its start) of the others."""


class _Rejected(Exception):
    """A row that cannot be used; the message is the reason."""


@dataclass(slots=True)
class _Fields:
    """Dotted names of the fields to read."""

    problem: str
    answer: str
    identifier: str | None


@dataclass(slots=True)
class _Seen:
    """What makes a row a duplicate."""

    ids: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)


def load_problems(
    path: str | Path, *, problem_field: str, answer_field: str, id_field: str | None
) -> LoadedProblems:
    """Loads a problem set from JSONL, Parquet or a Hugging Face dataset folder.

    A field name may be dotted to reach into structures and lists: `reward_model.ground_truth`,
    `prompt.0.content`. Of an answer with `####`, the part after the last mark is taken.
    `source` is the stem of the file, `level` comes from a field `level` that is an integer.

    Args:
        path: File or folder; `folder/train` names one split of a folder with several.
        problem_field: Field of the problem's text.
        answer_field: Field of the gold answer; numbers are turned into text.
        id_field: Field of the identifier; a row without one is named by stem and row.

    Raises:
        ProblemFileError: If the path is missing, empty, of an unknown type or unreadable, or
            if no row of it can be used.
    """
    source = find_source(Path(path))
    fields = _Fields(problem_field, answer_field, id_field)
    seen = _Seen()
    good: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row, raw in enumerate(source.rows(), start=1):
        try:
            good.append(_problem(raw, row, source.name, fields, seen))
        except _Rejected as reason:
            start = raw.text[:_SHOWN_CHARS].encode("utf-8", "replace").decode()
            rejected.append({"row": row, "reason": str(reason), "text": start})
    if not good:
        raise ProblemFileError(_nothing_usable(Path(path), rejected))
    schema = {"row": pl.Int64, "reason": pl.String, "text": pl.String}
    return LoadedProblems(
        problems=Problems.validate(pl.DataFrame(good, schema=pl.Schema(Problems))),
        rejected=pl.DataFrame(rejected, schema=schema),
    )


def _nothing_usable(path: Path, rejected: list[dict[str, Any]]) -> str:
    if not rejected:
        return f"problem file {path} is empty"
    first = "; ".join(
        f"row {r['row']}: {r['reason']} in {r['text']}" for r in rejected[:_SHOWN_REASONS]
    )
    return f"no usable row in {path} ({len(rejected)} rejected): {first}"


def _problem(raw: RawRow, row: int, source: str, fields: _Fields, seen: _Seen) -> dict[str, Any]:
    if raw.fields is None:
        raise _Rejected(raw.problem or "no fields")
    problem = _required_text(raw.fields, fields.problem, "problem", numbers=False)
    answer = _required_text(raw.fields, fields.answer, "answer", numbers=True)
    answer = answer.rpartition(_ANSWER_MARK)[2].strip()
    if not answer:
        raise _Rejected("empty answer")
    task_id = _task_id(raw.fields, fields.identifier) or f"{source}-{row:05d}"
    if task_id in seen.ids:
        raise _Rejected("duplicate problem id")
    if problem in seen.problems:
        raise _Rejected("duplicate problem text")
    seen.ids.add(task_id)
    seen.problems.add(problem)
    return {
        "task_id": task_id,
        "problem": problem,
        "answer": answer,
        "source": source,
        "level": _level(raw.fields),
    }


def _required_text(fields: Mapping[str, Any], name: str, what: str, *, numbers: bool) -> str:
    value = _value(fields, name)
    if value is _MISSING:
        raise _Rejected(f"field {name} missing")
    text = "" if value is None else as_text(value, numbers=numbers)
    if text is None:
        raise _Rejected(f"{what} is not text")
    if not text.strip():
        raise _Rejected(f"empty {what}")
    return text.strip()


def _task_id(fields: Mapping[str, Any], name: str | None) -> str | None:
    value = _MISSING if name is None else _value(fields, name)
    if value is _MISSING or value is None:
        return None
    text = as_text(value, numbers=True)
    if text is None:
        raise _Rejected("problem id is not text")
    return text.strip()


def _value(fields: Mapping[str, Any], name: str) -> Any:
    """Returns the value behind a dotted name; a name with dots in it goes first."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _level(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("level")
    is_int32 = isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31
    return value if is_int32 else None
