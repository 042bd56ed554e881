"""The distribution that is sampled from, against its definition token by token."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.distribution import entropy_of, log_distribution
from tests.stages.rollout.rollout_policies import cut_slowly

LOGITS = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=9, unique=True)


@settings(deadline=None, max_examples=200)
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.integers(0, 10),
)
def test_what_is_left_is_what_the_definitions_leave(
    logits: list[float], temperature: float, top_p: float, top_k: int
) -> None:
    assume(min(b - a for a, b in pairwise(sorted(logits))) > 1e-3)
    whole = (torch.tensor(logits).double() / temperature).softmax(-1).tolist()
    left = sorted(whole, reverse=True)[: top_k or None]
    shares = [sum(left[:count]) / sum(left) for count in range(len(left) + 1)]
    assume(all(abs(share - top_p) > 1e-6 for share in shares[:-1]))  # else rounding decides
    got = log_distribution(
        torch.tensor([logits]), temperature=temperature, top_p=top_p, top_k=top_k
    )
    assert got[0].exp().tolist() == pytest.approx(cut_slowly(whole, top_p, top_k), abs=1e-5)


def test_every_row_may_have_its_own_settings() -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    together = log_distribution(
        logits,
        temperature=torch.tensor([1.0, 0.7, 2.0]),
        top_p=torch.tensor([1.0, 0.5, 0.9]),
        top_k=torch.tensor([0, 0, 4]),
    )
    for row, (temperature, top_p, top_k) in enumerate(
        [(1.0, 1.0, 0), (0.7, 0.5, 0), (2.0, 0.9, 4)]
    ):
        alone = log_distribution(
            logits[row : row + 1], temperature=temperature, top_p=top_p, top_k=top_k
        )
        assert together[row].tolist() == pytest.approx(alone[0].tolist())


def test_a_kept_token_is_never_cut() -> None:
    logits = torch.tensor([[4.0, 3.0, 0.0, -4.0]])
    cut = log_distribution(logits, temperature=1.0, top_k=1)[0]
    kept = log_distribution(logits, temperature=1.0, top_k=1, kept=torch.tensor([3]))[0]
    assert cut.exp().tolist() == [1, 0, 0, 0]
    both = math.exp(4) + math.exp(-4)
    assert kept.exp().tolist() == pytest.approx([math.exp(4) / both, 0, 0, math.exp(-4) / both])


def test_entropy_counts_what_is_left() -> None:
    logits = torch.tensor([[1.0, 1.0, -9.0], [0.0, 0.0, 0.0]])
    log_probabilities = log_distribution(logits, temperature=1.0, top_k=torch.tensor([2, 0]))
    assert entropy_of(log_probabilities).tolist() == pytest.approx([math.log(2), math.log(3)])


def test_entropy_has_the_gradient_of_what_is_left() -> None:
    logits = torch.tensor([[1.0, 0.5, -9.0, 2.0]], requires_grad=True)
    entropy_of(log_distribution(logits, temperature=0.7, top_k=3)).sum().backward()
    left = torch.tensor([[1.0, 0.5, 2.0]], requires_grad=True)
    entropy_of(log_distribution(left, temperature=0.7)).sum().backward()
    assert logits.grad is not None
    assert left.grad is not None
    first, second, third = left.grad[0].tolist()
    assert logits.grad[0].tolist() == pytest.approx([first, second, 0.0, third])
