"""Policy losses by name, token by token.

Notation: rho = exp(log pi - log pi_old) of a token, A the advantage of its turn, clip(rho) the
ratio held between 1 - clip_low and 1 + clip_high (the higher upper bound is DAPO's, arXiv
2503.14476), sg(x) the value of x without its gradient. What is minimised is the loss of the tokens,
each times its weight; see `stages.optimisation.aggregation`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from schemas.optimisation import Loss, OptimisationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a loss is computed from; [tokens] each."""

    logprobs: torch.Tensor  # under the policy being trained, with gradient
    old_logprobs: torch.Tensor  # under the policy that the ratio compares with
    advantages: torch.Tensor  # of the tokens' turns
    trajectories: torch.Tensor  # number of the token's trajectory, from 0 without a gap
    turns: torch.Tensor  # number of the token's turn, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Loss of tokens with what is worth plotting about them; [tokens] each."""

    loss: torch.Tensor
    ratio: torch.Tensor  # what the bounds apply to; no gradient
    clipped_low: torch.Tensor  # the lower bound has changed the gradient
    clipped_high: torch.Tensor  # the upper bound has


def clipped(tokens: Tokens, config: OptimisationConfig) -> PolicyLoss:
    """Computes -min(rho A, clip(rho) A).

    Schulman et al., "Proximal policy optimization algorithms" (arXiv 1707.06347).
    """
    return _clipped(_log_ratio(tokens).exp(), tokens.advantages, config)


def dual_clip(tokens: Tokens, config: OptimisationConfig) -> PolicyLoss:
    """Computes the clipped loss, and -max(min(rho A, clip(rho) A), c A) where A < 0.

    A token that has become much likelier although its turn was bad has no gradient then. Ye et
    al., "Mastering complex control in MOBA games with deep reinforcement learning" (arXiv
    1912.09729); c is `dual_clip`.
    """
    ratio, advantages = _log_ratio(tokens).exp(), tokens.advantages
    single = _clipped(ratio, advantages, config)
    bad = advantages < 0
    most = -config.dual_clip * advantages
    return PolicyLoss(
        loss=torch.where(bad, torch.minimum(single.loss, most), single.loss),
        ratio=single.ratio,
        clipped_low=single.clipped_low,
        clipped_high=single.clipped_high | (bad & (single.ratio > config.dual_clip)),
    )


def gspo(tokens: Tokens, config: OptimisationConfig) -> PolicyLoss:
    """Computes the clipped loss of s = exp(mean log rho) over the trajectory.

    Zheng et al., "Group sequence policy optimization" (arXiv 2507.18071), in the form for
    advantages that differ within a trajectory (GSPO-token): s = sg(s) pi / sg(pi). Where all
    advantages of a trajectory are equal, its gradient is that of the form for sequences.
    """
    return _by_segment(tokens, tokens.trajectories, config)


def gspo_turn(tokens: Tokens, config: OptimisationConfig) -> PolicyLoss:
    """Computes the same with the mean over the token's turn: where credit is given by turns,
    their ratios are clipped by turns.
    """
    return _by_segment(tokens, tokens.turns, config)


def cispo(tokens: Tokens, config: OptimisationConfig) -> PolicyLoss:
    """Computes -sg(clip(rho)) A log pi: no token loses its gradient.

    MiniMax, "MiniMax-M1" (arXiv 2506.13585).
    """
    ratio = _log_ratio(tokens).exp().detach()
    low, high = 1 - config.clip_low, 1 + config.clip_high
    return PolicyLoss(
        loss=-ratio.clamp(low, high) * tokens.advantages * tokens.logprobs,
        ratio=ratio,
        clipped_low=ratio < low,
        clipped_high=ratio > high,
    )


def policy_gradient(tokens: Tokens, config: OptimisationConfig) -> PolicyLoss:
    """Computes -A log pi.

    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
    learning" (Machine Learning 8, 1992). Unbiased for the first step after sampling only.
    """
    never = torch.zeros_like(tokens.advantages, dtype=torch.bool)
    return PolicyLoss(
        loss=-tokens.advantages * tokens.logprobs,
        ratio=_log_ratio(tokens).exp().detach(),
        clipped_low=never,
        clipped_high=never,
    )


LOSSES: dict[Loss, Callable[[Tokens, OptimisationConfig], PolicyLoss]] = {
    "clipped": clipped,
    "dual_clip": dual_clip,
    "gspo": gspo,
    "gspo_turn": gspo_turn,
    "cispo": cispo,
    "policy_gradient": policy_gradient,
}


def _log_ratio(tokens: Tokens) -> torch.Tensor:
    return tokens.logprobs - tokens.old_logprobs


def _by_segment(
    tokens: Tokens, segments: torch.Tensor, config: OptimisationConfig
) -> PolicyLoss:  # fmt: skip
    log_ratio = _log_ratio(tokens)
    counts = segments.bincount()
    with torch.no_grad():
        sums = log_ratio.new_zeros(len(counts)).index_add_(0, segments, log_ratio)
        means = (sums / counts)[segments]
    # The value is the mean's, the gradient the token's own.
    ratio = (means + tokens.logprobs - tokens.logprobs.detach()).exp()
    return _clipped(ratio, tokens.advantages, config)


def _clipped(
    ratio: torch.Tensor, advantages: torch.Tensor, config: OptimisationConfig
) -> PolicyLoss:
    low, high = 1 - config.clip_low, 1 + config.clip_high
    bounded = ratio.clamp(low, high)
    return PolicyLoss(
        loss=-torch.minimum(ratio * advantages, bounded * advantages),
        ratio=ratio.detach(),
        clipped_low=(ratio < low) & (advantages < 0),
        clipped_high=(ratio > high) & (advantages > 0),
    )
