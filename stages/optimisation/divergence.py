"""Estimates of the divergence of the policy from another one, token by token."""

from typing import Literal

import torch


def divergence(
    logprobs: torch.Tensor, other_logprobs: torch.Tensor, estimate: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Estimates KL(pi || other) at tokens that pi sampled, [tokens].

    With r = other / pi: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r, of Schulman,
    "Approximating KL divergence" (2020). k1 and k3 have the right mean, k1 with a large variance.
    As a loss k1 does nothing on average, since the mean of its gradient is 0; the gradient of k2
    is that of the divergence; that of k3 comes near it where the policies are near.

    Args:
        logprobs: [tokens] under the policy, with a gradient if it is a loss.
        other_logprobs: [tokens] under the other policy.
        estimate: Which of the three.
    """
    log_r = other_logprobs - logprobs
    if estimate == "k1":
        return -log_r
    if estimate == "k2":
        return log_r.square() / 2
    return log_r.exp() - 1 - log_r
