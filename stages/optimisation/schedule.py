"""The learning rate of a step, from where in the run it stands."""

import math

from schemas.optimisation import OptimisationConfig


def learning_rate(config: OptimisationConfig, position: float, iterations: int) -> float:
    """Returns the rate: it rises with the warm-up, stays or falls after, and needs no state.

    `linear` falls as 1 - f, `cosine` as (1 + cos(pi f)) / 2, with f the share of what follows the
    warm-up. A step past the end of the run, such as that of a run that was lengthened, has the
    rate of the end.

    Args:
        config: Peak rate, schedule, warm-up.
        position: Iterations done when the step begins, counted in fractions within an iteration.
        iterations: Iterations of the run.
    """
    warmup = config.warmup_iterations
    if position < warmup:
        # A step counts as done, else the first one would be lost.
        share = (position + 1 / config.minibatches) / warmup
        return config.learning_rate * min(1.0, share)
    done = min(1.0, (position - warmup) / max(iterations - warmup, 1))
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate
