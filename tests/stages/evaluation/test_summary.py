"""Summary of an evaluation, on numbers computed by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.tables import Evaluations
from stages.evaluation import summarise
from tests.stages.evaluation.evaluation_frames import evaluations_frame
from tests.stages.reward_frames import LAW


def summary(outcomes: Mapping[str, Sequence[bool | None]], **columns: Any) -> dict[str, Any]:
    return summarise(evaluations_frame(outcomes, **columns)).row(0, named=True)


def test_avg_at_k_is_the_mean_over_problems_of_the_share_of_right_samples() -> None:
    # Shares 1/2, 1 and 0 of samples that differ in number: the mean over samples would be 4/7.
    found = summary({"a": [True, False], "b": [True, True, True], "c": [False, False]})
    assert found["avg_at_k"] == pytest.approx(0.5)


def test_pass_at_k_is_the_share_of_problems_with_a_right_sample() -> None:
    found = summary({"a": [True, False], "b": [False, False], "c": [True, True]})
    assert found["pass_at_k"] == pytest.approx(2 / 3)


def test_problems_and_samples_are_counted() -> None:
    found = summary({"a": [True, False], "b": [False, None, True]})
    assert (found["problems"], found["samples"]) == (2, 3)


def test_samples_without_outcome_are_left_out_and_counted() -> None:
    found = summary({"a": [True, None], "b": [False, True]})
    assert found["left_out"] == 1
    assert found["avg_at_k"] == pytest.approx(0.75)
    assert found["pass_at_k"] == 1


def test_a_problem_without_any_outcome_counts_for_neither_mean() -> None:
    found = summary({"a": [True, False], "b": [None, None]})
    assert found["left_out"] == 2
    assert (found["avg_at_k"], found["pass_at_k"]) == (0.5, 1.0)


def test_a_benchmark_without_any_outcome_has_no_mean_and_no_interval() -> None:
    found = summary({"a": [None], "b": [None, None]})
    values = [found[name] for name in ("avg_at_k", "pass_at_k", "low", "high")]
    assert values == [None] * 4
    assert found["left_out"] == 3


def test_calls_are_summarised_over_samples() -> None:
    found = summary({"a": [True, False]}, tool_calls=3, failed_tool_calls=1, turns=4)
    assert found["tool_calls"] == 3
    assert found["failed_tool_call_share"] == pytest.approx(1 / 3)
    assert found["turns"] == 4


def test_the_share_of_failed_calls_is_null_without_calls() -> None:
    assert summary({"a": [True]})["failed_tool_call_share"] is None


def test_benchmarks_are_summarised_apart() -> None:
    one = evaluations_frame({"a": [True, True]})
    other = evaluations_frame({"a": [False]}, benchmark="other")
    both = summarise(pl.concat([one, other]))
    assert both.rows() == summarise(one).rows() + summarise(other).rows()


def test_no_evaluation_gives_a_summary_without_rows() -> None:
    empty = summarise(Evaluations.create_empty())
    assert empty.height == 0
    assert empty.schema == summarise(evaluations_frame({"a": [True]})).schema


@LAW
@given(
    shares=st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=12),
    seed=st.integers(0, 100),
)
def test_the_interval_contains_the_mean(shares: list[list[bool]], seed: int) -> None:
    frame = evaluations_frame({str(i): samples for i, samples in enumerate(shares)})
    found = summarise(frame, seed=seed).row(0, named=True)
    assert 0 <= found["low"] <= found["avg_at_k"] + 1e-12
    assert found["avg_at_k"] - 1e-12 <= found["high"] <= 1 + 1e-12


def test_the_interval_is_that_of_the_normal_law_where_problems_are_many() -> None:
    found = summary({str(i): [i % 2 == 0] for i in range(400)})
    # 1.96 standard errors of the mean of 400 halves: 0.049.
    assert found["low"] == pytest.approx(0.451, abs=0.006)
    assert found["high"] == pytest.approx(0.549, abs=0.006)


def test_the_interval_is_a_function_of_the_seed() -> None:
    frame = evaluations_frame({str(i): [k < i % 7 for k in range(6)] for i in range(53)})
    one, same, other = (summarise(frame, seed=seed)["low", "high"].row(0) for seed in (1, 1, 2))
    assert one == same
    assert one != other
