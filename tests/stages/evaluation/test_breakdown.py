"""Accuracy by level and turns, and what samples cost."""

import polars as pl
import pytest

from stages.evaluation.breakdown import accuracy_by, use_of_samples
from tests.stages.evaluation.evaluation_frames import evaluations_frame


def test_accuracy_by_level_is_over_samples_with_an_outcome() -> None:
    frame = evaluations_frame({"a": [True, False, None], "b": [True, True]}).with_columns(
        level=pl.Series([1, 1, 1, 2, 2], dtype=pl.Int32)
    )
    found = accuracy_by(frame, "level").drop("benchmark").rows()
    assert found == [(1, 1, 2, 0.5), (2, 1, 2, 1.0)]


def test_a_benchmark_without_levels_has_no_rows() -> None:
    assert accuracy_by(evaluations_frame({"a": [True]}), "level").is_empty()


def test_use_is_a_mean_over_samples_and_failures_one_over_calls() -> None:
    frame = evaluations_frame({"a": [True, False, False, False]}).with_columns(
        tool_calls=pl.Series([3, 1, 0, 0], dtype=pl.Int32),
        failed_tool_calls=pl.Series([1, 0, 0, 0], dtype=pl.Int32),
        tokens=pl.Series([10, 20, 30, 40], dtype=pl.Int64),
        prediction=pl.Series(["7", None, None, "8"]),
    )
    row = use_of_samples(frame).row(0, named=True)
    assert row["tool_calls"] == 1
    assert row["tool_use_share"] == 0.5
    assert row["failed_tool_call_share"] == pytest.approx(1 / 4)
    assert (row["tokens"], row["tokens_in_all"]) == (25, 100)
    assert row["no_answer_share"] == 0.5


def test_the_share_of_failed_calls_is_null_without_calls() -> None:
    found = use_of_samples(evaluations_frame({"a": [True]}))
    assert found["failed_tool_call_share"].to_list() == [None]
