"""The turns of a batch as arrays, and sums over sets of them.

All arrays are [turns], in the order of the key, so that a trajectory is a run of rows. A set of
turns is told by a number for each turn; sums over sets are `numpy.bincount`, which takes a few
milliseconds for a million turns where a loop over groups takes minutes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.tables import GROUP_KEY, TRAJECTORY_KEY

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SMALLEST_SCALE = 1e-9
"""Standard deviations up to this are rounding errors of equal values."""


@dataclass(frozen=True)
class Rows:
    """Turns in the order of the key; those of a trajectory are numbered from 0 without gaps."""

    frame: pl.DataFrame
    """Columns of `ShapedRewards`."""
    counts: Flags
    """Whether the turn enters statistics: it is not left out, for whatever reason."""

    def column(self, name: str) -> Floats:
        """Returns a numeric column; NaN where it is null."""
        return self.frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()

    @cached_property
    def turn_index(self) -> Integers:
        """Turn within its trajectory, from 0."""
        return self.frame["turn_index"].cast(pl.Int64).to_numpy()

    @cached_property
    def trajectory(self) -> Integers:
        """Number of the trajectory, from 0."""
        return _numbered(self.frame, TRAJECTORY_KEY)

    @cached_property
    def group(self) -> Integers:
        """Number of the group, from 0."""
        return _numbered(self.frame, GROUP_KEY)

    @cached_property
    def turn_count(self) -> Integers:
        """Number of turns of the turn's trajectory."""
        counts: Integers = np.bincount(self.trajectory)[self.trajectory]
        return counts

    @cached_property
    def starts(self) -> Flags:
        """Whether the turn counts and is the first of its trajectory: each trajectory once."""
        starts: Flags = self.counts & (self.turn_index == 0)
        return starts

    @cached_property
    def ends(self) -> Flags:
        """Whether the turn is the last of its trajectory."""
        ends: Flags = self.turn_index == self.turn_count - 1
        return ends

    @cached_property
    def state_sets(self) -> Integers:
        """Number of the turn's group and state: what the environment has shown before."""
        states = np.nan_to_num(self.column("state")).astype(np.int64)
        sets: Integers = self.group * (states.max(initial=0) + 1) + states
        return sets

    def turn_sets(self, normalise: str) -> Integers:
        """Returns the number of each turn's normalisation set.

        Args:
            normalise: `group`, all turns of the group; `batch`, all turns; or `turn_index`, the
                turns of the group with the same index.
        """
        if normalise == "group":
            return self.group
        if normalise == "batch":
            return np.zeros_like(self.group)
        longest = self.turn_index.max(initial=0) + 1
        sets: Integers = self.group * longest + self.turn_index
        return sets

    def returns(self, rewards: Floats, gamma: float) -> Floats:
        """Returns R_ij = sum over m >= j of gamma^(m - j) r_im of each turn.

        Args:
            rewards: r; NaN counts as 0, as do turns that a trajectory does not have.
            gamma: Discount of one turn.
        """
        if not rewards.size:
            return rewards
        padded = np.zeros((self.trajectory[-1] + 1, self.turn_index.max() + 1))
        padded[self.trajectory, self.turn_index] = np.nan_to_num(rewards)
        lag = np.subtract.outer(np.arange(padded.shape[1]), np.arange(padded.shape[1]))
        discounts = np.where(lag >= 0, float(gamma) ** np.maximum(lag, 0), 0.0)  # [m, j]
        returns: Floats = (padded @ discounts)[self.trajectory, self.turn_index]
        return returns

    def trajectory_sum(self, values: Floats) -> Floats:
        """Returns the sum over the turn's trajectory; NaN counts as 0."""
        sums = _sums(self.trajectory, np.nan_to_num(values))
        return sums[self.trajectory]


def _numbered(frame: pl.DataFrame, key: tuple[str, ...]) -> Integers:
    """Numbers runs of equal keys, from 0."""
    changes = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in key)
    numbers = changes.cast(pl.Int64).cum_sum() - 1
    return frame.select(numbers).to_series().to_numpy()


def _sums(sets: Integers, values: Floats, size: int = 0) -> Floats:
    return np.bincount(sets, weights=values, minlength=size).astype(np.float64, copy=False)


def set_sum(values: Floats, sets: Integers, entries: Flags) -> Floats:
    """Returns the sum over the entries of each turn's set, [turns]."""
    size = int(sets.max(initial=-1)) + 1
    return _sums(sets[entries], values[entries], size)[sets]


def set_mean(values: Floats, sets: Integers, entries: Flags) -> Floats:
    """Returns the mean over the entries of each turn's set, [turns]; NaN of a set without any."""
    count = set_sum(np.ones_like(values), sets, entries)
    with np.errstate(invalid="ignore"):
        mean: Floats = set_sum(values, sets, entries) / count
    return mean


def set_std(values: Floats, sets: Integers, entries: Flags) -> Floats:
    """Returns the sample standard deviation (divisor n - 1) likewise; NaN of fewer than two."""
    count = set_sum(np.ones_like(values), sets, entries)
    deviations = (values - set_mean(values, sets, entries)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = set_sum(deviations, sets, entries) / (count - 1)
    return np.sqrt(np.where(count > 1, variance, np.nan))
