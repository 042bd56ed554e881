"""Optimisation: clipped policy updates from stored tokens, log-probabilities and advantages."""

from stages.optimisation.batches import Batch, make_batch
from stages.optimisation.update import optimise

__all__ = ["Batch", "make_batch", "optimise"]
