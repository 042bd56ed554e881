"""Every estimator in plain loops over dictionaries, as slow and as obvious as can be."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, stdev

from schemas.config import AdvantagesConfig

Key = tuple[str, int, int]
"""Task, sample, turn."""


@dataclass(frozen=True)
class Trajectory:
    """One trajectory; lists have one entry a turn."""

    right: bool | None
    """Null if it is excluded."""
    penalties: list[float]
    states: list[int]
    shaped: float
    """What similarity adds to the last turn of a wrong one."""
    well_formed: bool

    @property
    def outcome(self) -> float:
        return 1.0 if self.right else 0.0

    @property
    def grpo_reward(self) -> float:
        return min(self.outcome, 1.0 if self.well_formed else 0.0)

    def rewards(self, *, shaped: bool) -> list[float]:
        last = self.outcome if self.right or not shaped else self.shaped
        return [*self.penalties[:-1], self.penalties[-1] + last]


Groups = dict[str, list[Trajectory]]
EPSILON = 1e-9


def advantages(groups: Groups, config: AdvantagesConfig) -> dict[Key, float | str]:
    """Returns the advantage of every turn, or the reason why it has none."""
    result: dict[Key, float | str] = {}
    kept: Groups = {}
    for task, group in groups.items():
        outcomes = {t.right for t in group if t.right is not None}
        drop = len(outcomes) == 1 and config.groups_without_outcome_variance in (
            "drop",
            "agreement",
        )
        for s, trajectory in enumerate(group):
            for j in range(len(trajectory.penalties)):
                if trajectory.right is None:
                    result[task, s, j] = "infrastructure"
                elif drop:
                    result[task, s, j] = "zero_outcome_variance"
        if not drop:
            kept[task] = group
    values = ESTIMATORS[config.estimator](_counting(kept), config)
    result |= {
        key: "zero_return_variance" if value is None else value for key, value in values.items()
    }
    if config.groups_without_outcome_variance == "agreement":
        wrong = {task: group for task, group in groups.items() if not any(t.right for t in group)}
        of_peers = _agreement(_counting(wrong), _solved(groups))
        result |= {key: config.turn_weight * value for key, value in of_peers.items()}
    return result


def _solved(groups: Groups) -> float:
    outcomes = [t.outcome for group in groups.values() for t in group if t.right is not None]
    return mean(outcomes) if outcomes else 0.0


Counting = dict[tuple[str, int], Trajectory]
"""Trajectories that count, by task and sample."""


def _counting(groups: Groups) -> Counting:
    return {
        (task, s): trajectory
        for task, group in groups.items()
        for s, trajectory in enumerate(group)
        if trajectory.right is not None
    }


def _keys(trajectories: Counting) -> list[Key]:
    return [(*name, j) for name, t in trajectories.items() for j in range(len(t.penalties))]


def _discounted(rewards: list[float], gamma: float) -> list[float]:
    return [
        sum(gamma ** (m - j) * rewards[m] for m in range(j, len(rewards)))
        for j in range(len(rewards))
    ]


def _std(values: Iterable[float]) -> float:
    values = list(values)
    return stdev(values) if len(values) > 1 else 0.0


def _equal_outcomes(task: str, trajectories: Counting) -> bool:
    return len({t.right for (other, _), t in trajectories.items() if other == task}) == 1


def _scale(
    task: str,
    own: list[float],
    batch: list[float],
    trajectories: Counting,
    config: AdvantagesConfig,
) -> float:
    scale = _std(own)
    instead = config.groups_without_outcome_variance == "scale"
    if instead and scale > EPSILON and _equal_outcomes(task, trajectories):
        return _std(batch)
    return scale


def _gtpo(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    returns: dict[Key, float] = {}
    for name, trajectory in trajectories.items():
        for j, discounted in enumerate(_discounted(trajectory.rewards(shaped=True), config.gamma)):
            returns[*name, j] = discounted
    result: dict[Key, float | None] = {}
    for key, value in returns.items():
        task, _, j = key
        members = [
            other
            for other in returns
            if config.normalise == "batch"
            or (other[0] == task and (config.normalise == "group" or other[2] == j))
        ]
        own = [returns[other] for other in members]
        if config.baseline == "leave_one_out":
            others = [returns[other] for other in members if other[:2] != key[:2]]
            baseline = mean(others) if others else None
        elif config.baseline == "length":
            baseline = mean(own) + _slope(members, returns, trajectories) * (
                len(trajectories[key[:2]].penalties)
                - mean(len(trajectories[other[:2]].penalties) for other in members)
            )
        else:
            baseline = mean(own)
        scale = _scale(task, own, list(returns.values()), trajectories, config)
        if config.scale == "off":
            scale = 1.0
        varies = scale > EPSILON and baseline is not None
        result[key] = (value - baseline) / scale if varies else None
    return result


def _slope(members: list[Key], returns: dict[Key, float], trajectories: Counting) -> float:
    above = below = 0.0
    for outcome in (0.0, 1.0):
        cell = [key for key in members if trajectories[key[:2]].outcome == outcome]
        if cell:
            lengths = {key: len(trajectories[key[:2]].penalties) for key in cell}
            mean_length, mean_return = mean(lengths.values()), mean(returns[key] for key in cell)
            for key in cell:
                above += (lengths[key] - mean_length) * (returns[key] - mean_return)
                below += (lengths[key] - mean_length) ** 2
    return above / below if below > 0 else 0.0


def _trajectory_part(
    rewards: dict[tuple[str, int], float], trajectories: Counting, config: AdvantagesConfig
) -> dict[tuple[str, int], float | None]:
    result: dict[tuple[str, int], float | None] = {}
    for name, value in rewards.items():
        own = [reward for other, reward in rewards.items() if other[0] == name[0]]
        scale = _scale(name[0], own, list(rewards.values()), trajectories, config)
        result[name] = (value - mean(own)) / scale if scale > EPSILON else None
    return result


def _grpo(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    rewards = {name: t.grpo_reward for name, t in trajectories.items()}
    part = _trajectory_part(rewards, trajectories, config)
    return {key: part[key[:2]] for key in _keys(trajectories)}


def _dr_grpo(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    result: dict[Key, float | None] = {}
    for task, s, j in _keys(trajectories):
        own = [t.grpo_reward for (other, _), t in trajectories.items() if other == task]
        result[task, s, j] = trajectories[task, s].grpo_reward - mean(own)
    return result


def _rloo(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    result: dict[Key, float | None] = {}
    for task, s, j in _keys(trajectories):
        others = [
            t.grpo_reward for name, t in trajectories.items() if name[0] == task and name[1] != s
        ]
        reward = trajectories[task, s].grpo_reward
        result[task, s, j] = reward - mean(others) if others else None
    return result


def _whitened(
    rewards: dict[tuple[str, int], float], trajectories: Counting, config: AdvantagesConfig
) -> dict[Key, float | None]:
    returns: dict[Key, float] = {}
    for task, s, j in _keys(trajectories):
        left = len(trajectories[task, s].penalties) - 1 - j
        returns[task, s, j] = config.gamma**left * rewards[task, s]
    scale = _std(returns.values())
    middle = mean(returns.values()) if returns else 0.0
    return {k: (v - middle) / scale if scale > EPSILON else None for k, v in returns.items()}


def _reinforce_pp(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    return _whitened({n: t.grpo_reward for n, t in trajectories.items()}, trajectories, config)


def _reinforce_pp_baseline(
    trajectories: Counting, config: AdvantagesConfig
) -> dict[Key, float | None]:
    rewards = {}
    for (task, s), trajectory in trajectories.items():
        own = [t.grpo_reward for (other, _), t in trajectories.items() if other == task]
        rewards[task, s] = trajectory.grpo_reward - mean(own)
    return _whitened(rewards, trajectories, config)


def _two_parts(
    whole: dict[tuple[str, int], float],
    values: dict[Key, float],
    set_of: Callable[[Key], object],
    trajectories: Counting,
    config: AdvantagesConfig,
) -> dict[Key, float | None]:
    part = _trajectory_part(whole, trajectories, config)
    result: dict[Key, float | None] = {}
    for key, value in values.items():
        own = [v for other, v in values.items() if set_of(other) == set_of(key)]
        scale = _scale(key[0], own, list(values.values()), trajectories, config)
        of_turn = (value - mean(own)) / scale if scale > EPSILON else None
        if part[key[:2]] is None and of_turn is None:
            result[key] = None
        else:
            result[key] = (part[key[:2]] or 0.0) + config.turn_weight * (of_turn or 0.0)
    return result


def _mt_grpo(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    outcomes = {name: t.outcome for name, t in trajectories.items()}
    earned = {
        (*name, j): penalty
        for name, t in trajectories.items()
        for j, penalty in enumerate(t.penalties)
    }
    return _two_parts(outcomes, earned, lambda key: (key[0], key[2]), trajectories, config)


def _gigpo(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    episodes = {name: sum(t.rewards(shaped=False)) for name, t in trajectories.items()}
    returns = {
        (*name, j): value
        for name, t in trajectories.items()
        for j, value in enumerate(_discounted(t.rewards(shaped=False), config.gamma))
    }
    states = {key: (key[0], trajectories[key[:2]].states[key[2]]) for key in returns}
    return _two_parts(episodes, returns, states.__getitem__, trajectories, config)


def _tree_td(trajectories: Counting, config: AdvantagesConfig) -> dict[Key, float | None]:
    sums = {name: sum(t.rewards(shaped=True)) for name, t in trajectories.items()}
    result: dict[Key, float | None] = {}
    for name, trajectory in trajectories.items():
        own = [total for other, total in sums.items() if other[0] == name[0]]
        scale = _scale(name[0], own, list(sums.values()), trajectories, config)
        rewards = trajectory.rewards(shaped=True)
        values = [_value(name, j, trajectories) for j in range(len(rewards))] + [0.0]
        for j, reward in enumerate(rewards):
            change = reward + values[j + 1] - values[j]
            result[*name, j] = change / scale if scale > EPSILON else None
    return result


def _value(name: tuple[str, int], j: int, trajectories: Counting) -> float:
    """Returns the value of the state before a turn."""
    left = [
        sum(other.rewards(shaped=True)[j:])
        for (task, _), other in trajectories.items()
        if task == name[0]
        and len(other.states) > j
        and other.states[j] == trajectories[name].states[j]
    ]
    if j == 0:
        return mean(left)
    promised = _value(name, j - 1, trajectories) - trajectories[name].rewards(shaped=True)[j - 1]
    return mean([*left, promised])


def _agreement(trajectories: Counting, solved: float) -> dict[Key, float]:
    shares: dict[Key, float] = {}
    for name, trajectory in trajectories.items():
        for j, state in enumerate(trajectory.states):
            others = [
                other
                for key, other in trajectories.items()
                if key[0] == name[0] and key != name and other.states[j : j + 1] == [state]
            ]
            if others:
                alike = sum(_goes_on(trajectory, j) == _goes_on(o, j) is not None for o in others)
                shares[*name, j] = alike / len(others) * (1 - solved) ** (alike + 1)
    result = {}
    for key, share in shares.items():
        state = trajectories[key[:2]].states[key[2]]
        own = [
            other
            for (task, s, j), other in shares.items()
            if (task, j) == (key[0], key[2]) and trajectories[task, s].states[j] == state
        ]
        if max(own) - min(own) > EPSILON:
            result[key] = 3 * (share - mean(own))
    return result


def _goes_on(trajectory: Trajectory, j: int) -> int | None:
    """Returns the state after a turn; None after the last one, and after a penalised one."""
    if trajectory.penalties[j] < 0 or j == len(trajectory.states) - 1:
        return None
    return trajectory.states[j + 1]


ESTIMATORS: dict[str, Callable[[Counting, AdvantagesConfig], dict[Key, float | None]]] = {
    "gtpo": _gtpo,
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
    "reinforce_pp": _reinforce_pp,
    "reinforce_pp_baseline": _reinforce_pp_baseline,
    "mt_grpo": _mt_grpo,
    "gigpo": _gigpo,
    "tree_td": _tree_td,
}
