"""Similarity (shaping): a wrong trajectory earns a part for code that resembles right code.

`shaping` has the formula, `measures` the ways to compare code by name; each measure has a module of
its own, with its formula. `report` says what shaping did; the stage does not need it.
"""

from stages.similarity.embedding import Embed
from stages.similarity.measures import require_measure, similarity_matrix
from stages.similarity.shaping import shape_rewards

__all__ = ["Embed", "require_measure", "shape_rewards", "similarity_matrix"]
