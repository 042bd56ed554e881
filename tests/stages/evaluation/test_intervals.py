"""Intervals and p-values over problems: against enumeration, known values and laws."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.intervals import (
    MOST_ENUMERATED,
    bootstrap_interval,
    holm,
    sign_flip_p_value,
    typical_interval,
)
from tests.stages.reward_frames import LAW


def enumerated(differences: list[float]) -> float:
    seen = abs(sum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    far = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= seen - 1e-9
        for signs in patterns
    ]
    return sum(far) / len(patterns)


def test_without_values_there_is_no_interval() -> None:
    assert bootstrap_interval(np.array([]), 0) == (None, None)


@LAW
@given(st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=8))
def test_the_p_value_of_few_differences_is_that_of_all_signs(differences: list[float]) -> None:
    found = sign_flip_p_value(np.array(differences), 0)
    assert found == pytest.approx(enumerated(differences))


def test_drawn_signs_come_near_all_signs() -> None:
    differences = [0.25, 0.5, -0.25, 1.0, 0.5, 0.25, -0.5, 0.75, 0.25, 0.5, 0.25, -0.25, 0.5, -1, 1]
    assert len(differences) > MOST_ENUMERATED
    # Five standard errors of 20,000 draws are less than 0.02.
    expected = pytest.approx(enumerated(differences), abs=0.02)
    assert sign_flip_p_value(np.array(differences), 0) == expected


def test_equal_policies_have_p_value_1() -> None:
    assert sign_flip_p_value(np.zeros(50), 0) == 1.0


def test_the_p_value_is_even_where_there_is_no_difference() -> None:
    # Under the hypothesis p-values below 0.1 come about one time in ten.
    luck = np.random.default_rng(3)
    found = [sign_flip_p_value(luck.normal(size=12), 0) for _ in range(300)]
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.05)


def test_a_clear_difference_of_many_problems_is_never_impossible_by_luck() -> None:
    assert 0 < sign_flip_p_value(np.ones(200), 0) < 1e-4


def test_holm_corrects_the_example_of_its_steps() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never falling.
    found = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])


@LAW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_the_value_itself_and_bonferronis(p_values: list[float]) -> None:
    values = np.array(p_values)
    found = holm(values)
    assert (found >= values).all()
    assert (found <= np.minimum(values * len(values), 1)).all()


def test_typical_values_of_three_are_the_means_of_their_subsets() -> None:
    # The seven means are 1, 1.5, 2, 7/3, 2.5, 3 and 4.
    assert typical_interval(np.array([1.0, 2.0, 4.0])) == pytest.approx((1.0, 4.0, 0.75))


def test_eight_values_have_an_interval_that_covers_95_percent() -> None:
    low, high, coverage = typical_interval(np.arange(8.0))
    assert coverage == pytest.approx(1 - 12 / 256)
    assert 0 < low < 3.5 < high < 7


def test_typical_values_cover_the_centre_as_often_as_they_say() -> None:
    draws = np.random.default_rng(3).standard_normal((4_000, 6))
    spans = [typical_interval(values) for values in draws]
    covered = np.mean([low < 0 < high for low, high, _ in spans])
    assert covered == pytest.approx(spans[0][2], abs=0.012)
