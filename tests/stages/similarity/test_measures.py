"""The measures: the laws of each, and slow oracles of those on tokens."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas.config import SimilarityConfig
from stages.similarity import similarity_matrix
from stages.similarity.edit import _characters
from tests.stages.reward_frames import LAW
from tests.stages.similarity.test_tokens import tokens_of

EDIT = SimilarityConfig(measure="edit")
NGRAM = SimilarityConfig(measure="ngram", ngram=3)
TREE = SimilarityConfig(measure="tree")
EMBEDDING = SimilarityConfig(measure="embedding", embedding_path="model")
ALL = {"edit": EDIT, "ngram": NGRAM, "tree": TREE, "embedding": EMBEDDING}
MEASURES = pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())

PIECES = ["x", "y", "=", "+", "1", "print", "(", ")", "\n"]
CODES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map(" ".join)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Counts of the pieces, less their mean: cosines are negative too."""
    counts = np.array([[text.split(" ").count(piece) for piece in PIECES] for text in texts])
    return counts - counts.mean(axis=1, keepdims=True) + 1e-3


def similarity(a: str, b: str, config: SimilarityConfig) -> float:
    return float(similarity_matrix([a], [b], config, embed)[0, 0])


@MEASURES
@LAW
@given(code=CODES)
def test_identical_code_has_similarity_1(config: SimilarityConfig, code: str) -> None:
    assume(tokens_of(code))
    assert similarity(code, code, config) == pytest.approx(1.0, abs=1e-12)


@MEASURES
@LAW
@given(a=CODES, b=CODES)
def test_similarity_is_symmetric_and_within_0_and_1(
    config: SimilarityConfig, a: str, b: str
) -> None:
    assume(tokens_of(a) and tokens_of(b))
    there, back = similarity(a, b, config), similarity(b, a, config)
    assert there == pytest.approx(back, abs=1e-12)
    assert 0.0 <= there <= 1.0


@MEASURES
@LAW
@given(st.lists(CODES, min_size=1, max_size=4), st.lists(CODES, min_size=1, max_size=4))
def test_codes_compared_together_are_compared_as_each_pair_alone(
    config: SimilarityConfig, codes: list[str], peers: list[str]
) -> None:
    assume(all(map(tokens_of, [*codes, *peers])))
    expected = [[similarity(code, peer, config) for peer in peers] for code in codes]
    together = similarity_matrix(codes, peers, config, embed)
    assert together == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("config", [EDIT, NGRAM], ids=["edit", "ngram"])
def test_code_without_common_token_has_similarity_0(config: SimilarityConfig) -> None:
    assert similarity("x = 1", "print(2)", config) == 0.0


def test_edit_similarity_counts_tokens_not_characters() -> None:
    # One of five tokens differs, whatever its length.
    assert similarity("total = 1 + 2", "x = 1 + 2", EDIT) == pytest.approx(0.8)


def test_edit_similarity_tells_more_tokens_apart_than_there_are_small_characters() -> None:
    # The numbers of tokens reach the code points that no string can hold.
    many = " ".join(f"x{number}" for number in range(0xD800 + 10))
    assert similarity(many, many + " y", EDIT) == pytest.approx(1 - 1 / (0xD800 + 11))


def test_edit_similarity_tells_tokens_apart_whatever_their_numbers() -> None:
    numbers = np.array([0, 0xD7FF, 0xD800, 0xFFFF, 0x10F7FF, 0x10F800, 2**40, 0])
    text = _characters(numbers)
    assert len(set(text)) == 7
    assert text[0] == text[-1]


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    if not a or not b:
        return len(a) + len(b)
    rest = distance(a[1:], b[1:])
    if a[0] == b[0]:
        return rest
    return 1 + min(rest, distance(a[1:], b), distance(a, b[1:]))


FEW_TOKENS = st.lists(st.sampled_from("xy+1"), min_size=1, max_size=5)
FEW_CODES = st.lists(FEW_TOKENS, min_size=1, max_size=3)


def joined(codes: list[list[str]]) -> list[str]:
    return [" ".join(tokens) for tokens in codes]


@LAW
@given(FEW_CODES, FEW_CODES)
def test_edit_similarity_is_that_of_a_slow_oracle(
    codes: list[list[str]], peers: list[list[str]]
) -> None:
    expected = [[1 - distance(a, b) / max(len(a), len(b)) for b in peers] for a in codes]
    found = similarity_matrix(joined(codes), joined(peers), EDIT)
    assert found == pytest.approx(np.array(expected))


@LAW
@given(FEW_CODES, FEW_CODES, st.integers(1, 7))
def test_ngram_similarity_is_that_of_a_slow_oracle(
    codes: list[list[str]], peers: list[list[str]], n: int
) -> None:
    def grams(tokens: list[str]) -> Counter[tuple[str, ...]]:
        padded = [""] * (n - 1) + tokens
        return Counter(tuple(padded[i : i + n]) for i in range(len(tokens)))

    def cosine(a: list[str], b: list[str]) -> float:
        p, q = grams(a), grams(b)
        norms = [sum(count**2 for count in counts.values()) ** 0.5 for counts in (p, q)]
        return sum(p[gram] * q[gram] for gram in p) / (norms[0] * norms[1])

    expected = [[cosine(a, b) for b in peers] for a in codes]
    config = SimilarityConfig(measure="ngram", ngram=n)
    found = similarity_matrix(joined(codes), joined(peers), config)
    assert found == pytest.approx(np.array(expected))


def test_ngram_similarity_is_the_cosine_of_counts() -> None:
    # Counts of a, b, c are (2, 1, 0) and (1, 1, 1): 3 / (sqrt 5 sqrt 3).
    config = SimilarityConfig(measure="ngram", ngram=1)
    assert similarity("a a b", "a b c", config) == pytest.approx(3 / 15**0.5)


def test_every_measure_has_a_module_with_its_formula() -> None:
    texts = [path.read_text() for path in Path("stages/similarity").glob("*.py")]
    for measure in SimilarityConfig.model_fields["measure"].annotation.__args__:
        assert sum(f'"""The measure `{measure}`' in text for text in texts) == 1
