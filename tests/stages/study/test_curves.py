"""Figures of trainings: at equal budgets, against sums by hand."""

import polars as pl
import pytest

from stages.study import summarise_trainings
from stages.study.curves import CURVES_SCHEMA


def curves(*trainings: tuple[str, list[int], list[float]]) -> pl.DataFrame:
    rows = [
        ("mid", arm, 1, iteration, token, value, None if iteration == 0 else 0.5, 1.0, 2.0)
        for arm, tokens, accuracy in trainings
        for iteration, (token, value) in enumerate(zip(tokens, accuracy, strict=True))
    ]
    return pl.DataFrame(rows, schema=CURVES_SCHEMA, orient="row")


def figure(summary: pl.DataFrame, arm: str, name: str) -> float | None:
    value: float | None = summary.filter(arm=arm)[name].item()
    return value


def test_every_training_of_a_task_is_read_at_the_fewest_tokens() -> None:
    summary = summarise_trainings(
        curves(("a", [0, 100, 200], [0.0, 0.4, 0.8]), ("b", [0, 150], [0.0, 0.6])), {}
    )
    assert summary["budget"].to_list() == [150, 150]
    assert figure(summary, "a", "final") == pytest.approx(0.6)
    assert figure(summary, "b", "final") == pytest.approx(0.6)


def test_the_area_is_the_mean_of_the_line_up_to_the_budget() -> None:
    summary = summarise_trainings(
        curves(("a", [0, 100, 200], [0.0, 0.4, 0.8]), ("b", [0, 50, 150], [0.2, 0.2, 0.5])), {}
    )
    assert figure(summary, "a", "area") == pytest.approx(0.3)
    assert figure(summary, "b", "area") == pytest.approx((50 * 0.2 + 100 * 0.35) / 150)


def test_the_threshold_is_reached_between_two_evaluations() -> None:
    summary = summarise_trainings(
        curves(("a", [0, 100, 200], [0.1, 0.3, 0.7]), ("b", [0, 200], [0.0, 0.2])), {"mid": 0.5}
    )
    assert figure(summary, "a", "tokens_to_threshold") == pytest.approx(150)
    assert figure(summary, "b", "tokens_to_threshold") is None


def test_a_policy_that_calls_no_tool_does_not_count_for_failing_calls() -> None:
    summary = summarise_trainings(curves(("a", [0, 100], [0.1, 0.3])), {})
    assert figure(summary, "a", "failed_calls") == 0.5
