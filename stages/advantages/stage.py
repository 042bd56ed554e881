"""The stage: checks the rewards, leaves out what cannot be credited, and credits the rest.

No row is dropped: what has no advantage says why in `excluded`. The formulas of the estimators
are in `estimators.py`, those of GTPO's baselines in `baselines.py`.

Known hazard of GTPO: with gamma < 1 the early turns of right trajectories have lower returns than
the late ones, so pooling over the group penalises them and weights long trajectories; per turn
index hides a bonus for one more turn where turn counts vary. `turnledger compare-estimators`
shows both on a stored run.
"""

from dataclasses import replace

import dataframely as dy
import numpy as np
import polars as pl

from schemas.categories import Excluded
from schemas.config import AdvantagesConfig
from schemas.errors import TurnledgerError
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, Advantages, ShapedRewards
from stages.advantages.agreement import NEEDS, agreement
from stages.advantages.estimators import ESTIMATORS, Credit, equal_outcomes
from stages.advantages.rows import SMALLEST_SCALE, Flags, Floats, Rows


def estimate_advantages(
    shaped_rewards: dy.DataFrame[ShapedRewards], config: AdvantagesConfig
) -> dy.DataFrame[Advantages]:
    """Returns the advantage of every turn, with the return, baseline and scale it is made of.

    Turns excluded before have none of these. Turns of a group whose outcomes are all equal keep
    their return where such groups are dropped; turns whose normalisation set has no variance
    keep return and baseline. Neither has a scale, nor an advantage but that of agreement with
    peers, and only the latter counted in the statistics.

    Args:
        shaped_rewards: Rewards of whole trajectories, turns numbered from 0 without gaps.
        config: Estimator and its settings, and what becomes of groups without variance of
            outcome. Settings that the estimator does not have are ignored: what was used is in
            the columns `gamma`, `normalise` and `turn_weight`.

    Returns:
        One row a turn, in the order of the key.

    Raises:
        TurnledgerError: If turns of a trajectory are missing or repeated, if it is excluded only
            in part, if a turn that counts has no reward, outcome, or state where it is needed.
    """
    turns = shaped_rewards.sort(TURN_KEY).with_columns(pl.col("excluded").cast(pl.String))
    rows = Rows(turns, counts=turns["excluded"].is_null().to_numpy())
    _require_contiguous_turns(rows)
    _require_values(rows, config)
    equal = equal_outcomes(rows) & rows.counts
    dropped = equal & (config.groups_without_outcome_variance in ("drop", "agreement"))
    varying = replace(rows, counts=rows.counts & ~dropped)
    credit = ESTIMATORS[config.estimator].credit(varying, config)
    of_turn = np.full(len(equal), np.nan)
    if credit.turn_advantage is not None:
        of_turn = np.where(varying.counts, credit.turn_advantage, np.nan)
    if config.groups_without_outcome_variance == "agreement":
        wrong = equal & (rows.column("outcome") <= 0)
        of_turn = np.where(wrong, agreement(replace(rows, counts=wrong)), of_turn)
    return _table(varying, credit, of_turn, config, equal=equal, dropped=dropped)


def _table(
    rows: Rows,
    credit: Credit,
    of_turn: Floats,
    config: AdvantagesConfig,
    *,
    equal: Flags,
    dropped: Flags,
) -> dy.DataFrame[Advantages]:
    """Puts what an estimator says beside the keys, with the reason where it says nothing."""
    known = ~np.isnan(credit.reward) & (rows.counts | dropped)
    varies = rows.counts & (credit.scale > SMALLEST_SCALE) & ~np.isnan(credit.baseline)
    part = np.divide(
        credit.returns - credit.baseline,
        credit.scale,
        out=np.full_like(credit.returns, np.nan),
        where=varies,
    )
    advantage = np.nan_to_num(part) + config.turn_weight * np.nan_to_num(of_turn)
    credited = ~(np.isnan(part) & np.isnan(of_turn))
    reasons = (
        pl.when(pl.lit(pl.Series(rows.counts & ~credited)))
        .then(pl.lit(Excluded.ZERO_RETURN_VARIANCE.value))
        .when(pl.lit(pl.Series(dropped & ~credited)))
        .then(pl.lit(Excluded.ZERO_OUTCOME_VARIANCE.value))
        .otherwise("excluded")
    )
    table = rows.frame.select(
        *TURN_KEY,
        _nullable("reward", credit.reward, known),
        _nullable("return", credit.returns, known),
        _nullable("baseline", credit.baseline, rows.counts),
        _nullable("scale", credit.scale, varies),
        _nullable("turn_advantage", of_turn, credited),
        _nullable("turn_weight", np.full_like(of_turn, config.turn_weight), ~np.isnan(of_turn)),
        _nullable("advantage", advantage, credited),
        pl.lit(config.estimator).alias("estimator"),
        pl.lit(credit.gamma).alias("gamma"),
        pl.lit(credit.normalise).alias("normalise"),
        pl.Series("outcomes_equal", equal),
        reasons.alias("excluded"),
    )
    return Advantages.validate(table.select(Advantages.column_names()), cast=True)


def _nullable(name: str, values: Floats, where: Flags) -> pl.Expr:
    """Returns a column that is null where there is no value, or none that counts."""
    column = pl.Series(name, np.where(where, values, np.nan))
    return pl.lit(column).fill_nan(None).alias(name)


def _require_contiguous_turns(rows: Rows) -> None:
    positions = np.arange(len(rows.trajectory))
    starts = np.flatnonzero(np.diff(rows.trajectory, prepend=-1))
    expected = positions - starts[rows.trajectory]
    if (rows.turn_index != expected).any():
        raise TurnledgerError(
            f"trajectory {_key_of(rows, rows.turn_index != expected)} has a missing or repeated "
            "turn_index: turns must count 0, 1, 2 and so on"
        )


def _require_values(rows: Rows, config: AdvantagesConfig) -> None:
    counting = np.bincount(rows.trajectory, weights=rows.counts)
    partly = ~rows.counts & (counting[rows.trajectory] > 0)
    if partly.any():
        raise TurnledgerError(
            f"trajectory {_key_of(rows, partly)} is excluded in part: exclude all of its turns"
        )
    needs = ESTIMATORS[config.estimator].needs
    asks: str = config.estimator if "state" in needs else config.groups_without_outcome_variance
    if config.groups_without_outcome_variance == "agreement":
        needs = (*needs, *NEEDS)
    if "state" in needs and rows.frame["state"].null_count():
        raise TurnledgerError(
            f"{asks} needs the state of every turn, which these rewards do not have: "
            "rerun turn_rewards"
        )
    for column in (*needs, "outcome"):
        without = rows.counts & rows.frame[column].is_null().to_numpy()
        if without.any():
            raise TurnledgerError(
                f"trajectory {_key_of(rows, without)} has a turn without {column} and without a "
                "reason"
            )


def _key_of(rows: Rows, where: Flags) -> str:
    first = rows.frame.row(int(np.argmax(where)), named=True)
    return ", ".join(f"{name}={first[name]}" for name in TRAJECTORY_KEY)
