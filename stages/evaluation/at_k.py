"""Accuracy with several samples a problem: pass@k and maj@k for every k up to the samples there.

pass@k of a problem with n samples of which c are right (Chen et al., "Evaluating Large Language
Models Trained on Code", 2021, equation 1), the unbiased estimator:

    pass@k = 1 - C(n - c, k) / C(n, k)

maj@k is the chance that the most frequent answer among k of the n samples is right (Wang et al.,
"Self-Consistency", 2022); equal answers are those of one class (`answer_classes`). Classes that
tie share the vote evenly. A sample without an answer does not vote; where none votes, the vote is
wrong. All sets of k samples are tried where they are at most 500; else 500 drawn ones stand for
them.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.evaluation.answer_classes import RIGHT_CLASS
from stages.evaluation.intervals import bootstrap_interval

MOST_SETS = 500
AT_K_SCHEMA = {
    "benchmark": pl.String,
    "k": pl.Int64,
    "problems": pl.Int64,
    "pass_at_k": pl.Float64,
    "pass_low": pl.Float64,
    "pass_high": pl.Float64,
    "maj_at_k": pl.Float64,
    "maj_low": pl.Float64,
    "maj_high": pl.Float64,
}


def accuracy_at_k(classed: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Summarises pass@k and maj@k, one row a benchmark and k.

    Args:
        classed: Rows of `answer_classes.answer_classes`. Samples without an outcome are left out.
        seed: Seed of the draws of samples and of the bootstrap.

    Returns:
        Columns of `AT_K_SCHEMA`: k is 1, 2, 4 and so on, and the most samples that a problem has;
        `problems` those with at least k samples, over which both are averaged, with 95 % bootstrap
        intervals over problems.
    """
    rows = []
    known = classed.filter(pl.col("correct").is_not_null())
    for (benchmark,), samples in known.group_by("benchmark", maintain_order=True):
        problems = [
            (part["correct"].to_numpy(), part["answer_class"].fill_null(-1).to_numpy())
            for part in samples.partition_by("task_id", maintain_order=True)
        ]
        for k in _ks(max(len(correct) for correct, _ in problems)):
            enough = [problem for problem in problems if len(problem[0]) >= k]
            passed = np.array([_pass_at_k(len(c), int(c.sum()), k) for c, _ in enough])
            voted = np.array([_maj_at_k(classes, k, seed) for _, classes in enough])
            rows.append(
                (
                    *(benchmark, k, len(enough)),
                    *(passed.mean(), *bootstrap_interval(passed, seed)),
                    *(voted.mean(), *bootstrap_interval(voted, seed)),
                )
            )
    return pl.DataFrame(rows, schema=AT_K_SCHEMA, orient="row")


def _ks(most: int) -> Iterator[int]:
    k = 1
    while k < most:
        yield k
        k *= 2
    yield most


def _pass_at_k(samples: int, right: int, k: int) -> float:
    return float(1 - math.comb(samples - right, k) / math.comb(samples, k))


def _maj_at_k(classes: NDArray[np.int32], k: int, seed: int) -> float:
    """Returns the chance that a vote of k samples is right; -1 stands for no answer."""
    if math.comb(len(classes), k) <= MOST_SETS:
        chosen = np.array(list(itertools.combinations(range(len(classes)), k)))
    else:
        luck = np.random.default_rng(seed).random((MOST_SETS, len(classes)))
        chosen = np.argpartition(luck, k, axis=1)[:, :k]
    drawn = classes[chosen]
    count = classes.max(initial=0) + 1
    votes = np.zeros((len(drawn), count), dtype=np.int64)
    row, place = np.nonzero(drawn >= 0)
    np.add.at(votes, (row, drawn[row, place]), 1)
    most = votes.max(axis=1, keepdims=True)
    winners = (votes == most) & (most > 0)
    share = winners[:, RIGHT_CLASS] / np.maximum(winners.sum(axis=1), 1)
    return float(share.mean())
