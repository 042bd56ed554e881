"""The gain of one policy over another, against sums done by hand."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.accuracy_gain import accuracy_gain


def evaluated(outcomes: dict[str, list[bool | None]], benchmark: str = "held-out") -> pl.DataFrame:
    rows = [
        {"benchmark": benchmark, "task_id": task, "sample_index": index, "correct": correct}
        for task, samples in outcomes.items()
        for index, correct in enumerate(samples)
    ]
    return pl.DataFrame(rows, schema_overrides={"correct": pl.Boolean})


def test_gain_is_the_mean_difference_over_problems() -> None:
    before = evaluated({"a": [True, False], "b": [False, False]})
    after = evaluated({"a": [True, True], "b": [True, False]})
    row = accuracy_gain(before, after).row(0, named=True)
    assert (row["problems"], row["before"], row["after"], row["gain"]) == (2, 0.25, 0.75, 0.5)


def test_a_gain_that_all_problems_share_has_no_spread() -> None:
    before = evaluated({"hard": [False, False], "easy": [True, False]})
    after = evaluated({"hard": [True, False], "easy": [True, True]})
    row = accuracy_gain(before, after).row(0, named=True)
    assert (row["low"], row["high"]) == (0.5, 0.5)


def test_a_problem_without_an_outcome_on_one_side_does_not_count() -> None:
    before = evaluated({"a": [True], "b": [None], "c": [False]})
    after = evaluated({"a": [True], "b": [True], "d": [True]})
    row = accuracy_gain(before, after).row(0, named=True)
    assert (row["problems"], row["gain"]) == (1, 0.0)


def test_nothing_in_common_has_no_gain() -> None:
    row = accuracy_gain(evaluated({"a": [None]}), evaluated({"a": [True]})).row(0, named=True)
    assert row["problems"] == 0
    assert [row[name] for name in ("before", "after", "gain", "low", "high")] == [None] * 5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_the_interval_turns_round_with_the_policies(pairs: list[tuple[bool, bool]]) -> None:
    one = evaluated({str(task): [pair[0]] for task, pair in enumerate(pairs)})
    other = evaluated({str(task): [pair[1]] for task, pair in enumerate(pairs)})
    there = accuracy_gain(one, other).row(0, named=True)
    back = accuracy_gain(other, one).row(0, named=True)
    assert back["gain"] == pytest.approx(-there["gain"])
    assert back["low"] == pytest.approx(-there["high"])
    assert there["low"] <= there["gain"] + 1e-12
    assert there["gain"] <= there["high"] + 1e-12
