"""Comparison of two results turn by turn: what changed, in which direction, and for whom.

Two frames are joined on the key that they share. A is the older result by convention: every
difference is b - a. Turn-count bias and turn-index bias are the figures that tell whether an
estimator pays for the length of a trajectory or for a turn's place in it, at equal outcome.

Turn-count bias, with A_t the value of turn t, T_t the number of turns of its trajectory, and
means over the cell c(t) of turns with the same iteration, task and outcome:

    beta = sum_t (T_t - mean_c T) (A_t - mean_c A) / sum_t (T_t - mean_c T)^2

the least-squares slope with one intercept a cell: value per additional turn. Turn-index bias is
the same with the turn's index j_t in place of T_t and the trajectory in place of the cell: value
per step within a trajectory. With gamma < 1 returns of a right trajectory are gamma^(T - 1 - j),
so the first is negative and the second positive; GRPO gives every turn of trajectories of equal
reward the same value, so both are 0.

Comparing texts of turns, or deciding which of two results is better, is not done here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import dataframely as dy
import polars as pl

KEY = ("iteration", "benchmark", "task_id", "sample_index", "turn_index")
"""Columns that can be part of a key, in the order of the rows; a frame has some of them."""


class Outcome(StrEnum):
    """How the trajectory of a turn ended in one of the two results."""

    RIGHT = "right"
    WRONG = "wrong"
    EXCLUDED = "excluded"
    """Left out before it was graded, so nobody knows; not: left out of the update."""
    UNKNOWN = "unknown"
    """The result has no reward of the turn."""


_OUTCOMES = pl.Enum([outcome.value for outcome in Outcome])
_GRADED = (Outcome.RIGHT.value, Outcome.WRONG.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two results."""

    rows: pl.LazyFrame
    """The columns of the key, and those to compare; keys are unique."""
    trajectories: pl.LazyFrame | None = None
    """The key without `turn_index`, `outcome` and `turns`, as `trajectory_outcomes` makes them;
    null where the result has no rewards."""


def compared_columns(schema: type[dy.Schema]) -> list[str]:
    """Returns the columns of a table that can differ: neither key nor measurement.

    Times differ whenever a stage runs, so they say nothing. Their metadata has `measured`.
    """
    return [
        name
        for name, column in schema.columns().items()
        if not column.primary_key and not (column.metadata or {}).get("measured")
    ]


def trajectory_outcomes(rewards: pl.LazyFrame) -> pl.LazyFrame:
    """Returns outcome and number of turns of every trajectory.

    Args:
        rewards: One row a turn: columns of the key, and `outcome` (1 right, 0 wrong, null if
            excluded), the same for all turns of a trajectory.

    Returns:
        One row a trajectory: its key, `outcome` (see `Outcome`) and `turns`.
    """
    key = [name for name in _key_of(rewards) if name != "turn_index"]
    return rewards.group_by(key).agg(
        outcome=outcome_name(pl.col("outcome").first()), turns=pl.len().cast(pl.Int32)
    )


def outcome_name(outcome: pl.Expr) -> pl.Expr:
    """Returns the `Outcome` of a number: 1 is right, 0 is wrong, null is excluded."""
    name = (
        pl.when(outcome.is_null())
        .then(pl.lit(Outcome.EXCLUDED.value))
        .when(outcome > 0)
        .then(pl.lit(Outcome.RIGHT.value))
        .otherwise(pl.lit(Outcome.WRONG.value))
    )
    return name.cast(_OUTCOMES)


def compare(a: Side, b: Side, *, value: str | None = None) -> pl.DataFrame:
    """Joins two results on their key and says of every key what changed.

    Floats are compared exactly: a last bit that differs is a change. Null equals null and nothing
    else. Texts and lists are compared by 64-bit hashes, so that none of them is held in memory.

    Args:
        a: Result before.
        b: Result after, with the same columns.
        value: Numeric or Boolean column to compare; null compares all columns as they are.

    Returns:
        One row a key that either result holds, in the order of the key:

        - the columns of the key;
        - `in_a`, `in_b`: whether the result holds the row;
        - `a`, `b` (Float64): the values; null without `value`, where it is null, and where the
          row is missing;
        - `difference`: b - a; null unless both are there;
        - `changed`: whether the row is in one result only or one of its columns differs;
        - `flipped`: whether one value is above 0 and the other below; 0 and null have no sign;
        - `changed_columns`: names of the columns that differ; empty if the row is in one only;
        - `outcome_a`, `outcome_b`, `turns_a`, `turns_b`: of the row's trajectory in each result,
          which need not have sampled the same one; null where the row is missing.
    """
    key = _key_of(a.rows)
    names = [value] if value is not None else _content_of(a.rows, key)
    left, right = _prepared(a, "a", key, names, value), _prepared(b, "b", key, names, value)
    both = pl.col("in_a") & pl.col("in_b")
    differing = [
        pl.when(both & pl.col(f"a.{name}").ne_missing(pl.col(f"b.{name}"))).then(pl.lit(name))
        for name in names
    ]
    no_names = pl.lit([], pl.List(pl.String))
    return (
        left.join(right, on=key, how="full", coalesce=True)
        .with_columns(pl.col("in_a", "in_b").fill_null(False))
        .with_columns(
            difference=pl.col("b") - pl.col("a"),
            flipped=(pl.col("a").sign() * pl.col("b").sign() < 0).fill_null(False),
            changed_columns=pl.concat_list(differing).list.drop_nulls() if names else no_names,
        )
        .with_columns(changed=~both | (pl.col("changed_columns").list.len() > 0))
        .select(
            *key,
            *("in_a", "in_b", "a", "b", "difference", "changed", "flipped", "changed_columns"),
            *("outcome_a", "outcome_b", "turns_a", "turns_b"),
        )
        .collect(engine="streaming")
        .sort(key)  # in memory: the streaming sort of polars 2.1 panics on lists of strings
    )


def summarise_changes(rows: pl.DataFrame) -> pl.DataFrame:
    """Summarises the rows of `compare`: all of them, by turn index, and by outcome.

    Returns:
        One row a part, in this order: `part` `all`, which is always there; `turn_index`, one for
        each `turn_index`; `outcome`, one for each `outcome`, which is that of a, and of b for a
        row that a lacks.
        Its columns:

        - `turns`: rows; `only_a`, `only_b`, `changed` and `flips`: how many of them;
        - `correlation`: Pearson's, of a and b where both are there; null if one is constant;
        - `mean_a`, `mean_b`: over the rows that have the value;
        - `mean_abs_difference`, `max_abs_difference`: over the rows that have both;
        - `turn_count_bias_a`, `turn_count_bias_b`: value per additional turn of the trajectory
          at equal iteration, task and outcome, see the module; each result counts with its own
          outcomes and lengths. Null if no task has graded trajectories of equal outcome and
          different length;
        - `turn_index_bias_a`, `turn_index_bias_b`: value per step within a trajectory, see the
          module; null if no trajectory has two values.
    """
    by_part = {
        "all": pl.lit(None, pl.Int32),
        "turn_index": pl.col("turn_index"),
        "outcome": pl.coalesce("outcome_a", "outcome_b"),
    }
    numbered = rows.with_columns(
        trajectory=_consecutive(rows, "turn_index"),
        task=_consecutive(rows, "sample_index", "turn_index"),
    )
    if "turn_index" not in rows.columns:
        del by_part["turn_index"]
        numbered = numbered.with_columns(turn_index=pl.lit(None, pl.Int32))
    if rows.is_empty():
        by_part = {"all": by_part["all"]}
    summaries = []
    for part, by in by_part.items():
        named = {
            name: (pl.col("by") if name == part else pl.lit(None)).cast(dtype)
            for name, dtype in {"turn_index": pl.Int32(), "outcome": _OUTCOMES}.items()
        }
        summary = _summary_of(numbered.with_columns(by=by))
        summaries.append(
            summary.select(pl.lit(part).alias("part"), **named).hstack(summary.drop("by"))
        )
    return pl.concat(summaries)


def count_changed_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """Returns how many rows of `compare` differ in which column.

    Returns:
        `column` and `changed`, one row a column that differs anywhere, most changes first.
    """
    return (
        rows.select(column=pl.col("changed_columns").explode())
        .drop_nulls()
        .group_by("column")
        .agg(changed=pl.len())
        .sort(["changed", "column"], descending=[True, False])
    )


def largest_changes(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """Returns the `count` changed rows of `compare` with the largest absolute difference.

    Changes without a difference (a value is null, a row is in one result only) come last. Ties
    are in the order of the key.
    """
    return (
        rows.filter("changed")
        .sort(pl.col("difference").abs(), descending=True, nulls_last=True, maintain_order=True)
        .head(count)
    )


def _key_of(frame: pl.LazyFrame) -> list[str]:
    names = frame.collect_schema().names()
    return [name for name in KEY if name in names]


def _content_of(frame: pl.LazyFrame, key: list[str]) -> list[str]:
    return [name for name in frame.collect_schema().names() if name not in key]


def _prepared(
    side: Side, letter: str, key: list[str], names: list[str], value: str | None
) -> pl.LazyFrame:
    """Returns the rows of a side with columns named after it, ready to join."""
    number = pl.lit(None, pl.Float64) if value is None else pl.col(value).cast(pl.Float64)
    rows = side.rows.select(
        *key,
        pl.lit(True).alias(f"in_{letter}"),
        number.alias(letter),
        *_comparable(side.rows, names, letter),
    )
    outcome, turns = pl.lit(None, _OUTCOMES), pl.lit(None, pl.Int32)
    if side.trajectories is not None:
        of_trajectory = [name for name in key if name != "turn_index"]
        rows = rows.join(side.trajectories, on=of_trajectory, how="left")
        outcome, turns = pl.col("outcome"), pl.col("turns")
    return rows.select(
        pl.exclude("outcome", "turns"),
        outcome.fill_null(Outcome.UNKNOWN.value).alias(f"outcome_{letter}"),
        turns.alias(f"turns_{letter}"),
    )


def _comparable(frame: pl.LazyFrame, names: list[str], letter: str) -> Iterator[pl.Expr]:
    """Yields the columns to compare, those of any length as hashes; null stays null."""
    schema = frame.collect_schema()
    for name in names:
        column = pl.col(name)
        if isinstance(schema[name], pl.String | pl.List | pl.Struct):
            column = pl.when(column.is_not_null()).then(column.hash())
        yield column.alias(f"{letter}.{name}")


def _consecutive(rows: pl.DataFrame, *without: str) -> pl.Series:
    """Numbers the runs of equal keys, some columns left out; cheap, as rows are in key order."""
    key = [name for name in KEY if name in rows.columns and name not in without]
    return rows.select(pl.struct(key).rle_id()).to_series()


def _summary_of(numbered: pl.DataFrame) -> pl.DataFrame:
    """Summarises by the column `by`, in its order."""
    a, b, difference = pl.col("a"), pl.col("b"), pl.col("difference")
    both = difference.is_not_null()
    varies = pl.all_horizontal(x.filter(both).min() < x.filter(both).max() for x in (a, b))
    correlation = pl.corr(a.filter(both), b.filter(both)).clip(-1.0, 1.0).fill_nan(None)
    figures = dict(
        turns=pl.len(),
        only_a=(~pl.col("in_b")).sum(),
        only_b=(~pl.col("in_a")).sum(),
        changed=pl.col("changed").sum(),
        flips=pl.col("flipped").sum(),
        correlation=pl.when(varies).then(correlation),
        mean_a=a.mean(),
        mean_b=b.mean(),
        mean_abs_difference=difference.abs().mean(),
        max_abs_difference=difference.abs().max(),
    )
    summary = (
        numbered.select(by=pl.lit(None, pl.Int32), **figures)
        if numbered.is_empty()
        else numbered.group_by("by").agg(**figures)
    )
    for letter in ("a", "b"):
        graded = numbered.filter(pl.col(f"outcome_{letter}").is_in(_GRADED))
        cell = ["task", f"outcome_{letter}"]
        slopes = slope_within(graded, f"turns_{letter}", letter, cell)
        summary = _with_column(summary, f"turn_count_bias_{letter}", slopes)
    for letter in ("a", "b"):
        slopes = slope_within(numbered, "turn_index", letter, ["trajectory"])
        summary = _with_column(summary, f"turn_index_bias_{letter}", slopes)
    return summary.sort("by")


def _with_column(summary: pl.DataFrame, name: str, slopes: pl.DataFrame) -> pl.DataFrame:
    named = slopes.rename({"slope": name})
    return summary.join(named, on="by", how="left", nulls_equal=True)


def slope_within(numbered: pl.DataFrame, x: str, y: str, cell: list[str]) -> pl.DataFrame:
    """Returns `by` and `slope`: of y on whole numbers x by least squares, one intercept a cell.

    By sums alone, which a million cells need; those of whole numbers are exact, so that a cell in
    which x does not vary counts for exactly nothing below the line.
    """
    pairs = numbered.select("by", *cell, x=pl.col(x).cast(pl.Float64), y=pl.col(y)).drop_nulls("y")
    sums = (
        pairs.filter(pl.col("x").is_not_null())
        .with_columns(xx=pl.col("x") * pl.col("x"), xy=pl.col("x") * pl.col("y"))
        .group_by("by", *cell)
        .agg(pl.len().alias("n"), pl.col("x", "y", "xx", "xy").sum())
    )
    n, sum_x, sum_y = pl.col("n"), pl.col("x"), pl.col("y")
    xx = (pl.col("xx") - sum_x * sum_x / n).sum()
    xy = (pl.col("xy") - sum_x * sum_y / n).sum()
    return sums.group_by("by").agg(slope=pl.when(xx > 0).then(xy / xx))
