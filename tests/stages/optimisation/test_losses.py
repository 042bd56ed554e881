"""The clipped surrogate: which tokens have a gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import OptimisationConfig
from stages.optimisation.losses import clipped_token_loss

CONFIG = OptimisationConfig(clip_low=0.2, clip_high=0.28)


def gradient(ratio: float, advantage: float) -> float:
    logprob = torch.tensor([ratio]).double().log().requires_grad_()
    parts = clipped_token_loss(
        logprob, torch.zeros(1).double(), torch.tensor([advantage]).double(), CONFIG
    )
    parts.loss.sum().backward()
    assert logprob.grad is not None
    return float(logprob.grad)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.3, 1.0), (5.0, 0.1), (0.7, -1.0), (0.1, -3)])
def test_beyond_the_bound_of_its_side_a_token_has_no_gradient(
    ratio: float, advantage: float
) -> None:
    assert gradient(ratio, advantage) == 0


@pytest.mark.parametrize(
    ("ratio", "advantage"), [(1.3, -1.0), (0.7, 1.0), (1.27, 2.0), (0.81, -1.0), (1, 0.5)]
)
def test_elsewhere_the_gradient_is_that_of_the_plain_ratio(ratio: float, advantage: float) -> None:
    assert gradient(ratio, advantage) == pytest.approx(-ratio * advantage)


@settings(deadline=None, max_examples=100)
@given(ratio=st.floats(0.05, 10), advantage=st.sampled_from([-5.0, -0.1, 0.0, 0.1, 5.0]))
def test_marks_of_clipping_tell_where_the_gradient_is_gone(ratio: float, advantage: float) -> None:
    parts = clipped_token_loss(
        torch.tensor([ratio]).double().log(),
        torch.zeros(1).double(),
        torch.tensor([advantage]).double(),
        CONFIG,
    )
    clipped = bool(parts.clipped_low | parts.clipped_high)
    assert clipped == (advantage != 0 and gradient(ratio, advantage) == 0)


@settings(deadline=None, max_examples=100)
@given(log_ratio=st.floats(-5, 5))
def test_divergence_is_never_negative(log_ratio: float) -> None:
    one = torch.ones(1).double()
    parts = clipped_token_loss(one * log_ratio, one * 0, one, CONFIG)
    assert float(parts.kl) >= -1e-15
