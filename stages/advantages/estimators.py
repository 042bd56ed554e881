"""The estimators by name: each a function of the turns and the settings.

Those of one part have advantage (return - baseline) / scale. Those of two parts, MT-GRPO and
GiGPO, have the advantage of the trajectory plus `turn_weight` times that of the turn.

Over which rewards they run: GTPO over the shaped turn rewards; MT-GRPO and GiGPO over the turn
rewards as scored; the others over one reward a trajectory, GRPO's min(accuracy, format).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schemas.config import AdvantagesConfig
from stages.advantages.baselines import leave_one_out, length_conditioned
from stages.advantages.rows import (
    SMALLEST_SCALE,
    Flags,
    Floats,
    Integers,
    Rows,
    set_mean,
    set_std,
    set_sum,
)
from stages.advantages.state_values import state_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What an estimator says of each turn, [turns]; NaN where there is nothing to say."""

    reward: Floats
    """What the return is made of."""
    returns: Floats
    baseline: Floats
    scale: Floats
    """1 where nothing is divided; at most `SMALLEST_SCALE`, or NaN, where returns do not vary."""
    turn_advantage: Floats | None = None
    """Second part of a two-part estimator; NaN where its values do not vary."""
    gamma: float
    normalise: str


@dataclass(frozen=True, slots=True)
class Estimator:
    """One estimator."""

    credit: Callable[[Rows, AdvantagesConfig], Credit]
    needs: tuple[str, ...]
    """Columns of the rewards that it reads, beside the outcome."""


def gtpo(rows: Rows, config: AdvantagesConfig) -> Credit:
    """Group Turn Policy Optimization, arXiv 2511.14846.

        R_ij = sum over m >= j of gamma^(m - j) r_im      A_ij = (R_ij - mean R) / std R

    The paper leaves open over which turns mean and std run (`normalise`), and has no other
    baseline than the mean (`baseline`) and no option without std (`scale`).
    """
    reward = rows.column("shaped_total")
    returns = rows.returns(reward, config.gamma)
    sets = rows.turn_sets(config.normalise)
    if config.baseline == "leave_one_out":
        baseline = leave_one_out(returns, sets, rows, per_turn=config.normalise == "turn_index")
    elif config.baseline == "length":
        baseline = length_conditioned(returns, sets, rows)
    else:
        baseline = set_mean(returns, sets, rows.counts)
    scale = _scale(returns, sets, rows.counts, rows, config)
    if config.scale == "off":
        scale = np.ones_like(returns)
    return Credit(reward=reward, returns=returns, baseline=baseline, scale=scale,
                  gamma=config.gamma, normalise=config.normalise)  # fmt: skip


def grpo(rows: Rows, config: AdvantagesConfig) -> Credit:
    """GRPO, arXiv 2402.03300: A_ij = (R_i - mean) / std over the group's trajectories."""
    reward = rows.column("grpo_reward")
    scale = _scale(reward, rows.group, rows.starts, rows, config)
    return _of_trajectory(reward, set_mean(reward, rows.group, rows.starts), scale)


def dr_grpo(rows: Rows, config: AdvantagesConfig) -> Credit:
    """Dr. GRPO, arXiv 2503.20783: A_ij = R_i - mean, without the division by std.

    Its other half, a loss summed over tokens and divided by a constant, is the optimisation's.
    """
    reward = rows.column("grpo_reward")
    return _of_trajectory(reward, set_mean(reward, rows.group, rows.starts), np.ones_like(reward))


def rloo(rows: Rows, config: AdvantagesConfig) -> Credit:
    """RLOO, arXiv 2402.14740: A_ij = R_i - mean of the others = G / (G - 1) (R_i - mean)."""
    reward = rows.column("grpo_reward")
    count = set_sum(np.ones_like(reward), rows.group, rows.starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        others = (set_sum(reward, rows.group, rows.starts) - reward) / (count - 1)
    return _of_trajectory(reward, np.where(count > 1, others, np.nan), np.ones_like(reward))


def reinforce_pp(rows: Rows, config: AdvantagesConfig) -> Credit:
    """REINFORCE++, arXiv 2501.03262: the discounted reward, whitened over the batch.

        R_ij = gamma^(T_i - 1 - j) R_i      A_ij = (R_ij - mean over batch) / std over batch

    Over turns here, where the paper whitens over tokens.
    """
    return _whitened(rows, rows.column("grpo_reward"), config)


def reinforce_pp_baseline(rows: Rows, config: AdvantagesConfig) -> Credit:
    """REINFORCE++ with the group's mean subtracted from the reward before it is whitened."""
    reward = rows.column("grpo_reward")
    return _whitened(rows, reward - set_mean(reward, rows.group, rows.starts), config)


def mt_grpo(rows: Rows, config: AdvantagesConfig) -> Credit:
    """MT-GRPO, arXiv 2505.11821: advantage of the outcome plus lambda times that of the turn.

        A_ij = (O_i - mean) / std over the group's trajectories
               + lambda (r_ij - mean) / std over turns of the group with the same index

    O_i is the outcome and r_ij what the turn earned beside it. The paper has two turns, the last
    of which has no part of its own; here every turn has one.
    """
    outcome = rows.column("outcome")
    earned = rows.column("total") - rows.column("accuracy")
    sets = rows.turn_sets("turn_index")
    scale = _scale(outcome, rows.group, rows.starts, rows, config)
    credit = _of_trajectory(outcome, set_mean(outcome, rows.group, rows.starts), scale)
    return _with_turn_part(credit, earned, sets, rows, config, gamma=1.0)


def gigpo(rows: Rows, config: AdvantagesConfig) -> Credit:
    """GiGPO, arXiv 2505.10978: advantage of the episode plus omega times that among equal states.

        A_ij = (sum over m of r_im - mean) / std over the group's trajectories
               + omega (R_ij - mean) / std over turns of the group in the same state

    R_ij is the discounted return. The state of a turn is all that the environment has shown
    before it, so first turns are all in one; a turn alone in its state has no second part.
    """
    reward = rows.column("total")
    episode = np.where(rows.counts, rows.trajectory_sum(reward), np.nan)
    scale = _scale(episode, rows.group, rows.starts, rows, config)
    credit = _of_trajectory(episode, set_mean(episode, rows.group, rows.starts), scale)
    returns = rows.returns(reward, config.gamma)
    return _with_turn_part(credit, returns, rows.state_sets, rows, config, gamma=config.gamma)


def tree_td(rows: Rows, config: AdvantagesConfig) -> Credit:
    """What the turn changed: its reward and the value of the state after it, less that before.

        A_ij = (r_ij + V(s_i,j+1) - V(s_ij)) / std of the sums of r over the group's trajectories

    with `state_values` for V, and 0 after the last turn. The advantages of a trajectory add up to
    its reward less the mean of the group: nothing is discounted, and a turn that changes nothing
    has none. Our own; VinePPO (arXiv 2410.01679) has the same difference between values that it
    samples for, where these come from the group's own trajectories.
    """
    reward = rows.column("shaped_total")
    values = state_values(reward, rows)
    after = np.where(rows.ends, 0.0, np.roll(values, -1))
    sums = np.where(rows.counts, rows.trajectory_sum(reward), np.nan)
    scale = _scale(sums, rows.group, rows.starts, rows, config)
    return Credit(reward=reward, returns=reward + after, baseline=values, scale=scale,
                  gamma=1.0, normalise="group")  # fmt: skip


ESTIMATORS: dict[str, Estimator] = {
    "gtpo": Estimator(gtpo, ("shaped_total",)),
    "grpo": Estimator(grpo, ("grpo_reward",)),
    "dr_grpo": Estimator(dr_grpo, ("grpo_reward",)),
    "rloo": Estimator(rloo, ("grpo_reward",)),
    "reinforce_pp": Estimator(reinforce_pp, ("grpo_reward",)),
    "reinforce_pp_baseline": Estimator(reinforce_pp_baseline, ("grpo_reward",)),
    "mt_grpo": Estimator(mt_grpo, ("accuracy", "total")),
    "gigpo": Estimator(gigpo, ("total", "state")),
    "tree_td": Estimator(tree_td, ("shaped_total", "state")),
}
"""Every estimator by its name in the config."""


def _of_trajectory(reward: Floats, baseline: Floats, scale: Floats) -> Credit:
    return Credit(
        reward=reward, returns=reward, baseline=baseline, scale=scale, gamma=1.0, normalise="group"
    )


def _whitened(rows: Rows, reward: Floats, config: AdvantagesConfig) -> Credit:
    at_the_end = np.where(rows.ends, reward, np.where(np.isnan(reward), np.nan, 0.0))
    returns = rows.returns(at_the_end, config.gamma)
    sets = rows.turn_sets("batch")
    return Credit(
        reward=at_the_end,
        returns=returns,
        baseline=set_mean(returns, sets, rows.counts),
        scale=set_std(returns, sets, rows.counts),
        gamma=config.gamma,
        normalise="batch",
    )


def _with_turn_part(
    credit: Credit,
    values: Floats,
    sets: Integers,
    rows: Rows,
    config: AdvantagesConfig,
    *,
    gamma: float,
) -> Credit:
    scale = _scale(values, sets, rows.counts, rows, config)
    centred = values - set_mean(values, sets, rows.counts)
    part = np.divide(centred, scale, out=np.full_like(values, np.nan), where=scale > SMALLEST_SCALE)
    return Credit(
        reward=credit.reward,
        returns=credit.returns,
        baseline=credit.baseline,
        scale=credit.scale,
        turn_advantage=part,
        gamma=gamma,
        normalise="group",
    )


def _scale(
    values: Floats, sets: Integers, entries: Flags, rows: Rows, config: AdvantagesConfig
) -> Floats:
    """Returns the sample standard deviation over each set, or what stands for it.

    With `groups_without_outcome_variance=scale` that of the whole batch stands for it in groups
    whose outcomes are all equal, so that a penalty weighs there what it weighs elsewhere.
    """
    scale = set_std(values, sets, entries)
    if config.groups_without_outcome_variance != "scale":
        return scale
    of_batch = set_std(values, rows.turn_sets("batch"), entries)
    # Equal values stay without a scale: there is nothing to learn from them.
    varies = scale > SMALLEST_SCALE
    return np.where(equal_outcomes(rows) & varies, of_batch, scale)


def equal_outcomes(rows: Rows) -> Flags:
    """Returns whether all trajectories of the turn's group that count are right, or all wrong."""
    mean = set_mean(rows.column("outcome"), rows.group, rows.starts)
    return (mean <= 0) | (mean >= 1)
