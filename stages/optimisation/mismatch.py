"""Correction where the policy that an update begins with is not the one that sampled.

The engine computes with other kernels or numbers than the trainer, and a stale rollout comes from
an older policy. Then the ratio compares with the policy that the update begins with (`proximal`),
so that its bounds limit this update alone, and each token is weighted by w = proximal / sampling:
the decoupled objective of Hilton et al., "Batch size-invariance for policy optimization" (arXiv
2110.00641).
"""

import numpy as np
from numpy.typing import NDArray

from schemas.optimisation import OptimisationConfig


def importance_weights(
    proximal: NDArray[np.float32], sampled: NDArray[np.float32], config: OptimisationConfig
) -> NDArray[np.float32]:
    """Returns the weight of every token.

    `truncate` gives min(w, bound): Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training" (2025). `mask` gives w within 1 / bound to bound, and 0 elsewhere: the
    two-sided masking of IcePop (arXiv 2510.18855).

    Args:
        proximal: [tokens] log-probabilities as the update begins.
        sampled: [tokens] log-probabilities when sampled.
        config: Form and bound; not `off`.
    """
    bound = config.mismatch_bound
    weights: NDArray[np.float32] = np.exp(proximal - sampled)
    if config.mismatch == "truncate":
        return np.minimum(weights, np.float32(bound))
    is_inside = (weights >= 1 / bound) & (weights <= bound)
    return np.where(is_inside, weights, np.float32(0))
