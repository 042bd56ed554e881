"""The learning rate of a step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.optimisation import OptimisationConfig
from stages.optimisation.schedule import learning_rate


def rates(iterations: int = 4, minibatches: int = 2, **settings: object) -> list[float]:
    config = OptimisationConfig.model_validate(
        {"learning_rate": 1.0, "minibatches": minibatches, **settings}
    )
    places = [i + step / minibatches for i in range(iterations) for step in range(minibatches)]
    return [learning_rate(config, place, iterations) for place in places]


def test_a_constant_rate_is_the_peak() -> None:
    assert rates() == [1.0] * 8


def test_a_linear_rate_falls_by_the_same_each_step_and_is_not_0_at_the_last() -> None:
    assert rates(schedule="linear") == pytest.approx([1 - k / 8 for k in range(8)])


def test_a_cosine_rate_by_hand() -> None:
    expected = [1, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]
    assert rates(schedule="cosine") == pytest.approx(expected, abs=1e-5)


def test_the_warm_up_rises_to_the_peak_and_its_first_step_is_not_lost() -> None:
    found = rates(schedule="linear", warmup_iterations=2)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_beyond_the_end_of_the_run_the_rate_is_that_of_the_end() -> None:
    config = OptimisationConfig(learning_rate=1.0, schedule="cosine")
    assert learning_rate(config, 9.5, 4) == pytest.approx(0)


@settings(deadline=None, max_examples=100)
@given(
    position=st.floats(0, 30),
    warmup=st.integers(0, 9),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_no_rate_is_above_the_peak_or_below_nothing(
    position: float, warmup: int, schedule: str
) -> None:
    config = OptimisationConfig.model_validate(
        {"learning_rate": 1.0, "schedule": schedule, "warmup_iterations": warmup}
    )
    assert 0 <= learning_rate(config, position, 20) <= 1
