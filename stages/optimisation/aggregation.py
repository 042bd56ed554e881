"""How the losses of tokens become one number: a weight for each token, known before any forward
pass.

So the gradient of micro-batches, or of several devices, adds up to that of the whole step.
"""

import numpy as np
from numpy.typing import NDArray

from schemas.optimisation import OptimisationConfig
from stages.optimisation.batches import Batch


def token_weights(
    batch: Batch, trajectories: NDArray[np.int64], config: OptimisationConfig
) -> NDArray[np.float32]:
    """Returns the weight of every token in the loss of a step; 0 where nothing is trained.

    With N trajectories of |y_i| trained tokens: `token_mean` 1 / sum_i |y_i| (DAPO, arXiv
    2503.14476), `sequence_mean` 1 / (N |y_i|) (GRPO, arXiv 2402.03300), `constant_length`
    1 / (N `constant_tokens`) (Dr. GRPO, arXiv 2503.20783).

    Args:
        batch: What the trajectories are of.
        trajectories: Those of the step; at least one.
        config: The aggregation.

    Returns:
        [tokens] of the batch.
    """
    counts = batch.trained_lengths[trajectories]
    if config.aggregation == "token_mean":
        of_trajectory = np.full(len(trajectories), 1 / counts.sum())
    elif config.aggregation == "sequence_mean":
        of_trajectory = 1 / (len(trajectories) * counts)
    else:
        share = 1 / (len(trajectories) * config.constant_tokens)
        of_trajectory = np.full(len(trajectories), share)
    weights = np.zeros(len(batch.token_ids), dtype=np.float32)
    weights[batch.places(trajectories)] = np.repeat(of_trajectory, counts)
    return weights
