"""The measure `ngram`: which short runs of tokens two codes share, wherever these stand.

    sim(a, b) = c_a . c_b / (|c_a| |c_b|)       c: counts of token n-grams, one ending at each token

the cosine of the vector space model (Salton, Wong and Yang, 1975). In front stand n - 1 empty
tokens, so codes shorter than n have n-grams too.
"""

import numpy as np
import polars as pl

from stages.similarity.tokens import TokenNumbers


class NgramSimilarity:
    """Compares codes by the measure `ngram`."""

    def __init__(self, codes: pl.Series, n: int) -> None:
        """Tokenises the codes, [codes]; `n` is the length of an n-gram in tokens."""
        self._tokens = TokenNumbers.of(codes)
        self._n = n

    def __call__(self, codes: slice, peers: slice) -> np.ndarray:
        """Returns the similarity of each code to each peer; the peers follow the codes."""
        tokens = self._tokens.take(slice(codes.start, peers.stop))
        counts = count_rows(_ngrams(tokens, self._n), np.diff(tokens.bounds)).astype(np.float64)
        unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        split = codes.stop - codes.start
        # Rounding takes the cosine of equal vectors slightly above 1.
        cosine: np.ndarray = unit[:split] @ unit[split:].T
        return cosine.clip(0.0, 1.0)


def _ngrams(tokens: TokenNumbers, n: int) -> np.ndarray:
    """Returns the number of the n-gram that ends at each token, from 0, none left out."""
    lengths = np.diff(tokens.bounds)
    position = np.arange(len(tokens.numbers)) - np.repeat(tokens.bounds[:-1], lengths)
    own = tokens.numbers + 1  # 0 is the empty token
    grams = own
    # n-grams longer than the longest code differ by empty tokens alone.
    for back in range(1, min(n, int(lengths.max(initial=1)))):
        before = np.where(position >= back, np.roll(own, back), 0)
        pairs = grams * (own.max(initial=0) + 1) + before
        grams = np.unique(pairs, return_inverse=True)[1]
    return np.unique(grams, return_inverse=True)[1]


def count_rows(kinds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns how often each row holds each kind, [rows, kinds].

    Args:
        kinds: Kinds from 0 on, those of a row next to each other, [all rows' entries].
        lengths: Entries of each row, [rows].
    """
    columns = int(kinds.max(initial=-1)) + 1
    cells = kinds + np.repeat(np.arange(len(lengths)), lengths) * columns
    return np.bincount(cells, minlength=len(lengths) * columns).reshape(len(lengths), columns)
