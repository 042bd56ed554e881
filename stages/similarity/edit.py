"""The measure `edit`: how many tokens stay when one code is edited into the other.

sim(a, b) = 1 - Levenshtein(a, b) / max(|a|, |b|)        on tokens; Levenshtein, 1966
"""

from itertools import pairwise

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from stages.similarity.tokens import TokenNumbers

_SURROGATES = 0xD800, 0x800
"""First of the code points that no string holds, and their number."""
_CHARACTERS = 0x110000 - 0x800
"""Code points that a string holds."""


class EditSimilarity:
    """Compares codes by the measure `edit`."""

    def __init__(self, codes: pl.Series) -> None:
        """Tokenises the codes, [codes]."""
        self._tokens = TokenNumbers.of(codes)

    def __call__(self, codes: slice, peers: slice) -> np.ndarray:
        """Returns the similarity of each code to each peer; the peers follow the codes."""
        tokens = self._tokens.take(slice(codes.start, peers.stop))
        # One character a token: the distance then counts tokens, at the speed of strings. It is
        # fastest for the first characters, and these are the usual tokens.
        text = _characters(tokens.numbers)
        bounds = tokens.bounds.tolist()
        words = [text[a:b] for a, b in pairwise(bounds)]
        split = codes.stop - codes.start
        scores: np.ndarray = cdist(
            words[:split],
            words[split:],
            scorer=Levenshtein.normalized_similarity,
            dtype=np.float64,
        )
        return scores


def _characters(numbers: np.ndarray) -> str:
    """Returns one character a number, equal ones for equal numbers alone."""
    if numbers.max(initial=0) >= _CHARACTERS:
        numbers = np.unique(numbers, return_inverse=True)[1]
    first, count = _SURROGATES
    shifted: np.ndarray = numbers + count * (numbers >= first)
    return str(shifted.astype("<u4").tobytes(), "utf-32-le")
