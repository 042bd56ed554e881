"""The measure `embedding`: the cosine of two codes in the space of a text-embedding model.

    sim(a, b) = max(0, e_a . e_b / (|e_a| |e_b|))            e: embedding; arXiv 2511.14846

This is the paper's measure, with a model of one's own in the place of a hosted one. The text that
is embedded is the code as it was written, comments included. The model is handed in as a function;
this module opens none.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl

from schemas.errors import StageError


class Embed(Protocol):
    """Returns the embedding of each text, [texts, dimensions]; equal texts have equal ones."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts."""


class EmbeddingSimilarity:
    """Compares codes by the measure `embedding`."""

    def __init__(self, codes: pl.Series, embed: Embed) -> None:
        """Embeds each distinct one of the codes once, [codes].

        Raises:
            StageError: If what `embed` returns are no embeddings of these codes.
        """
        # In an order of their own: that of the trajectories must not decide the last bits.
        distinct = codes.unique().sort()
        embeddings = np.asarray(embed(distinct.to_list()), dtype=np.float64)
        if embeddings.ndim != 2 or len(embeddings) != len(distinct):
            raise StageError(
                f"the embedding model made an array of shape {embeddings.shape} of "
                f"{len(distinct)} codes: one row a code is needed"
            )
        if not np.isfinite(embeddings).all():
            raise StageError("the embedding model made numbers that are not finite")
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        self._units = embeddings / np.where(norms > 0, norms, 1.0)
        self._rows = distinct.search_sorted(codes).to_numpy()

    def __call__(self, codes: slice, peers: slice) -> np.ndarray:
        """Returns the similarity of each code to each peer."""
        cosine: np.ndarray = self._units[self._rows[codes]] @ self._units[self._rows[peers]].T
        return cosine.clip(0.0, 1.0)
