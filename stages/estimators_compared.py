"""All estimators on the same rewards, side by side: where they agree, and what each pays for.

Every estimator has its own unit, so biases are told in standard deviations of its own
advantages. Which of them trains better is not decided here.
"""

from collections.abc import Iterable, Mapping, Sequence

import dataframely as dy
import polars as pl

from schemas.config import AdvantagesConfig
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, ShapedRewards
from stages.advantages import ESTIMATORS, estimate_advantages
from stages.comparison import outcome_name, slope_within

GTPO_VARIANTS: Mapping[str, Mapping[str, str]] = {
    "gtpo": {},
    "gtpo_batch": {"normalise": "batch"},
    "gtpo_turn_index": {"normalise": "turn_index"},
    "gtpo_leave_one_out": {"baseline": "leave_one_out"},
    "gtpo_length": {"baseline": "length"},
}
"""Name to what differs from GTPO over the group with its mean."""

REFERENCE = "gtpo"
"""What the others are compared with."""


def estimators_side_by_side(base: AdvantagesConfig) -> dict[str, AdvantagesConfig]:
    """Returns the settings of every estimator, and of GTPO's variants, by name.

    Args:
        base: Gives gamma, the weight of turns, and what becomes of groups without variance.
    """
    plain = {"normalise": "group", "baseline": "mean", "scale": "std"}
    names = [*GTPO_VARIANTS, *(name for name in ESTIMATORS if name != "gtpo")]
    return {
        name: base.model_copy(
            update={
                **plain,
                **GTPO_VARIANTS.get(name, {}),
                "estimator": "gtpo" if name in GTPO_VARIANTS else name,
            }
        )
        for name in names
    }


def credit_by_estimator(
    shaped_rewards: dy.DataFrame[ShapedRewards], settings: Mapping[str, AdvantagesConfig]
) -> pl.DataFrame:
    """Returns the advantage of every turn by every estimator.

    Args:
        shaped_rewards: Rewards of one batch.
        settings: Estimators by the name that their column gets.

    Returns:
        One row a turn in the order of the key: the key, `outcome` (see `stages.comparison`),
        `turns` of the trajectory, and a Float64 column an estimator, null where it gives none.
    """
    credit = shaped_rewards.sort(TURN_KEY).select(
        *TURN_KEY,
        outcome=outcome_name(pl.col("outcome")),
        turns=pl.len().over(TRAJECTORY_KEY).cast(pl.Int32),
    )
    columns = [
        estimate_advantages(shaped_rewards, config)["advantage"].alias(name)
        for name, config in settings.items()
    ]
    return credit.hstack(columns)


def agreement(credit: pl.DataFrame, pairs: Iterable[tuple[str, str]]) -> pl.DataFrame:
    """Returns how far two estimators agree, over turns that both credit.

    Args:
        credit: As `credit_by_estimator` returns it.
        pairs: Columns of estimators to compare with each other.

    Returns:
        `a`, `b`, `turns` that both credit, `correlation` (Pearson's; null if one is constant) and
        `same_sign`, the share of turns with the same sign; null without such turns.
    """
    rows = []
    for a, b in pairs:
        both = credit.select(a, b).drop_nulls()
        varies = both.height > 1 and all(both[name].n_unique() > 1 for name in (a, b))
        same = (both[a].sign() == both[b].sign()).mean()
        correlation = both.select(pl.corr(a, b)).item() if varies else None
        rows.append((a, b, both.height, correlation, same))
    schema = {"a": pl.String, "b": pl.String, "turns": pl.Int64}
    figures = {"correlation": pl.Float64, "same_sign": pl.Float64}
    return pl.DataFrame(rows, schema={**schema, **figures}, orient="row")


def biases(credit: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Returns what each estimator pays for length and for place, at equal outcome.

    Args:
        credit: As `credit_by_estimator` returns it, with `iteration` where there are several.
        names: Columns of the estimators.

    Returns:
        One row an estimator: `estimator`; `credited`, the share of turns with an advantage;
        `deviation`, the standard deviation of its advantages; `turn_count_bias` and
        `turn_index_bias`, the slopes of `stages.comparison` divided by it: standard deviations
        that a turn of a trajectory longer by one turn, or the next turn of a trajectory, is
        worth more. Null where nothing varies.
    """
    batch = [name for name in ("iteration",) if name in credit.columns]
    numbered = credit.with_columns(
        by=pl.lit(None, pl.Int32),
        task=pl.struct(*batch, "task_id").rle_id(),
        trajectory=pl.struct(*batch, *TRAJECTORY_KEY).rle_id(),
    )
    graded = numbered.filter(pl.col("outcome").is_in(["right", "wrong"]))
    rows = []
    for name in names:
        deviation = credit[name].std()
        is_spread = isinstance(deviation, float) and deviation > 0
        slopes = [
            slope_within(graded, "turns", name, ["task", "outcome"]),
            slope_within(numbered, "turn_index", name, ["trajectory"]),
        ]
        told = [slope["slope"][0] if slope.height and is_spread else None for slope in slopes]
        rows.append(
            (
                name,
                credit[name].is_not_null().mean(),
                deviation,
                *(None if value is None else value / deviation for value in told),
            )
        )
    figures = ("credited", "deviation", "turn_count_bias", "turn_index_bias")
    schema = {"estimator": pl.String, **dict.fromkeys(figures, pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def mean_credit(credit: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Returns the mean advantage by turn index and by number of turns, at equal outcome.

    Returns:
        One row an estimator, outcome, and value of what it is taken by: `estimator`, `outcome`,
        `by` (`turn_index` or `turns`), `value`, `count` of turns credited, and `advantage`, the
        mean, null without any.
    """
    parts = []
    for by in ("turn_index", "turns"):
        long = credit.select(pl.lit(by).alias("by"), pl.col(by).alias("value"), "outcome", *names)
        parts.append(
            long.unpivot(
                names, index=["by", "value", "outcome"], variable_name="estimator",
                value_name="advantage",
            )
            .group_by("estimator", "outcome", "by", "value")
            .agg(count=pl.col("advantage").count(), advantage=pl.col("advantage").mean())
        )  # fmt: skip
    order = pl.Enum(list(names))
    return (
        pl.concat(parts)
        .filter(pl.col("outcome").is_in(["right", "wrong"]))
        .sort(pl.col("estimator").cast(order), "outcome", "by", "value")
    )
