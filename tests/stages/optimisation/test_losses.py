"""Policy losses: which tokens have a gradient, and how large."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.optimisation import OptimisationConfig
from stages.optimisation.losses import LOSSES, PolicyLoss, Tokens

CONFIG = OptimisationConfig(clip_low=0.2, clip_high=0.28, dual_clip=3.0)
ratios, signs = st.floats(0.05, 10), st.sampled_from([-5.0, -0.1, 0.0, 0.1, 5.0])


def of_tokens(
    name: Any, ratio: list[float], advantage: list[float], segments: list[int] | None = None
) -> tuple[PolicyLoss, torch.Tensor]:
    """Returns the loss of tokens, and the gradient in each log-probability."""
    logprobs = torch.tensor(ratio).double().log().requires_grad_()
    numbers = torch.tensor(segments or [0] * len(ratio))
    parts = LOSSES[name](
        Tokens(
            logprobs=logprobs,
            old_logprobs=torch.zeros(len(ratio)).double(),
            advantages=torch.tensor(advantage).double(),
            trajectories=numbers,
            turns=numbers,
        ),
        CONFIG,
    )
    parts.loss.sum().backward()
    assert logprobs.grad is not None
    return parts, logprobs.grad


def gradient(name: Any, ratio: float, advantage: float) -> float:
    return float(of_tokens(name, [ratio], [advantage])[1])


BEYOND = [(1.3, 1.0), (5.0, 0.1), (0.7, -1.0), (0.1, -3)]
WITHIN = [(1.3, -1.0), (0.7, 1.0), (1.27, 2.0), (0.81, -1.0), (1, 0.5)]


@pytest.mark.parametrize("name", ["clipped", "dual_clip", "gspo", "gspo_turn"])
@pytest.mark.parametrize(("ratio", "advantage"), BEYOND)
def test_beyond_the_bound_of_its_side_a_token_has_no_gradient(
    name: str, ratio: float, advantage: float
) -> None:
    assert gradient(name, ratio, advantage) == 0


@pytest.mark.parametrize("name", ["clipped", "dual_clip", "gspo", "gspo_turn"])
@pytest.mark.parametrize(("ratio", "advantage"), WITHIN)
def test_elsewhere_the_gradient_is_that_of_the_plain_ratio(
    name: str, ratio: float, advantage: float
) -> None:
    assert gradient(name, ratio, advantage) == pytest.approx(-ratio * advantage)


@pytest.mark.parametrize(("ratio", "advantage"), BEYOND + WITHIN)
def test_cispo_keeps_every_gradient_with_a_bounded_weight(ratio: float, advantage: float) -> None:
    assert gradient("cispo", ratio, advantage) == pytest.approx(
        -min(max(ratio, 0.8), 1.28) * advantage
    )


@settings(deadline=None, max_examples=50)
@given(ratio=ratios, advantage=signs)
def test_the_policy_gradient_knows_no_ratio(ratio: float, advantage: float) -> None:
    assert gradient("policy_gradient", ratio, advantage) == pytest.approx(-advantage)


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [(2.9, -2, 5.8), (3.1, -2, 0)])
def test_dual_clip_ends_the_gradient_of_bad_turns_at_its_bound(
    ratio: float, advantage: float, expected: float
) -> None:
    assert gradient("dual_clip", ratio, advantage) == pytest.approx(expected)
    assert gradient("clipped", ratio, advantage) == pytest.approx(-ratio * advantage)


@settings(deadline=None, max_examples=100)
@given(ratio=ratios, advantage=signs)
@pytest.mark.parametrize("name", ["clipped", "dual_clip", "gspo"])
def test_marks_of_clipping_tell_where_the_gradient_is_gone(
    name: str, ratio: float, advantage: float
) -> None:
    parts, found = of_tokens(name, [ratio], [advantage])
    clipped = bool(parts.clipped_low | parts.clipped_high)
    assert clipped == (advantage != 0 and float(found) == 0)


def test_gspo_bounds_the_mean_over_the_segment() -> None:
    # Each token is out of bounds by itself, their geometric mean is not.
    parts, found = of_tokens("gspo", [2.0, 0.5, 4.0], [1.0, 1.0, 1.0], [0, 0, 1])
    assert parts.ratio.tolist() == pytest.approx([1, 1, 4])
    assert found.tolist() == pytest.approx([-1, -1, 0])


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=8), cut=st.integers(0, 8))
def test_gspo_ratios_are_geometric_means(values: list[float], cut: int) -> None:
    segments = [int(i >= cut) for i in range(len(values))]
    segments = [s - min(segments) for s in segments]  # without a gap
    parts, _ = of_tokens("gspo_turn", [math.exp(v) for v in values], [0.5] * len(values), segments)
    for value, number in zip(parts.ratio.tolist(), segments, strict=True):
        own = [v for v, s in zip(values, segments, strict=True) if s == number]
        assert value == pytest.approx(math.exp(sum(own) / len(own)))
