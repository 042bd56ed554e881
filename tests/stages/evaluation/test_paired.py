"""Two policies on the same problems."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import TurnledgerError
from stages.evaluation.paired import compare_policies
from tests.stages.evaluation.evaluation_frames import evaluations_frame
from tests.stages.reward_frames import LAW


def test_the_difference_is_taken_problem_by_problem() -> None:
    before = evaluations_frame({"a": [True, False], "b": [False, False]})
    after = evaluations_frame({"a": [True, True], "b": [False, True]})
    row = compare_policies(before, after).row(0, named=True)
    assert (row["before"], row["after"], row["difference"]) == (0.25, 0.75, 0.5)
    # Two differences of a half: both signs equal in 2 of 4 patterns.
    assert row["p_value"] == 0.5
    assert (row["low"], row["high"]) == (0.5, 0.5)


def test_problems_of_one_side_are_counted_and_left_out() -> None:
    before = evaluations_frame({"a": [True], "b": [True], "c": [None]})
    after = evaluations_frame({"a": [True], "c": [True], "d": [True]})
    row = compare_policies(before, after).row(0, named=True)
    assert (row["problems"], row["one_sided"], row["difference"]) == (1, 3, 0.0)


def test_pairing_finds_what_the_spread_over_problems_hides() -> None:
    easy = {f"{i:02d}": [i % 2 == 0] * 10 for i in range(40)}
    better = {
        task: [*samples[:-1], True] if not samples[0] else samples for task, samples in easy.items()
    }
    row = compare_policies(evaluations_frame(easy), evaluations_frame(better)).row(0, named=True)
    assert row["difference"] == pytest.approx(0.05)
    assert row["low"] > 0
    assert row["p_value"] < 0.001


def test_p_values_of_several_benchmarks_are_corrected() -> None:
    before = {f"{i}": [False] for i in range(8)}
    after = {f"{i}": [True] for i in range(8)}
    both = [
        pl.concat([evaluations_frame(outcomes), evaluations_frame(outcomes, benchmark="other")])
        for outcomes in (before, after)
    ]
    found = compare_policies(*both)
    assert found["p_value"].to_list() == [2 / 2**8] * 2
    assert found["p_corrected"].to_list() == [4 / 2**8] * 2


def test_a_benchmark_without_a_common_outcome_has_no_figures() -> None:
    before = evaluations_frame({"a": [None], "b": [True]})
    row = compare_policies(before, evaluations_frame({"a": [True]})).row(0, named=True)
    assert (row["problems"], row["one_sided"]) == (0, 2)
    names = ("before", "after", "difference", "low", "high", "p_value", "p_corrected")
    assert [row[name] for name in names] == [None] * 7


def test_policies_without_a_common_benchmark_are_refused() -> None:
    other = evaluations_frame({"a": [True]}, benchmark="other")
    with pytest.raises(TurnledgerError, match="no benchmark in common"):
        compare_policies(evaluations_frame({"a": [True]}), other)


@LAW
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_the_comparison_turns_round_with_the_policies(pairs: list[tuple[bool, bool]]) -> None:
    one, other = (
        evaluations_frame({f"{i:02d}": [pair[side]] for i, pair in enumerate(pairs)})
        for side in (0, 1)
    )
    there = compare_policies(one, other).row(0, named=True)
    back = compare_policies(other, one).row(0, named=True)
    assert there["difference"] == pytest.approx(-back["difference"])
    assert there["low"] == pytest.approx(-back["high"], abs=1e-12)
    assert there["p_value"] == pytest.approx(back["p_value"])
