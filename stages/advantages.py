"""Advantages (credit of a turn): GTPO, and GRPO for comparison.

GTPO, arXiv 2511.14846, with r_im the shaped reward of turn m of trajectory i:

    R_ij = sum over m >= j of gamma^(m - j) r_im        A_ij = (R_ij - mean R) / std R

GRPO, arXiv 2402.03300, with one reward R_i a trajectory, the same for each of its turns:

    A_ij = (R_i - mean of R over the group's trajectories) / std of the same

std is the sample standard deviation (divisor n - 1). The paper leaves open over which turns mean
and std of GTPO run: `group` (all turns of all trajectories of the task), `batch` (all turns) or
`turn_index` (turns of the group with the same index).

Known hazard: with gamma < 1 the early turns of right trajectories have lower returns than the
late ones, so pooling over the group penalises them and weights long trajectories; per turn index
hides a bonus for one more turn where turn counts vary.

No row is dropped: what has no advantage says why in `excluded`.
"""

import dataframely as dy
import numpy as np
import polars as pl

from schemas.config import AdvantagesConfig
from schemas.errors import TurnledgerError
from schemas.tables import (
    GROUP_KEY,
    TRAJECTORY_KEY,
    TURN_KEY,
    Advantages,
    Excluded,
    ShapedRewards,
)

SMALLEST_SCALE = 1e-9
"""Standard deviations up to this are rounding errors of equal returns."""

_SETS: dict[str, tuple[str, ...]] = {
    "group": GROUP_KEY,
    "batch": (),
    "turn_index": (*GROUP_KEY, "turn_index"),
}


def estimate_advantages(
    shaped_rewards: dy.DataFrame[ShapedRewards], config: AdvantagesConfig
) -> dy.DataFrame[Advantages]:
    """Returns the advantage of every turn, with the return, baseline and scale it is made of.

    Turns excluded before have none of these. Turns of a group whose outcomes are all equal keep
    their return where such groups are dropped; turns whose normalisation set has no variance
    keep return and baseline. Neither has a scale or an advantage, and only the latter counted in
    the statistics.

    Args:
        shaped_rewards: Rewards of whole trajectories, turns numbered from 0 without gaps.
        config: Estimator, discount, normalisation set and what becomes of groups without
            variance of outcome. GRPO ignores discount and set: it records 1 and `group`.

    Returns:
        One row a turn, in the order of the key.

    Raises:
        TurnledgerError: If turns of a trajectory are missing or repeated, if it is excluded only
            in part, or if a turn that counts has no reward or outcome.
    """
    gtpo = config.estimator == "gtpo"
    gamma, normalise = (config.gamma, config.normalise) if gtpo else (1.0, "group")
    turns = shaped_rewards.sort(TURN_KEY).with_columns(
        reward=pl.col("shaped_total" if gtpo else "grpo_reward")
    )
    _require_contiguous_turns(turns)
    _require_rewards(turns)
    if config.groups_without_outcome_variance == "drop":
        turns = _exclude_groups_without_outcome_variance(turns)
    returns = pl.Series("return", _returns(turns, gamma)) if gtpo else pl.col("reward")
    turns = turns.with_columns(
        pl.when(pl.col("reward").is_not_null()).then(returns).alias("return")
    )
    # The statistics of GRPO run over trajectories, each counted once however many turns it has.
    entries = pl.lit(True) if gtpo else pl.col("turn_index") == 0
    normalised = _normalise(turns, entries, _SETS[normalise]).with_columns(
        estimator=pl.lit(config.estimator), gamma=pl.lit(gamma), normalise=pl.lit(normalise)
    )
    return Advantages.validate(normalised.select(Advantages.column_names()), cast=True)


def _require_contiguous_turns(turns: pl.DataFrame) -> None:
    expected = pl.int_range(pl.len()).over(TRAJECTORY_KEY)
    broken = turns.filter(pl.col("turn_index") != expected)
    if broken.height:
        raise TurnledgerError(
            f"trajectory {_key_of(broken)} has a missing or repeated turn_index: turns must count "
            "0, 1, 2 and so on"
        )


def _require_rewards(turns: pl.DataFrame) -> None:
    counts = pl.col("excluded").is_null()
    partly = turns.filter(counts.any().over(TRAJECTORY_KEY) & ~counts)
    if partly.height:
        raise TurnledgerError(
            f"trajectory {_key_of(partly)} is excluded in part: exclude all of its turns"
        )
    for column in ("reward", "outcome"):
        without = turns.filter(counts & pl.col(column).is_null())
        if without.height:
            raise TurnledgerError(
                f"trajectory {_key_of(without)} has a turn without {column} and without a reason"
            )


def _key_of(turns: pl.DataFrame) -> str:
    return ", ".join(f"{k}={turns[k][0]}" for k in TRAJECTORY_KEY)


def _exclude_groups_without_outcome_variance(turns: pl.DataFrame) -> pl.DataFrame:
    counted = pl.col("outcome").filter(pl.col("excluded").is_null())
    constant = (counted.min() == counted.max()).over(GROUP_KEY)
    return turns.with_columns(
        pl.when(pl.col("excluded").is_null() & constant)
        .then(pl.lit(Excluded.ZERO_OUTCOME_VARIANCE.value))
        .otherwise(pl.col("excluded").cast(pl.String))
        .alias("excluded")
    )


def _returns(turns: pl.DataFrame, gamma: float) -> np.ndarray:
    """Returns R_ij = sum over m >= j of gamma^(m - j) r_im, [turns], for contiguous turns.

    Turns that a trajectory does not have are padded with reward 0, which adds nothing.
    """
    columns = turns["turn_index"].to_numpy()
    if not columns.size:
        return np.empty(0)
    rows = np.cumsum(columns == 0) - 1
    # A null reward belongs to an excluded trajectory, whose returns are not used.
    rewards = np.zeros((rows[-1] + 1, columns.max() + 1))
    rewards[rows, columns] = turns["reward"].fill_null(0.0).to_numpy()
    lag = np.subtract.outer(np.arange(rewards.shape[1]), np.arange(rewards.shape[1]))
    discounts = np.where(lag >= 0, float(gamma) ** np.maximum(lag, 0), 0.0)  # [m, j]
    returns: np.ndarray = (rewards @ discounts)[rows, columns]
    return returns


def _normalise(turns: pl.DataFrame, entries: pl.Expr, key: tuple[str, ...]) -> pl.DataFrame:
    """Returns the turns with baseline, scale and advantage over each normalisation set.

    Args:
        turns: Turns with their returns.
        entries: Which turns enter the statistics, of those that are not excluded.
        key: Columns that tell the sets apart; none for one set of all turns.
    """
    counts = pl.col("excluded").is_null()
    returns = pl.col("return").filter(counts & entries)
    baseline, scale = (
        statistic.over(key) if key else statistic for statistic in (returns.mean(), returns.std())
    )
    # The scale of a single return is null: it does not vary either.
    varies = (pl.col("scale") > SMALLEST_SCALE).fill_null(False)
    return (
        turns.with_columns(baseline=baseline, scale=scale)
        .with_columns(
            baseline=pl.when(counts).then("baseline"),
            scale=pl.when(counts & varies).then("scale"),
            excluded=pl.when(counts & ~varies)
            .then(pl.lit(Excluded.ZERO_RETURN_VARIANCE.value))
            .otherwise(pl.col("excluded").cast(pl.String)),
        )
        .with_columns(advantage=(pl.col("return") - pl.col("baseline")) / pl.col("scale"))
    )
