"""How many further groups to ask, in place of those that are all right or all wrong.

A module by itself: the prompts of a first round do not depend on what rewards are.
"""

import math

import dataframely as dy
import polars as pl

from schemas.tables import TurnRewards


def further_groups(turn_rewards: dy.DataFrame[TurnRewards], wanted: int) -> int:
    """Says how many groups to ask next, so that enough of them vary in outcome.

    A group that is all right or all wrong teaches nothing; DAPO samples on until the batch is
    full of others (arXiv 2503.14476, dynamic sampling). So many are asked that, if as large a
    share of them varies as before, none is missing after.

    Args:
        turn_rewards: Of all groups asked so far. A trajectory without outcome does not count.
        wanted: Groups that shall vary.

    Returns:
        0 if enough vary, else 1 to `wanted`.
    """
    outcomes = pl.col("outcome").drop_nulls()
    varies = turn_rewards.group_by("task_id").agg(varies=outcomes.n_unique() > 1)["varies"]
    varying, asked = int(varies.sum()), len(varies)
    if varying >= wanted:
        return 0
    return min(wanted, math.ceil((wanted - varying) * asked / max(varying, 1)))
