"""The narrow waist of execution: a frame of snippets in, a frame of outcomes out."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import polars as pl

from schemas.categories import ExecutionStatus
from schemas.tables import TURN_KEY

SNIPPET_SCHEMA = pl.Schema(
    {
        "task_id": pl.String(),
        "sample_index": pl.Int32(),
        "turn_index": pl.Int32(),
        "code": pl.String(),
        "earlier": pl.List(pl.String()),
    }
)
"""Columns of an executor's input: the turn's key, its code, and the code of earlier turns whose
state it finds, in their order; never null."""

OUTCOME_SCHEMA = pl.Schema(
    {
        "status": pl.Enum([status.value for status in ExecutionStatus]),
        "stdout": pl.String(),
        "stderr": pl.String(),
        "exit_code": pl.Int32(),
        "wall_s": pl.Float64(),
        "cpu_s": pl.Float64(),
    }
)
"""Columns that an executor puts beside the turn's key; meanings in `schemas.tables`."""


class Executor(Protocol):
    """Runs snippets of Python and says what each of them did.

    An executor may be called from several threads at once.
    """

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        """Runs every snippet on its own.

        Args:
            snippets: Columns as in `SNIPPET_SCHEMA`.

        Returns:
            One row a snippet in the order given: the turn's key, then `OUTCOME_SCHEMA`.

        Raises:
            schemas.errors.ExecutorError: If nothing can be executed at all. What one snippet
                does, or the machine does to it, is a status and no error.
        """
        ...


class Outcome(NamedTuple):
    """What one snippet did; the fields are those of `OUTCOME_SCHEMA`."""

    status: str
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    wall_s: float | None = None
    cpu_s: float | None = None


_MOST_CODE_CHARS = 1 << 20


def why_refused(code: str) -> str | None:
    """Returns why code cannot be handed to an interpreter at all, or None if it can."""
    if "\0" in code:
        return "the code holds a null character"
    if len(code) > _MOST_CODE_CHARS:
        return f"the code has more than {_MOST_CODE_CHARS} characters"
    try:
        code.encode("utf-8")
    except UnicodeEncodeError:
        return "the code holds a lone surrogate"
    return None


def refusal_of(cells: Sequence[str]) -> Outcome | None:
    """Returns the outcome of code that no interpreter takes; None if it can be run.

    Args:
        cells: As `cells_of` returns them.
    """
    reason = why_refused(cells[-1])
    return None if reason is None else Outcome(ExecutionStatus.REFUSED, stderr=reason)


def cells_of(snippets: pl.DataFrame) -> list[list[str]]:
    """Returns the code of each snippet, behind the earlier code whose state it finds.

    Earlier code that was refused left no state.
    """
    return [
        [*(cell for cell in earlier if why_refused(cell) is None), code]
        for earlier, code in snippets.select("earlier", "code").iter_rows()
    ]


def outcome_frame(snippets: pl.DataFrame, outcomes: Sequence[Outcome]) -> pl.DataFrame:
    """Puts the outcomes, in the order of the snippets, beside the keys of their turns."""
    columns = pl.DataFrame(list(outcomes), schema=OUTCOME_SCHEMA, orient="row")
    return snippets.select(TURN_KEY).hstack(columns)
