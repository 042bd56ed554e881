"""Readers for older versions of tables: one function for each step from a version to the next.

Stored files are never rewritten. A file of an older version is read as it is and taken through
the steps up to the newest; so a run may hold files of several versions and is read as one table.
"""

from collections.abc import Callable

import polars as pl

from schemas.categories import GradingMethod, ParseError
from schemas.errors import StoreError
from schemas.tables import TABLES

Upgrade = Callable[[pl.LazyFrame], pl.LazyFrame]
"""Takes the rows of a file of version n, and returns them with all columns of version n + 1.

It must treat every row for itself: a file may be read in parts.
"""


_METHODS = pl.Enum([method.value for method in GradingMethod])
_PARSE_ERRORS = pl.Enum([error.value for error in ParseError])


def _with_nulls(**columns: pl.DataType) -> Upgrade:
    """Returns a step that adds columns of which older rows know nothing."""
    return lambda rows: rows.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in columns.items()
    )


def _with_zeros(*components: str) -> Upgrade:
    """Returns a step that adds components which were no part of the total: worth nothing.

    One that a file holds already keeps its values: then it was stored before its version was
    raised, and is a part of the total.
    """

    def step(rows: pl.LazyFrame) -> pl.LazyFrame:
        missing = set(components) - set(rows.collect_schema().names())
        return rows.with_columns(pl.lit(0.0).alias(name) for name in sorted(missing))

    return step


UPGRADES: dict[str, dict[int, Upgrade]] = {
    # Nothing was asked again then.
    "prompts": {1: lambda rows: rows.with_columns(pl.lit(0, pl.Int32).alias("round"))},
    "turns": {
        # All of the distribution was sampled from then, and calls could not be malformed.
        1: lambda rows: rows.with_columns(
            pl.lit(1.0, pl.Float32).alias("top_p"),
            pl.lit(0, pl.Int32).alias("top_k"),
            pl.col("parse_error").cast(pl.String).cast(_PARSE_ERRORS),
        )
    },
    "generation_times": {1: _with_nulls(prompt_tokens=pl.Int64(), cached_tokens=pl.Int64())},
    "turn_rewards": {
        1: lambda rows: _with_zeros("execution_error", "void_turn", "overlong")(
            _with_nulls(state=pl.Int32(), grading_method=_METHODS)(rows)
        )
    },
    "shaped_rewards": {1: _with_nulls(state=pl.Int32())},
    "advantages": {
        1: _with_nulls(
            turn_advantage=pl.Float64(), turn_weight=pl.Float64(), outcomes_equal=pl.Boolean()
        )
    },
    "updates": {
        # The policy loss was all there was then.
        1: lambda rows: _with_nulls(
            ratio_mean=pl.Float64(),
            reference_kl=pl.Float64(),
            mismatch_weight=pl.Float64(),
            mismatch_bounded=pl.Float64(),
            advantage_mean=pl.Float64(),
            advantage_std=pl.Float64(),
            turns=pl.Int32(),
            packed_tokens=pl.Int64(),
            micro_batches=pl.Int32(),
        )(rows.with_columns(pl.col("loss").alias("policy_loss")))
    },
}
"""Table name to version n to the step from n to n + 1."""


def missing_upgrades(table: str) -> list[int]:
    """Returns the versions of a table from which no step leads on to the next, ascending."""
    steps = UPGRADES.get(table, {})
    return [version for version in range(1, TABLES[table].version) if version not in steps]


def upgraded(table: str, version: int, frame: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the rows of an older version of a table as rows of the newest.

    Args:
        table: Name of the table.
        version: Version that the rows have.
        frame: The rows.

    Returns:
        The columns of the newest schema, in its order. Nothing is read but names and types.

    Raises:
        StoreError: If there is no way from this version to the newest, or the steps do not end
            at its columns and types.
        pl.exceptions.PolarsError: If the rows do not have the columns of their own version.
    """
    newest = TABLES[table]
    steps = UPGRADES.get(table, {})
    for step in range(version, newest.version):
        if step not in steps:
            raise StoreError(
                f"table {table} of schema {version} cannot be read as schema {newest.version}: "
                f"schemas.upgrades has no step from {step} to {step + 1}"
            )
        frame = steps[step](frame)
    expected = pl.Schema(newest.schema)
    found = frame.collect_schema()
    wrong = [name for name, dtype in expected.items() if found.get(name) != dtype]
    if wrong:
        raise StoreError(
            f"table {table} of schema {version} was not made schema {newest.version} by the steps "
            f"of schemas.upgrades: column {wrong[0]} is {found.get(wrong[0], 'missing')}, not "
            f"{expected[wrong[0]]}"
        )
    return frame.select(expected.names())
