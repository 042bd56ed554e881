"""Optimisation: policy updates from stored tokens, log-probabilities and advantages."""

from stages.optimisation.batches import Batch, make_batch, refuse_other_policies
from stages.optimisation.scoring import score_batch
from stages.optimisation.update import Update, optimise

__all__ = ["Batch", "Update", "make_batch", "optimise", "refuse_other_policies", "score_batch"]
