"""Rows as the files of other projects have them, read by the real parsers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.foreign import ImportedTables, format_of, read_trajectories


@dataclass(frozen=True)
class RowOfFile:
    text: str
    fields: Mapping[str, Any] | None
    problem: str | None = None


def rows_of(*fields: Mapping[str, Any] | str) -> list[RowOfFile]:
    """Returns rows of fields; a text stands for a line that is no JSON."""
    return [
        RowOfFile(row, None, "not JSON")
        if isinstance(row, str)
        else RowOfFile(json.dumps(row, default=str), row)
        for row in fields
    ]


def imported(*fields: Mapping[str, Any] | str, format_name: str | None = None) -> ImportedTables:
    rows = rows_of(*fields)
    return read_trajectories(
        rows, format_name or format_of(rows), source="file", on_row=lambda row: None
    )


def trajectory(**changes: Any) -> dict[str, Any]:
    """Returns a row of the format `turns`; a change to `...` leaves a field out."""
    row = {
        "problem": "What is 6 * 7?",
        "gold": "42",
        "turns": [{"text": "Try.", "code": "print(6 * 7)", "output": "42"}, {"text": "So 42."}],
        "prediction": "42",
    } | changes
    return {name: value for name, value in row.items() if value is not ...}


def reasons(tables: ImportedTables) -> list[tuple[int, str]]:
    return tables.rejected.select("row", "reason").rows()


def turns_of_first(tables: ImportedTables) -> Sequence[tuple[str | None, str | None]]:
    """Returns code and output of the turns of the first trajectory."""
    first = tables.labels.head(1).select("task_id", "sample_index")
    turns = tables.turns.join(first, on=["task_id", "sample_index"])
    key = ["task_id", "sample_index", "turn_index"]
    shown = tables.executions.select(*key, "stdout")
    return turns.join(shown, on=key, how="left").sort(key).select("code", "stdout").rows()
