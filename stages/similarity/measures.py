"""The measures by name. To add one, write its module and give it a line in `make_measure`."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl

from schemas.config import SimilarityConfig
from stages.similarity.code_bleu import CodeBleuSimilarity, require_code_bleu
from stages.similarity.edit import EditSimilarity
from stages.similarity.embedding import Embed, EmbeddingSimilarity
from stages.similarity.ngrams import NgramSimilarity
from stages.similarity.tree import TreeSimilarity


class Measure(Protocol):
    """A measure of likeness, ready to compare the codes that it was made with."""

    def __call__(self, codes: slice, peers: slice) -> np.ndarray:
        """Returns the similarity, 0 to 1, of each code to each peer, [codes, peers].

        Args:
            codes: Positions of codes, neighbours of each other.
            peers: Likewise, beginning where the codes end.
        """


def require_measure(config: SimilarityConfig) -> None:
    """Refuses a measure whose package is missing.

    Raises:
        ConfigError: If so, saying what to install.
    """
    if config.measure == "codebleu":
        require_code_bleu()


def make_measure(parts: pl.Series, config: SimilarityConfig, embed: Embed | None) -> Measure:
    """Prepares codes to be compared with each other.

    Args:
        parts: Codes, each as the list of its turns' codes, which holds a token at least.
        config: The measure, and n of its n-grams.
        embed: Embedding model of the measure `embedding`; the others need none.

    Raises:
        ConfigError: If the measure needs a package that is not installed.
        StageError: If the embedding model makes no embeddings.
    """
    match config.measure:
        case "tree":
            return TreeSimilarity(parts)
        case "codebleu":
            return CodeBleuSimilarity(parts)
    codes = parts.list.join("\n")
    match config.measure:
        case "ngram":
            return NgramSimilarity(codes, config.ngram)
        case "embedding":
            if embed is None:
                raise ValueError("the measure embedding needs an embedding model")
            return EmbeddingSimilarity(codes, embed)
    return EditSimilarity(codes)


def similarity_matrix(
    codes: Sequence[str],
    peers: Sequence[str],
    config: SimilarityConfig,
    embed: Embed | None = None,
) -> np.ndarray:
    """Returns the similarity, 0 to 1, of each code to each peer, [codes, peers].

    Args:
        codes: Code with at least one token each, so not only comments.
        peers: Likewise; one at least.
        config: The measure, and n of its n-grams.
        embed: Embedding model of the measure `embedding`; the others need none.

    Raises:
        ConfigError: If the measure needs a package that is not installed.
        StageError: If the embedding model makes no embeddings.
    """
    parts = pl.Series([[code] for code in (*codes, *peers)], dtype=pl.List(pl.String))
    measure = make_measure(parts, config, embed)
    return measure(slice(0, len(codes)), slice(len(codes), len(parts)))
