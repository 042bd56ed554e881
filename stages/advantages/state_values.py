"""What a group's trajectories say of the states that they passed through.

The state of a turn is all that the environment has shown before it. Trajectories of a group that
were shown the same so far are in the same state, so the states of a group are a tree, with the
prompt at its root.
"""

import numpy as np

from stages.advantages.rows import Floats, Rows

PRIOR_TRAJECTORIES = 1.0
"""How many trajectories the state before counts as, in the value of a state."""


def state_values(rewards: Floats, rows: Rows) -> Floats:
    """Returns the value of the state before each turn, [turns]; NaN where the turn does not count.

        V(s) = (sum of R_ij over the n trajectories of the group in s + V'(s)) / (n + 1)

    R_ij is the undiscounted return from the turn in s on, V'(s) what the value of the state before
    promised less the reward on the way here; at the root V is the mean return. Few trajectories
    pass through a state, often one: the state before holds its value back, as one more trajectory.

    Args:
        rewards: r_ij; NaN where the turn does not count.
        rows: The turns.
    """
    returns = rows.returns(rewards, 1.0)
    values = np.full_like(returns, np.nan)
    for depth in range(int(rows.turn_index.max(initial=-1)) + 1):
        here = np.flatnonzero(rows.counts & (rows.turn_index == depth))
        _, of = np.unique(rows.state_sets[here], return_inverse=True)
        count, total = np.bincount(of)[of], np.bincount(of, weights=returns[here])[of]
        if depth == 0:
            values[here] = total / count
        else:
            promised = values[here - 1] - rewards[here - 1]
            values[here] = (total + PRIOR_TRAJECTORIES * promised) / (count + PRIOR_TRAJECTORIES)
    return values
