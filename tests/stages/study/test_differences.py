"""Arms against a reference: pairing, pooling, correction, and the choice of learning rates."""

import polars as pl
import pytest

from stages.evaluation.intervals import sign_flip_p_value
from stages.study import compare_arms
from stages.study.curves import METRICS
from stages.study.differences import choose_rates, typical_curve

SEEDS = range(1, 9)


def trainings(finals: dict[tuple[str, str], list[float]]) -> pl.DataFrame:
    """One training a task, arm and seed, with the same figure for every metric."""
    return pl.DataFrame(
        [
            {"task": task, "arm": arm, "seed": seed, **dict.fromkeys(METRICS, value)}
            for (task, arm), values in finals.items()
            for seed, value in zip(SEEDS, values, strict=False)
        ]
    )


BASE = [0.1, 0.5, 0.2, 0.4, 0.3, 0.6, 0.7, 0.2]
GAINS = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]
BETTER = [b + g for b, g in zip(BASE, GAINS, strict=True)]


def test_seeds_are_paired() -> None:
    frame = trainings({("mid", "grpo"): BASE, ("mid", "gtpo"): BETTER}).sample(
        fraction=1, shuffle=True, seed=1
    )
    row = (
        compare_arms(frame, "grpo", ["grpo", "gtpo"], ["mid"])
        .filter(metric="final")
        .row(0, named=True)
    )
    assert row["difference"] == pytest.approx(0.045)
    assert row["p_value"] == pytest.approx(2 / 256)
    assert 0.01 < row["low"] < 0.045 < row["high"] < 0.08
    assert row["seeds"] == 8


def test_over_all_tasks_a_seed_counts_by_its_mean() -> None:
    frame = trainings(
        {
            ("one", "grpo"): [0.2, 0.4, 0.9],
            ("one", "gtpo"): [0.3, 0.5],
            ("mid", "grpo"): [0.2, 0.4, 0.9],
            ("mid", "gtpo"): [0.5, 0.7, 0.1],
        }
    )
    pooled = compare_arms(frame, "grpo", ["gtpo"], ["one", "mid"]).filter(
        task="all", metric="final"
    )
    # The third seed of gtpo was not trained on `one`.
    assert pooled["seeds"].item() == 2
    assert pooled["difference"].item() == pytest.approx(0.2)


def test_p_values_are_corrected_within_a_metric() -> None:
    frame = trainings({("mid", "grpo"): BASE, ("mid", "gtpo"): BETTER, ("mid", "same"): list(BASE)})
    compared = compare_arms(frame, "grpo", ["gtpo", "same"], ["mid"])
    final = compared.filter(metric="final")
    assert final["p_corrected"].to_list() == pytest.approx([4 / 256, 1.0])
    assert compared.filter(metric="turns")["p_value"].null_count() == 2


def test_a_metric_that_one_side_lacks_has_no_row() -> None:
    frame = trainings({("mid", "grpo"): BASE, ("mid", "gtpo"): BETTER}).with_columns(
        tokens_to_threshold=pl.when(pl.col("arm") == "grpo").then("tokens_to_threshold")
    )
    compared = compare_arms(frame, "grpo", ["gtpo"], ["mid"])
    assert compared.filter(metric="tokens_to_threshold").is_empty()
    assert len(compared) == len(METRICS) - 1


def test_the_rate_with_the_largest_mean_area_is_chosen() -> None:
    frame = pl.DataFrame(
        {
            "arm": ["a", "a", "a", "a", "b", "b"],
            "learning_rate": [1e-4, 1e-4, 2e-4, 2e-4, 2e-4, 1e-4],
            "area": [0.1, 0.5, 0.2, 0.2, 0.3, 0.3],
        }
    )
    assert choose_rates(frame) == {"a": 1e-4, "b": 1e-4}


def test_a_mean_curve_ends_at_the_budget() -> None:
    frame = pl.DataFrame(
        {
            "task": ["mid"] * 4,
            "arm": ["a"] * 4,
            "seed": [1, 1, 2, 2],
            "iteration": [0, 1, 0, 1],
            "tokens": [0, 100, 0, 200],
            "accuracy": [0.0, 1.0, 0.0, 1.0],
        }
    )
    line = typical_curve(frame, points=3)
    assert line["tokens"].to_list() == [0, 50, 100]
    assert line["accuracy"].to_list() == pytest.approx([0, 0.375, 0.75])


def test_what_the_interval_leaves_out_the_test_rejects() -> None:
    frame = trainings({("mid", "grpo"): BASE, ("mid", "gtpo"): BETTER})
    row = compare_arms(frame, "grpo", ["gtpo"], ["mid"]).row(0, named=True)
    gains = (
        frame.filter(arm="gtpo")["final"].to_numpy() - frame.filter(arm="grpo")["final"].to_numpy()
    )
    bound = 1 - row["coverage"]
    for place, inside in ((row["low"] - 1e-6, False), (row["low"] + 1e-6, True)):
        assert (sign_flip_p_value(gains - place, 0) > bound) == inside
