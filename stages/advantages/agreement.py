"""Whether what a turn ran came out as it did for its peers.

Trajectories of a group that were shown the same so far are in the same state. Right code of a
step has one result, wrong code many, so those that are shown the same next are more often right
than those that are alone: the majority vote of self-consistency (arXiv 2203.11171), turn by turn.
"""

import numpy as np

from stages.advantages.rows import (
    SMALLEST_SCALE,
    Flags,
    Floats,
    Integers,
    Rows,
    set_mean,
    set_std,
)

NEEDS = ("accuracy", "total", "state")
"""Columns of the rewards that are read, beside the outcome."""
PER_SHARE = 3.0
"""Advantage of a whole share: shares deviate by about a third, advantages of outcomes by one."""


def agreement(rows: Rows) -> Floats:
    """Returns how much more a turn agrees with its peers than others in its state, [turns].

        c_ij = (n - 1) / (others of the group in the state of the turn) * (1 - p)^n
        A_ij = 3 (c_ij - mean of c over turns of the group in the state)

    with n trajectories of the group in the state of the turn and in that after it, and p the share
    of right trajectories of the batch. (1 - p)^n is the chance that n trajectories all fail though
    they are right so far: a capable policy whose trajectories agree and fail errs together.

    A turn without a state after it, the last one, agrees with nobody, nor does a penalised one:
    many fail in the same way. NaN where the turn does not count, and where the turns in its state
    all agree as much as it does, being alone among others.

    Args:
        rows: The turns. What they earned beside accuracy tells whether they were penalised.
    """
    turns = rows.turn_index.max(initial=0) + 1
    _, before = np.unique(rows.state_sets * turns + rows.turn_index, return_inverse=True)
    _, step = np.unique(before * (before.size + 1) + np.roll(before, -1), return_inverse=True)
    penalised = rows.column("total") - rows.column("accuracy") < -SMALLEST_SCALE
    goes_on = rows.counts & ~rows.ends & ~penalised
    alike, peers = _others(step, goes_on) * goes_on, _others(before, rows.counts)
    met = rows.counts & (peers > 0)
    weighed = alike * (1 - _solved(rows)) ** (alike + 1)
    share = np.divide(weighed, peers, out=np.full(len(met), np.nan), where=met)
    varies = set_std(share, before, met) > SMALLEST_SCALE
    return np.where(met & varies, PER_SHARE * (share - set_mean(share, before, met)), np.nan)


def _others(sets: Integers, entries: Flags) -> Integers:
    """Returns how many entries the turn's set has beside the turn."""
    count: Integers = np.bincount(sets[entries], minlength=sets.max(initial=-1) + 1)[sets]
    return count - 1


def _solved(rows: Rows) -> float:
    """Returns the share of right trajectories, also of those that do not count here."""
    outcomes = rows.column("outcome")[rows.turn_index == 0]
    known = outcomes[~np.isnan(outcomes)]
    return float(known.mean()) if known.size else 0.0
