"""pass@k and maj@k against all subsets of the samples."""

import itertools
from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.at_k import accuracy_at_k
from tests.stages.evaluation.evaluation_frames import evaluations_frame
from tests.stages.reward_frames import LAW

Classes = list[int | None]
"""Answer class of each sample of a problem: 0 is right, null without an answer."""


def at_k(problems: list[Classes]) -> dict[int, dict[str, Any]]:
    frame = evaluations_frame({f"{i:03d}": [c == 0 for c in p] for i, p in enumerate(problems)})
    classes = pl.Series([c for p in problems for c in p], dtype=pl.Int32)
    found = accuracy_at_k(frame.with_columns(answer_class=classes))
    return {row["k"]: row for row in found.iter_rows(named=True)}


def passed(classes: Classes, k: int) -> float:
    subsets = list(itertools.combinations(classes, k))
    return sum(0 in subset for subset in subsets) / len(subsets)


def voted(classes: Classes, k: int) -> float:
    def vote(subset: tuple[int | None, ...]) -> float:
        counts = Counter(c for c in subset if c is not None)
        most = max(counts.values(), default=0)
        winners = [c for c, count in counts.items() if count == most]
        return (0 in winners) / len(winners) if winners else 0.0

    subsets = list(itertools.combinations(classes, k))
    return sum(map(vote, subsets)) / len(subsets)


PROBLEMS = st.lists(
    st.lists(st.sampled_from([None, 0, 1, 2]), min_size=5, max_size=5), min_size=1, max_size=3
)


@LAW
@given(PROBLEMS)
def test_pass_at_k_is_that_of_all_subsets(problems: list[Classes]) -> None:
    found = at_k(problems)
    assert sorted(found) == [1, 2, 4, 5]
    for k, row in found.items():
        expected = sum(passed(p, k) for p in problems) / len(problems)
        assert row["pass_at_k"] == pytest.approx(expected)


@LAW
@given(PROBLEMS)
def test_maj_at_k_is_that_of_all_subsets(problems: list[Classes]) -> None:
    for k, row in at_k(problems).items():
        expected = sum(voted(p, k) for p in problems) / len(problems)
        assert row["maj_at_k"] == pytest.approx(expected)


def test_maj_at_k_of_many_samples_comes_near_that_of_all_subsets() -> None:
    classes: Classes = [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, None, None]
    # 3,003 sets of 8, of which 500 are drawn: four standard errors of a half are below 0.09.
    assert at_k([classes])[8]["maj_at_k"] == pytest.approx(voted(classes, 8), abs=0.09)


def test_a_tie_of_a_right_and_a_wrong_answer_counts_half() -> None:
    assert at_k([[0, 0, 1, 1]])[4]["maj_at_k"] == 0.5


def test_a_minority_of_right_answers_passes_and_loses_the_vote() -> None:
    row = at_k([[0, 1, 1, 1]])[4]
    assert (row["pass_at_k"], row["maj_at_k"]) == (1.0, 0.0)


def test_only_problems_with_enough_samples_count() -> None:
    found = at_k([[0, 0, 0, 0], [1]])
    assert (found[1]["problems"], found[1]["pass_at_k"]) == (2, 0.5)
    assert (found[4]["problems"], found[4]["pass_at_k"]) == (1, 1.0)


def test_samples_without_outcome_are_left_out() -> None:
    frame = evaluations_frame({"a": [True, None, False]}).with_columns(
        answer_class=pl.Series([0, None, 1], dtype=pl.Int32)
    )
    assert accuracy_at_k(frame)["k"].to_list() == [1, 2]


def test_nothing_right_anywhere_is_zero_with_an_interval_of_zero() -> None:
    row = at_k([[None, None], [1, 2]])[2]
    names = ("pass_at_k", "pass_low", "pass_high", "maj_at_k", "maj_low", "maj_high")
    assert [row[name] for name in names] == [0.0] * 6


def test_no_evaluation_gives_no_rows() -> None:
    empty = evaluations_frame({"a": [None]}).with_columns(answer_class=pl.lit(None, dtype=pl.Int32))
    assert accuracy_at_k(empty).is_empty()
