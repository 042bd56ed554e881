"""Two runs compared turn by turn, read lazily from a store.

What a comparison says is computed in `stages.comparison`; here its tables are found and opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from flows.catalogue import usual_split
from schemas.errors import StoreError
from schemas.tables import TABLES, TRAJECTORY_KEY
from stages.comparison import (
    KEY,
    Side,
    compare,
    compared_columns,
    count_changed_columns,
    largest_changes,
    outcome_name,
    summarise_changes,
    trajectory_outcomes,
)
from storage import MissingTableError, open_table, scan_errors, table_iterations
from storage.tables import known_table

VALUES = {
    "turn_rewards": "total",
    "shaped_rewards": "shaped_total",
    "advantages": "advantage",
    "evaluations": "correct",
}
"""The column that a comparison of a table is about; the others are compared as they are."""

COMPARABLE = tuple(
    name for name, table in TABLES.items() if {*TRAJECTORY_KEY} <= {*table.schema.primary_key()}
)
"""Tables whose rows are turns or samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """How a table of run `b` differs from that of run `a`."""

    a: str
    """Run before."""
    b: str
    """Run after."""
    table: str
    column: str | None
    """Column compared as a number; null if all columns were compared as they are."""
    iterations: Sequence[int]
    """Iterations compared, ascending."""
    only_a: Sequence[int]
    """Iterations that only run `a` has; none where one iteration was asked for."""
    only_b: Sequence[int]
    rows: pl.DataFrame
    """One row a turn (a sample in evaluations); see `stages.comparison.compare`."""
    summary: pl.DataFrame
    """All turns, by turn index and by outcome; see `stages.comparison.summarise_changes`."""
    columns: pl.DataFrame
    """`column` and `changed`: rows in which the column differs, most changes first."""
    largest: pl.DataFrame
    """Rows with the largest changes first, with `text_a` and `text_b`: what the policy wrote;
    null where the run has no such turn. A sample has the text of its last turn."""


def diff(
    store: str | Path,
    a: str,
    b: str,
    *,
    table: str = "advantages",
    column: str | None = None,
    iteration: int | None = None,
    split: str | None = None,
    largest: int = 10,
) -> Diff:
    """Compares a table of two runs of a store, turn by turn.

    Example:
        >>> changes = diff("turnledger-store", "small", "gamma-95")
        >>> changes.rows.filter("flipped")

    Args:
        store: Folder of the store.
        a: Name of the run before.
        b: Name of the run after.
        table: Table to compare, with rows that are turns or samples.
        column: Column to compare as a number; null for that of `VALUES`, and for all columns as
            they are where the table has none there.
        iteration: The only iteration to compare; null for all that both runs have.
        split: `train` or `evaluation`; null for where the table usually is.
        largest: How many of the largest changes to give with their text.

    Raises:
        StoreError: If a run, table or column is not there or cannot be compared, or if the runs
            have no iteration in common.
    """
    column = _checked_column(table, column)
    place = split or usual_split(table)
    in_a, in_b = (table_iterations(store, run, table, split=place) for run in (a, b))
    if iteration is not None:
        for run, has in ((a, in_a), (b, in_b)):
            if has and iteration not in has:
                raise StoreError(f"run {run} has no {table} of iteration {iteration}")
        in_a = in_b = {iteration}
    frames = [
        open_table(store, run, table, split=place, iteration=iteration, verify=True)
        for run in (a, b)
    ]
    common = sorted(in_a & in_b)
    if not common:
        raise StoreError(
            f"no iteration of {table} is in both runs: {a} has {spans(in_a)}, {b} has {spans(in_b)}"
        )
    compared = pl.col("iteration").is_in(common)
    key, names = _key_of(table), _columns_of(table, column)
    with scan_errors(f"{table} of {a} and {b}"):
        sides = [
            Side(
                rows=frame.filter(compared).select(*key, *names),
                trajectories=_outcomes(store, run, place, iteration, key, compared),
            )
            for run, frame in zip((a, b), frames, strict=True)
        ]
        rows = compare(*sides, value=column)
    top = largest_changes(rows, largest)
    for letter, run in (("a", a), ("b", b)):
        with scan_errors(f"turns of {run}"):
            top = _with_text(top, f"text_{letter}", store, run, place, iteration)
    return Diff(
        a=a,
        b=b,
        table=table,
        column=column,
        iterations=common,
        only_a=sorted(in_a - in_b),
        only_b=sorted(in_b - in_a),
        rows=rows,
        summary=summarise_changes(rows),
        columns=count_changed_columns(rows),
        largest=top,
    )


def spans(numbers: set[int] | Sequence[int]) -> str:
    """Writes numbers with their gaps, such as `1 to 5, 7`; none is `none`."""
    told: list[list[int]] = []
    for number in sorted(numbers):
        if told and number == told[-1][-1] + 1:
            told[-1] = [told[-1][0], number]
        else:
            told.append([number])
    return ", ".join(" to ".join(map(str, span)) for span in told) or "none"


def _checked_column(table: str, column: str | None) -> str | None:
    """Returns the column to compare as a number, if any."""
    schema = known_table(table).schema
    if table not in COMPARABLE:
        raise StoreError(
            f"table {table} has no rows of turns; tables to compare: {', '.join(COMPARABLE)}"
        )
    if column is None:
        return VALUES.get(table)
    types = pl.Schema(schema)
    numeric = [
        name
        for name in compared_columns(schema)
        if types[name].is_numeric() or types[name] == pl.Boolean
    ]
    if column not in numeric:
        raise StoreError(
            f"column {column} of {table} cannot be compared as a number; columns that can: "
            f"{', '.join(numeric)}"
        )
    return column


def _key_of(table: str) -> list[str]:
    parts = {"iteration", *known_table(table).schema.primary_key()}
    return [name for name in KEY if name in parts]


def _columns_of(table: str, column: str | None) -> list[str]:
    return [column] if column is not None else compared_columns(known_table(table).schema)


def _outcomes(
    store: str | Path,
    run: str,
    split: str,
    iteration: int | None,
    key: list[str],
    compared: pl.Expr,
) -> pl.LazyFrame | None:
    """Returns outcomes of trajectories where the run has rewards or an evaluation."""
    if split == "evaluation":
        samples = _open_if_there(store, run, "evaluations", split, iteration)
        if samples is None:
            return None
        of_sample = [name for name in key if name != "turn_index"]
        outcome = outcome_name(pl.col("correct").cast(pl.Float64))
        return samples.filter(compared).select(*of_sample, outcome=outcome, turns="turns")
    for table in ("turn_rewards", "shaped_rewards"):
        rewards = _open_if_there(store, run, table, split, iteration)
        if rewards is not None:
            return trajectory_outcomes(rewards.filter(compared).select(*key, "outcome"))
    return None


def _with_text(
    rows: pl.DataFrame,
    name: str,
    store: str | Path,
    run: str,
    split: str,
    iteration: int | None,
) -> pl.DataFrame:
    """Adds what a run's policy wrote in a few turns, reading the texts of no other task."""
    turns = None if rows.is_empty() else _open_if_there(store, run, "turns", split, iteration)
    if turns is None:
        return rows.with_columns(pl.lit(None, pl.String).alias(name))
    key = [part for part in KEY if part in rows.columns and part != "benchmark"]
    texts = (
        turns.filter(
            pl.col("iteration").is_in(rows["iteration"].unique().to_list()),
            pl.col("task_id").is_in(rows["task_id"].unique().to_list()),
        )
        .select("iteration", *TRAJECTORY_KEY, "turn_index", "text")
        .join(rows.lazy().select(key), on=key, how="semi")
        .group_by(key)
        .agg(pl.col("text").sort_by("turn_index").last().alias(name))
        .collect()
    )
    return rows.join(texts, on=key, how="left", maintain_order="left")


def _open_if_there(
    store: str | Path, run: str, table: str, split: str, iteration: int | None
) -> pl.LazyFrame | None:
    try:
        return open_table(store, run, table, split=split, iteration=iteration, verify=True)
    except MissingTableError:
        return None
