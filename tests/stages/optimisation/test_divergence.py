"""Estimates of the divergence against sums over whole distributions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.optimisation.divergence import divergence

torch.manual_seed(0)
LOGITS, OTHER = torch.randn(7).double(), torch.randn(7).double()


@settings(deadline=None, max_examples=100)
@given(ours=st.floats(-9, 0), theirs=st.floats(-9, 0), estimate=st.sampled_from(["k2", "k3"]))
def test_k2_and_k3_are_never_negative(ours: float, theirs: float, estimate: str) -> None:
    one = torch.ones(1).double()
    assert float(divergence(one * ours, one * theirs, estimate)) >= -1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("estimate", ["k1", "k3"])
def test_the_mean_of_k1_and_k3_is_the_divergence(estimate: str) -> None:
    ours, theirs = LOGITS.log_softmax(0), OTHER.log_softmax(0)
    exact = (ours.exp() * (ours - theirs)).sum()
    mean = (ours.exp() * divergence(ours, theirs, estimate)).sum()  # type: ignore[arg-type]
    assert float(mean) == pytest.approx(float(exact))


def gradient_of_mean(estimate: str) -> torch.Tensor:
    """Averages the gradients of single tokens over the distribution, as a loss on samples does."""
    logits = LOGITS.clone().requires_grad_()
    ours = logits.log_softmax(0)
    each = divergence(ours, OTHER.log_softmax(0), estimate)  # type: ignore[arg-type]
    (ours.exp().detach() * each).sum().backward()
    assert logits.grad is not None
    return logits.grad


def test_as_a_loss_k2_has_the_gradient_of_the_divergence_and_k1_none() -> None:
    logits = LOGITS.clone().requires_grad_()
    ours = logits.log_softmax(0)
    (ours.exp() * (ours - OTHER.log_softmax(0))).sum().backward()
    assert logits.grad is not None
    assert torch.allclose(gradient_of_mean("k2"), logits.grad)
    assert gradient_of_mean("k1").abs().max() < 1e-12
