"""The measure `codebleu`, where its package is installed."""

import importlib.util

import pytest

from schemas.config import SimilarityConfig
from schemas.errors import ConfigError
from stages.similarity import similarity_matrix

CODEBLEU = SimilarityConfig(measure="codebleu")
IS_INSTALLED = all(map(importlib.util.find_spec, ("codebleu", "tree_sitter_python")))
needs_package = pytest.mark.skipif(not IS_INSTALLED, reason="the package codebleu is missing")

CODE = "def f(x):\n    y = x + 1\n    return y\nprint(f(3))"
OTHER = "total = 0\nfor i in range(10):\n    total += i\nprint(total)"


@needs_package
def test_similarity_is_what_the_package_says() -> None:
    from codebleu import calc_codebleu

    expected = calc_codebleu([OTHER], [CODE], lang="python")["codebleu"]
    assert 0 < expected < 1
    scores = similarity_matrix([CODE, OTHER], [OTHER], CODEBLEU)
    assert scores.tolist() == [[pytest.approx(expected)], [1.0]]


@needs_package
@pytest.mark.parametrize("code", ["a = (", "1+" * 9_000 + "1", "a = 1\n" * 200_000])
def test_code_without_a_tree_has_similarity_0(code: str) -> None:
    assert similarity_matrix([code, CODE], [CODE, code], CODEBLEU).tolist() == [[0, 0], [1, 0]]


@pytest.mark.skipif(IS_INSTALLED, reason="the package codebleu is installed")
def test_a_missing_package_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"similarity\.measure: codebleu needs the package"):
        similarity_matrix([CODE], [OTHER], CODEBLEU)
