"""What the trainings of a study say: `curves` sums each one up, `differences` compares arms.

A training is told by its task, its arm and its seed. Arms are compared at equal budgets of sampled
tokens, paired by seed: the same cold start, the same problems, the same luck.
"""

from stages.study.curves import summarise_trainings
from stages.study.differences import compare_arms

__all__ = ["compare_arms", "summarise_trainings"]
