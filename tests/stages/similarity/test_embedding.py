"""The measure `embedding`, with embeddings made by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from schemas.config import SimilarityConfig
from schemas.errors import StageError
from stages.similarity import Embed, similarity_matrix

EMBEDDING = SimilarityConfig(measure="embedding", embedding_path="model")


def table(**embeddings: list[float]) -> Embed:
    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([embeddings[text] for text in texts])

    return embed


def test_similarity_is_the_cosine_whatever_the_lengths() -> None:
    embed = table(a=[3.0, 0.0], b=[1.0, 1.0])
    assert similarity_matrix(["a"], ["b"], EMBEDDING, embed)[0, 0] == pytest.approx(0.5**0.5)


def test_a_negative_cosine_counts_0() -> None:
    embed = table(a=[1.0, 0.0], b=[-1.0, 0.1])
    assert similarity_matrix(["a"], ["b"], EMBEDDING, embed)[0, 0] == 0.0


def test_an_embedding_of_zeros_resembles_nothing() -> None:
    embed = table(a=[0.0, 0.0], b=[1.0, 0.0])
    assert similarity_matrix(["a"], ["a", "b"], EMBEDDING, embed).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (np.ones(2), r"array of shape \(2,\) of 2 codes"),
        (np.ones((3, 4)), r"array of shape \(3, 4\) of 2 codes"),
        (np.array([[1.0], [np.nan]]), "not finite"),
    ],
)
def test_what_are_no_embeddings_is_refused(made: np.ndarray, told: str) -> None:
    with pytest.raises(StageError, match=told):
        similarity_matrix(["a"], ["b"], EMBEDDING, lambda texts: made)
