"""Rows of any known format, read one by one: groups, samples, duplicates and rejected rows.

Rows that ask the same problem, by its text, are one group. Its samples are counted in the order
of the file. Equal samples are kept, as a policy may well repeat itself; only a row that repeats
another one in all its fields, an identifier of its own among them, is a duplicate.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from schemas.errors import TrajectoryFileError
from stages.foreign import trl, turns, verifiers, verl
from stages.foreign.frames import Group, ImportedTables, Rejected, Sample, make_tables
from stages.foreign.record import (
    Fields,
    ForeignTrajectory,
    RejectedRow,
    Row,
    require_content,
)

_LOOKED_AT = 100
"""Rows from which the format is told."""
_SHOWN_CHARS = 80
_SHOWN_REASONS = 3


class Format(Protocol):
    """What a module of a format has."""

    def is_row(self, fields: Fields) -> bool:
        """Says whether a row looks like this format."""

    def parse_row(self, fields: Fields) -> ForeignTrajectory:
        """Returns the trajectory of a row, or raises `RejectedRow`."""


FORMATS: dict[str, Format] = {"turns": turns, "verl": verl, "trl": trl, "verifiers": verifiers}
"""Every format by name, in the order in which they are tried."""


@dataclass(slots=True)
class _Seen:
    """What the rows so far have in common."""

    groups: dict[str, Group] = field(default_factory=dict)
    """By the text of the problem."""
    task_ids: set[str] = field(default_factory=set)
    rows: dict[bytes, int] = field(default_factory=dict)
    """Digest of a row with an identifier to its number."""


def format_of(rows: Iterable[Row]) -> str:
    """Returns the name of the format that the first rows have.

    Raises:
        TrajectoryFileError: If they have none that is known, naming their fields.
    """
    fields: Fields | None = None
    problem = "there is no row"
    for row in itertools.islice(rows, _LOOKED_AT):
        for name, known in FORMATS.items():
            if row.fields is not None and known.is_row(row.fields):
                return name
        fields = fields or row.fields
        problem = f"rows are {row.problem}"
    if fields is None:
        raise TrajectoryFileError(f"no row has fields: {problem}")
    told = f"a row has {', '.join(map(str, fields))}"
    raise TrajectoryFileError(
        f"the format is not known, {told}: say it with --format, one of {', '.join(FORMATS)}"
    )


def read_trajectories(
    rows: Iterable[Row], format_name: str, *, source: str, on_row: Callable[[int], None]
) -> ImportedTables:
    """Returns the tables of a rollout that somebody else made.

    Args:
        rows: Rows of a file, in its order.
        format_name: One of `FORMATS`.
        source: Name for the `source` column, and for tasks that have no name.
        on_row: Told the number of every row, from 1.

    Raises:
        TrajectoryFileError: If no row can be used, with the first reasons.
    """
    known, seen = FORMATS[format_name], _Seen()
    rejected: list[Rejected] = []
    for number, row in enumerate(rows, start=1):
        on_row(number)
        try:
            _add(row, number, known, source, seen)
        except RejectedRow as reason:
            start = row.text[:_SHOWN_CHARS].encode("utf-8", "replace").decode()
            rejected.append(Rejected(row=number, reason=str(reason), text=start))
    if not seen.groups:
        raise TrajectoryFileError(_nothing_usable(format_name, rejected))
    return make_tables(list(seen.groups.values()), rejected, source=source)


def _add(row: Row, number: int, known: Format, source: str, seen: _Seen) -> None:
    """Adds a row to its group.

    Raises:
        RejectedRow: If it cannot be used.
    """
    if row.fields is None:
        raise RejectedRow(row.problem or "no fields")
    trajectory = known.parse_row(row.fields)
    require_content(trajectory.turns)
    if trajectory.row_id is not None:
        digest = _digest(row.fields)
        if digest in seen.rows:
            raise RejectedRow(f"duplicate of row {seen.rows[digest]}")
        seen.rows[digest] = number
    group = seen.groups.get(trajectory.problem)
    if group is None:
        group = Group(
            task_id=_task_id(trajectory, number, source, seen.task_ids),
            problem=trajectory.problem,
            gold=trajectory.gold,
            row=number,
        )
        seen.groups[trajectory.problem] = group
    elif group.gold != trajectory.gold:
        raise RejectedRow(f"another gold answer than row {group.row} of the same problem")
    group.samples.append(Sample(row=number, trajectory=trajectory))


def _task_id(trajectory: ForeignTrajectory, number: int, source: str, taken: set[str]) -> str:
    """Returns the name of a new group; one that another problem has already is not taken."""
    name = trajectory.task
    if name is None or name in taken:
        name = f"{source}-{number:05d}"
        while name in taken:
            name += "+"
    taken.add(name)
    return name


def _digest(fields: Fields) -> bytes:
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()


def _nothing_usable(format_name: str, rejected: list[Rejected]) -> str:
    if not rejected:
        return "there is no row"
    first = "; ".join(f"row {r.row}: {r.reason} in {r.text}" for r in rejected[:_SHOWN_REASONS])
    return f"no row can be used as {format_name} ({len(rejected)} rejected): {first}"
