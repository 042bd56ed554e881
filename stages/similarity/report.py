"""What shaping did to each group: how its similarities spread, and which orders it changed.

The stage does not need it. It reads `shaped_rewards` and makes no table of the store.
"""

import dataframely as dy
import polars as pl

from schemas.tables import GROUP_KEY, TRAJECTORY_KEY, ShapedRewards

_EQUAL_BELOW = 1e-9
"""Sums of rewards that differ by less are equal: the rest is rounding."""


def shaping_report(shaped: dy.DataFrame[ShapedRewards]) -> pl.DataFrame:
    """Returns a row a group on what shaping did to it, in the order of the key.

    A trajectory's similarity is the mean of `similarity_mean` over its turns that have one, its
    reward the undiscounted sum over its turns, before and after shaping. Excluded trajectories do
    not count.

    Args:
        shaped: Shaped rewards of whole groups.

    Returns:
        - `task_id`: The group.
        - `trajectories`, `shaped`: How many there are, and how many of them were shaped.
        - `similarity_min`, `similarity_max`, `similarity_std`: Of the shaped ones; null without
          any, the sample standard deviation also for one.
        - `pairs`: Pairs of trajectories of the group.
        - `order_changed`: Pairs whose order by reward changed, ties included: one that was made or
          broken counts.
        - `order_reversed`: Pairs of which the other one is the better one now.
    """
    trajectories = (
        shaped.filter(pl.col("excluded").is_null())
        .group_by(TRAJECTORY_KEY)
        .agg(
            pl.col("similarity_mean").mean().alias("similarity"),
            pl.col("total", "shaped_total").sum(),
        )
        .sort(TRAJECTORY_KEY)
    )
    similarity = pl.col("similarity")
    groups = trajectories.group_by(GROUP_KEY, maintain_order=True).agg(
        trajectories=pl.len(),
        shaped=similarity.count(),
        similarity_min=similarity.min(),
        similarity_max=similarity.max(),
        similarity_std=similarity.std(),
    )
    return groups.join(_pairs(trajectories), on=GROUP_KEY, how="left", maintain_order="left")


def summarise_shaping(report: pl.DataFrame) -> pl.DataFrame:
    """Returns one row on all groups of a `shaping_report`.

    Returns:
        - `groups`, `trajectories`, `shaped`, `pairs`, `order_changed`, `order_reversed`: Sums.
        - `groups_shaped`: Groups with a shaped trajectory; the similarities are of these alone.
        - `similarity_min`, `similarity_max`: Over all of them.
        - `mean_group_std`: Mean of the standard deviations within a group.
        - `order_changed_share`: Of the pairs; null without any.
    """
    sums = ("trajectories", "shaped", "pairs", "order_changed", "order_reversed")
    return report.select(
        pl.len().alias("groups"),
        (pl.col("shaped") > 0).sum().alias("groups_shaped"),
        *[pl.col(name).sum() for name in sums],
        similarity_min=pl.col("similarity_min").min(),
        similarity_max=pl.col("similarity_max").max(),
        mean_group_std=pl.col("similarity_std").mean(),
    ).with_columns(
        order_changed_share=pl.when(pl.col("pairs") > 0).then(
            pl.col("order_changed") / pl.col("pairs")
        )
    )


def _pairs(trajectories: pl.DataFrame) -> pl.DataFrame:
    """Returns how many pairs a group has, and how many of them changed their order."""
    pairs = trajectories.join(trajectories, on=GROUP_KEY, suffix="_other").filter(
        pl.col("sample_index") < pl.col("sample_index_other")
    )
    before, after = (
        _sign(pl.col(name) - pl.col(f"{name}_other")) for name in ("total", "shaped_total")
    )
    counted = pairs.group_by(GROUP_KEY).agg(
        pairs=pl.len(),
        order_changed=(before != after).sum(),
        order_reversed=(before * after < 0).sum(),
    )
    alone = trajectories.select(GROUP_KEY).unique().join(counted, on=GROUP_KEY, how="left")
    return alone.with_columns(pl.col("pairs", "order_changed", "order_reversed").fill_null(0))


def _sign(difference: pl.Expr) -> pl.Expr:
    is_equal = difference.abs() < _EQUAL_BELOW
    return pl.when(is_equal).then(0).otherwise(difference.sign()).cast(pl.Int8)
