"""Weights against mismatch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.optimisation import OptimisationConfig
from stages.optimisation.mismatch import importance_weights

TRUNCATE = OptimisationConfig(mismatch="truncate", mismatch_bound=2.0)
MASK = OptimisationConfig(mismatch="mask", mismatch_bound=2.0)


def weight(log_w: float, config: OptimisationConfig) -> float:
    one = np.ones(1, dtype=np.float32)
    return float(importance_weights(one * np.float32(log_w), one * 0, config)[0])


@pytest.mark.parametrize(
    ("log_w", "truncated", "masked"),
    [(0.0, 1, 1), (0.6, 1.8221, 1.8221), (0.8, 2, 0), (-0.6, 0.5488, 0.5488), (-0.8, 0.4493, 0)],
)
def test_weights_by_hand(log_w: float, truncated: float, masked: float) -> None:
    assert weight(log_w, TRUNCATE) == pytest.approx(truncated, abs=1e-4)
    assert weight(log_w, MASK) == pytest.approx(masked, abs=1e-4)


@settings(deadline=None, max_examples=100)
@given(log_w=st.floats(-80, 80))
def test_no_weight_is_beyond_the_bound(log_w: float) -> None:
    assert 0 <= weight(log_w, TRUNCATE) <= 2
    assert weight(log_w, MASK) in (0, pytest.approx(weight(log_w, TRUNCATE)))
