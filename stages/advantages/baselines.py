"""What GTPO can subtract from a return: three baselines over a normalisation set.

`mean` is the paper's. The other two answer the turn-count bias: with gamma < 1 the turns of a
longer trajectory have lower returns than those of a shorter one with the same outcome, so that
the mean pays for being short, and long trajectories weigh more in it.
"""

import numpy as np

from stages.advantages.rows import Floats, Integers, Rows, set_mean, set_sum


def leave_one_out(returns: Floats, sets: Integers, rows: Rows, *, per_turn: bool) -> Floats:
    """Returns the mean over the set without the turns of the turn's own trajectory, [turns].

        b_ij = mean of R over turns of S of other trajectories             RLOO, arXiv 2402.14740

    NaN where no other trajectory is in the set.

    Args:
        returns: R.
        sets: Number of each turn's set S.
        rows: The turns.
        per_turn: Whether a set holds at most one turn of a trajectory.
    """
    own = np.arange(len(sets)) if per_turn else rows.trajectory
    ones = np.ones_like(returns)
    others = set_sum(returns, sets, rows.counts) - set_sum(returns, own, rows.counts)
    count = set_sum(ones, sets, rows.counts) - set_sum(ones, own, rows.counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, others / count, np.nan)


def length_conditioned(returns: Floats, sets: Integers, rows: Rows) -> Floats:
    """Returns the mean over the set, moved along the slope of the return in the turn count.

        b_ij = mean_S R + beta_S (T_i - mean_S T)

    with beta_S the least-squares slope of R on the number of turns T within turns of S of equal
    outcome: what one more turn costs when it changes nothing. The turn-count bias of the
    numerator, as `stages.comparison` measures it, is 0 then. Our own; no paper has it.

    Args:
        returns: R.
        sets: Number of each turn's set S.
        rows: The turns.
    """
    turns = rows.turn_count.astype(np.float64)
    outcome = (rows.column("outcome") > 0).astype(np.int64)
    cells = sets * 2 + outcome
    counts = rows.counts
    dx = turns - set_mean(turns, cells, counts)
    dy = returns - set_mean(returns, cells, counts)
    below = set_sum(dx * dx, sets, counts)
    above = set_sum(dx * dy, sets, counts)
    slope = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    moved: Floats = set_mean(returns, sets, counts) + slope * (
        turns - set_mean(turns, sets, counts)
    )
    return moved
