"""The measure `codebleu`: CodeBLEU of a code, with the code of the peer as its reference.

    sim(a, p) = (n-gram + weighted n-gram + syntax + data-flow match) / 4        arXiv 2009.10297

by the package `codebleu`, which need not be installed. It is not symmetric, and identical code
scores below 1 where it holds no data flow. Turns that are no Python, or too long or too deep to be
parsed, are left out (see `tree`); code of which nothing is left has similarity 0.
"""

import importlib.util
import logging

import numpy as np
import polars as pl

from schemas.errors import ConfigError
from stages.similarity.tree import parse


def require_code_bleu() -> None:
    """Refuses the measure where its package is missing.

    Raises:
        ConfigError: If so.
    """
    for package in ("codebleu", "tree_sitter_python"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"similarity.measure: codebleu needs the package {package}, which is not "
                "installed: pip install 'turnledger[codebleu]', or take another measure"
            )


class CodeBleuSimilarity:
    """Compares codes by the measure `codebleu`."""

    def __init__(self, parts: pl.Series) -> None:
        """Takes the codes, each as the list of its turns' codes, [codes].

        Raises:
            ConfigError: If the package `codebleu` is missing.
        """
        require_code_bleu()
        self._parts = parts
        # It warns of every reference without data flow, through the root logger.
        logging.getLogger().addFilter(_is_not_of_data_flow)

    def __call__(self, codes: slice, peers: slice) -> np.ndarray:
        """Returns the similarity of each code to each peer, its reference."""
        compared, references = (
            [_python_of(turns) for turns in self._parts[part].to_list()] for part in (codes, peers)
        )
        return np.array(
            [[_code_bleu(code, peer) for peer in references] for code in compared],
            dtype=np.float64,
        )


def _python_of(turns: list[str]) -> str:
    return "\n".join(code for code in turns if parse(code) is not None)


def _code_bleu(code: str, reference: str) -> float:
    from codebleu import calc_codebleu

    if not code or not reference:
        return 0.0
    return float(calc_codebleu([reference], [code], lang="python")["codebleu"])


def _is_not_of_data_flow(record: logging.LogRecord) -> bool:
    return record.module != "dataflow_match"
