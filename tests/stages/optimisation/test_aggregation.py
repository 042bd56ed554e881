"""Weights of tokens in the loss of a step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.optimisation import OptimisationConfig
from stages.optimisation.aggregation import token_weights
from tests.stages.optimisation.optimisation_batches import ragged_batch, replaced

# Three trajectories of two, four and one trained tokens.
BATCH = replaced(
    ragged_batch([3, 6, 2]),
    trained=np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1], dtype=np.bool_),
)


@pytest.mark.parametrize(
    ("aggregation", "first", "second"),
    [
        ("token_mean", 1 / 6, 1 / 6),
        ("sequence_mean", 1 / 4, 1 / 8),
        ("constant_length", 0.05, 0.05),
    ],
)
def test_weights_by_hand(aggregation: str, first: float, second: float) -> None:
    config = OptimisationConfig.model_validate({"aggregation": aggregation, "constant_tokens": 10})
    weights = token_weights(BATCH, np.array([1, 0]), config)
    expected = [0, first, first, 0, second, second, second, 0, second, 0, 0]
    assert weights.tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=8), seed=st.integers(0, 99))
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_means_have_weights_that_add_up_to_one(
    aggregation: str, lengths: list[int], seed: int
) -> None:
    batch = ragged_batch(lengths, seed=seed)
    config = OptimisationConfig.model_validate({"aggregation": aggregation})
    weights = token_weights(batch, np.arange(len(batch)), config)
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    assert not weights[~batch.trained].any()
