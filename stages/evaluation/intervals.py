"""Intervals by the bootstrap, and p-values by random signs, over problems or seeds."""

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_DRAWS = 2_000
SIGN_DRAWS = 20_000
MOST_ENUMERATED = 14
"""Differences other than 0 up to which all signs are tried; beyond, signs are drawn."""


def bootstrap_interval(values: NDArray[np.float64], seed: int) -> tuple[float | None, float | None]:
    """Returns the 95 % percentile interval of a mean, by 2,000 draws with replacement.

    Args:
        values: [problems] what is averaged; without any there is no interval.
        seed: Seed of the draws.
    """
    if not len(values):
        return None, None
    draws = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP_DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def typical_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns an exact interval of a centre of symmetry, by typical values, and its coverage.

    The means of all subsets of n values cut the line into 2^n parts, each of which holds the centre
    with equal chance (Hartigan, "Using subsample values as typical values", 1969). The interval is
    the shortest such one that covers at least 95 %; from fewer than six values there is none, and
    the widest is returned. It holds exactly what the sign-flip test does not reject.

    Args:
        values: [1 to 14] independent values, each symmetric about the same centre.

    Returns:
        Low end, high end, and the chance that the centre lies between.
    """
    subsets = (np.arange(1, 2 ** len(values))[:, None] >> np.arange(len(values))) & 1
    means = np.sort(subsets @ values / subsets.sum(axis=1))
    parts = len(means) + 1
    cut = max(1, int(0.025 * parts))
    return float(means[cut - 1]), float(means[-cut]), 1 - 2 * cut / parts


def sign_flip_p_value(differences: NDArray[np.float64], seed: int) -> float:
    """Returns the two-sided p-value of a paired randomisation test of mean difference 0.

    Under the hypothesis each difference has either sign with equal chance (Fisher, The Design of
    Experiments, 1935, section 21). The p-value is the share of sign patterns whose mean is at least
    as far from 0 as the one seen: of all patterns where there are few, else of 20,000 drawn ones
    and the one seen (Phipson and Smyth, 2010).

    Args:
        differences: [problems] of one policy against the other on the same problem.
        seed: Seed of the draws.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    if len(moved) <= MOST_ENUMERATED:
        patterns = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        return float(_as_far(patterns * 2 - 1, moved).mean())
    drawn = np.random.default_rng(seed).integers(0, 2, size=(SIGN_DRAWS, len(moved)), dtype=np.int8)
    return float((_as_far(drawn * 2 - 1, moved).sum() + 1) / (SIGN_DRAWS + 1))


def _as_far(signs: NDArray[np.integer], moved: NDArray[np.float64]) -> NDArray[np.bool_]:
    # Sums of the same numbers in another order differ by rounding.
    far: NDArray[np.bool_] = np.abs(signs @ moved) >= abs(moved.sum()) * (1 - 1e-9)
    return far


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns p-values corrected for their number (Holm, 1979), in the same order.

    Args:
        p_values: [tests].
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    result = np.empty_like(corrected)
    result[order] = np.minimum(corrected, 1.0)
    return result
