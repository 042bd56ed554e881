"""The clipped policy objective, token by token."""

from dataclasses import dataclass

import torch

from schemas.config import OptimisationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedLoss:
    """Loss of some tokens with what is worth plotting about them; [tokens] each."""

    loss: torch.Tensor
    ratio: torch.Tensor
    clipped_low: torch.Tensor
    clipped_high: torch.Tensor
    kl: torch.Tensor


def clipped_token_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    config: OptimisationConfig,
) -> ClippedLoss:
    """Computes the clipped surrogate with separate bounds.

    loss = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(log pi - log pi_old):
    Schulman et al., "Proximal policy optimization algorithms" (arXiv 1707.06347), with the
    higher upper bound of DAPO (arXiv 2503.14476). `kl` is the estimate rho - 1 - log rho of the
    divergence from the sampling policy (k3 of Schulman, "Approximating KL divergence").

    Args:
        logprobs: [tokens] under the policy being trained, with gradient.
        old_logprobs: [tokens] under the policy that sampled.
        advantages: [tokens] of the tokens' turns.
        config: Bounds of the ratio.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    with torch.no_grad():
        return ClippedLoss(
            loss=loss,
            ratio=ratio.detach(),
            clipped_low=(ratio < 1 - config.clip_low) & (advantages < 0),
            clipped_high=(ratio > 1 + config.clip_high) & (advantages > 0),
            kl=ratio - 1 - log_ratio,
        )
