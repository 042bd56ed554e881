"""Estimators side by side: what each pays for, and where they agree."""

import polars as pl
import pytest

from schemas.config import AdvantagesConfig
from schemas.tables import TURN_KEY
from stages.advantages import ESTIMATORS, estimate_advantages
from stages.estimators_compared import (
    agreement,
    biases,
    credit_by_estimator,
    estimators_side_by_side,
    mean_credit,
)
from tests.stages.reward_frames import shaped_frame

RIGHT = [("a", 0), ("a", 1), ("b", 0)]
SHAPED = shaped_frame(
    {"a": [[0, 0, 1], [1], [0, -0.1], [0]], "b": [[0, 1], [0, 0, 0], [-0.1]]}, right=RIGHT
)
BASE = AdvantagesConfig(gamma=0.9, groups_without_outcome_variance="keep")
SETTINGS = estimators_side_by_side(BASE)
CREDIT = credit_by_estimator(SHAPED, SETTINGS)
BIASES = {row["estimator"]: row for row in biases(CREDIT, list(SETTINGS)).iter_rows(named=True)}


def test_every_estimator_stands_beside_the_others() -> None:
    assert {config.estimator for config in SETTINGS.values()} == set(ESTIMATORS)
    assert CREDIT.columns == [*TURN_KEY, "outcome", "turns", *SETTINGS]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_column_is_what_the_estimator_alone_gives(name: str) -> None:
    alone = estimate_advantages(SHAPED, SETTINGS[name])
    assert CREDIT[name].to_list() == alone["advantage"].to_list()
    assert CREDIT.select(TURN_KEY).equals(alone.select(TURN_KEY))


def test_settings_that_all_share_are_those_of_the_base() -> None:
    base = AdvantagesConfig(gamma=0.5, turn_weight=0.3, normalise="batch", scale="off")
    for config in estimators_side_by_side(base).values():
        assert (config.gamma, config.turn_weight, config.scale) == (0.5, 0.3, "std")


def test_gtpo_pays_for_being_short_and_for_being_late() -> None:
    assert BIASES["gtpo"]["turn_count_bias"] < -0.01
    assert BIASES["gtpo"]["turn_index_bias"] > 0.01


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_one_reward_a_trajectory_pays_for_neither(name: str) -> None:
    assert BIASES[name]["turn_count_bias"] == pytest.approx(0, abs=1e-12)
    assert BIASES[name]["turn_index_bias"] == pytest.approx(0, abs=1e-12)


def test_a_length_conditioned_baseline_does_not_pay_for_being_short() -> None:
    assert BIASES["gtpo_length"]["turn_count_bias"] == pytest.approx(0, abs=1e-12)


def test_biases_have_the_unit_of_the_estimators_own_deviation() -> None:
    doubled = CREDIT.with_columns(double=2 * pl.col("gtpo"))
    one, two = biases(doubled, ["gtpo", "double"]).iter_rows(named=True)
    assert two["deviation"] == pytest.approx(2 * one["deviation"])
    assert two["turn_count_bias"] == pytest.approx(one["turn_count_bias"])


def test_agreement_of_an_estimator_with_its_opposite() -> None:
    opposite = CREDIT.with_columns(opposite=-pl.col("gtpo"))
    (row,) = agreement(opposite, [("gtpo", "opposite")]).iter_rows(named=True)
    assert (row["turns"], row["same_sign"]) == (CREDIT.height, 0.0)
    assert row["correlation"] == pytest.approx(-1.0)


def test_agreement_is_over_turns_that_both_credit() -> None:
    partly = CREDIT.with_columns(partly=pl.when(pl.col("task_id") == "a").then("gtpo"))
    (row,) = agreement(partly, [("gtpo", "partly")]).iter_rows(named=True)
    assert row["turns"] == CREDIT.filter(task_id="a").height
    none = CREDIT.with_columns(none=pl.lit(None, pl.Float64))
    (row,) = agreement(none, [("gtpo", "none")]).iter_rows(named=True)
    assert (row["turns"], row["correlation"], row["same_sign"]) == (0, None, None)


def test_mean_credit_is_the_mean_of_its_turns() -> None:
    means = mean_credit(CREDIT, ["gtpo", "grpo"])
    one = means.filter(estimator="gtpo", outcome="right", by="turn_index", value=0)
    firsts = CREDIT.filter((pl.col("turn_index") == 0) & (pl.col("outcome") == "right"))
    assert one["count"].to_list() == [3]
    assert one["advantage"].item() == pytest.approx(firsts["gtpo"].mean())
