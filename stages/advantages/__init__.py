"""Advantages: the credit of every turn, by GTPO and, on the same stored rows, by its neighbours."""

from stages.advantages.estimators import ESTIMATORS
from stages.advantages.stage import estimate_advantages

__all__ = ["ESTIMATORS", "estimate_advantages"]
