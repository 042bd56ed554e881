"""The most telling trajectories of a run: a fixed rule, so that equal runs tell the same.

A kind is a condition and a figure. Of each kind the trajectories are ranked by the figure, the
largest first and ties in the order of the key; then the first of every kind is taken, the second
of every kind, and so on, each trajectory once, until there are enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from flows.page.groups import is_void
from flows.page.reading import Reader
from schemas.tables import TRAJECTORY_KEY
from storage import scan_errors

KEY = ("iteration", *TRAJECTORY_KEY)


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to be telling."""

    says: str
    where: pl.Expr
    figure: pl.Expr
    is_count: bool = False
    """Whether the figure is a whole number."""


_RIGHT, _WRONG = pl.col("outcome") > 0, pl.col("outcome") == 0

KINDS: Mapping[str, Kind] = {
    "shaped": Kind(
        "wrong, with the largest shaped reward",
        _WRONG & (pl.col("shaped") > 0),
        pl.col("shaped"),
    ),
    "right_negative": Kind(
        "right, with the most negative advantage of a turn",
        _RIGHT & (pl.col("lowest") < 0),
        -pl.col("lowest"),
    ),
    "wrong_positive": Kind(
        "wrong, with the largest positive advantage of a turn",
        _WRONG & (pl.col("highest") > 0),
        pl.col("highest"),
    ),
    "changed": Kind(
        "changed most by an update, in mean log-probability of a turn",
        pl.col("change") > 0,
        pl.col("change"),
    ),
    "timeout": Kind(
        "most code that ran out of time",
        pl.col("timeouts") > 0,
        pl.col("timeouts"),
        is_count=True,
    ),
    "void": Kind(
        "most turns with neither code nor answer",
        pl.col("voids") > 0,
        pl.col("voids"),
        is_count=True,
    ),
    "right": Kind(
        "right, with the largest advantage of a turn",
        _RIGHT & (pl.col("highest") > 0),
        pl.col("highest"),
    ),
    "longest": Kind("longest in turns", pl.col("turns") > 0, pl.col("turns"), is_count=True),
}
"""Kinds by name, in the order in which they are taken; figures are columns of `summaries`."""


def telling(summaries: pl.LazyFrame, count: int) -> pl.DataFrame:
    """Returns the most telling trajectories.

    Args:
        summaries: One row a trajectory: `iteration`, its key, and the figures of `summaries_of`.
        count: Most trajectories.

    Returns:
        The key, `kind` (a name of `KINDS`) and `figure`, in the order in which they were taken.
    """
    ranked = [
        summaries.filter(kind.where)
        .select(
            *KEY,
            figure=kind.figure.cast(pl.Float64),
            kind=pl.lit(name),
            place=pl.lit(number, pl.Int32),
        )
        .sort("figure", *KEY, descending=[True, *([False] * len(KEY))])
        .head(count)
        .with_row_index("rank")
        for number, (name, kind) in enumerate(KINDS.items())
    ]
    return (
        pl.concat(pl.collect_all(ranked))
        .sort("rank", "place")
        .unique(KEY, keep="first", maintain_order=True)
        .head(count)
        .select(*KEY, "kind", "figure")
    )


def summaries_of(reader: Reader, run: str) -> pl.LazyFrame:
    """Returns one row a training trajectory of a run, with what `KINDS` are decided by.

    Returns:
        `iteration` and the key of the trajectory; `outcome`, 1 right, 0 wrong; `shaped`, the
        largest shaped accuracy; `lowest` and `highest` advantage of a turn; `change`, the largest
        absolute change of a turn's mean log-probability by the update; `timeouts`, `voids` and
        `turns`, counts. Null where the table is not there.
    """

    tables = reader.tables(run)

    def by_trajectory(table: str, **figures: pl.Expr) -> pl.LazyFrame:
        return tables.open(table).group_by(KEY).agg(**figures)

    advantage = pl.col("advantage")
    parts = [
        by_trajectory("turn_rewards", outcome=pl.col("outcome").first()),
        by_trajectory("shaped_rewards", shaped=pl.col("shaped_accuracy").max()),
        by_trajectory("advantages", lowest=advantage.min(), highest=advantage.max()),
        by_trajectory("turn_updates", change=pl.col("logprob_change").abs().max()),
        by_trajectory("executions", timeouts=(pl.col("status") == "timeout").sum()),
    ]
    summaries = by_trajectory("turns", voids=is_void().sum(), turns=pl.len())
    for part in parts:
        summaries = summaries.join(part, on=KEY, how="left")
    return summaries


def most_telling(reader: Reader, run: str, count: int) -> pl.DataFrame:
    """Returns the most telling trajectories of a run; see `telling`.

    Raises:
        StoreError: If a table of the run cannot be read.
    """
    with scan_errors(f"tables of {run}"):
        # Kept while it is asked once a kind: a number or two a trajectory.
        return telling(summaries_of(reader, run).collect().lazy(), count)
