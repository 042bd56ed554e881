"""Advantages: the worked example, the laws of normalisation and a slow oracle."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import dataframely as dy
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from schemas.config import AdvantagesConfig
from schemas.errors import TurnledgerError
from schemas.tables import TURN_KEY, ShapedRewards
from stages.advantages import estimate_advantages
from tests.stages.reward_frames import LAW, shaped_frame

KEEP = AdvantagesConfig(groups_without_outcome_variance="keep")
DROP = AdvantagesConfig(groups_without_outcome_variance="drop")

# The example of the project's card, gamma 0.9, sample standard deviation.
REWARDS: list[list[float]] = [[0, 0, 1], [-0.1, 1], [0, -0.1, 0, 0], [0, 0.45]]
RETURNS = [[0.81, 0.9, 1], [0.8, 1], [-0.09, -0.1, 0, 0], [0.405, 0.45]]
ADVANTAGES = [
    [0.7488, 0.9473, 1.1678],
    [0.7268, 1.1678],
    [-1.2360, -1.2580, -1.0375, -1.0375],
    [-0.1443, -0.0451],
]


def nested(frame: pl.DataFrame, column: str) -> list[list[float]]:
    """Returns a column as [trajectories][turns]."""
    keys = ["task_id", "sample_index"]
    return frame.group_by(keys, maintain_order=True).agg(column)[column].to_list()


def config_of(**values: Any) -> AdvantagesConfig:
    return AdvantagesConfig.model_validate(KEEP.model_dump() | values)


def test_the_worked_example_to_four_decimals() -> None:
    estimated = estimate_advantages(
        shaped_frame({"t": REWARDS}, right=[("t", 0), ("t", 1)]), AdvantagesConfig(gamma=0.9)
    ).with_columns(pl.col("return").round(12), pl.col("advantage").round(4))
    assert nested(estimated, "return") == RETURNS
    assert nested(estimated, "advantage") == ADVANTAGES
    assert estimated["baseline"].round(6).unique().to_list() == [0.470455]
    assert estimated["scale"].round(6).unique().to_list() == [0.453445]


# --- an oracle in plain loops ---------------------------------------------------------------

REWARD = st.sampled_from([-0.2, -0.1, 0.0, 0.3, 0.45, 1.0])
TRAJECTORIES = st.lists(
    st.tuples(
        st.lists(REWARD, min_size=1, max_size=5), st.sampled_from(["right", "wrong", "excluded"])
    ),
    min_size=1,
    max_size=5,
)
GROUPS = st.lists(TRAJECTORIES, min_size=1, max_size=4)
Groups = Sequence[Sequence[tuple[Sequence[float], str]]]


def frame_of(groups: Groups) -> dy.DataFrame[ShapedRewards]:
    kinds = {
        kind: [
            (f"t{g}", s)
            for g, group in enumerate(groups)
            for s, t in enumerate(group)
            if t[1] == kind
        ]
        for kind in ("right", "excluded")
    }
    rewards = {f"t{g}": [t[0] for t in group] for g, group in enumerate(groups)}
    return shaped_frame(rewards, right=kinds["right"], excluded=kinds["excluded"])


def oracle(groups: Groups, config: AdvantagesConfig) -> dict[tuple[str, int, int], Any]:
    """Returns the advantage, or why there is none, of every turn."""
    result: dict[tuple[str, int, int], Any] = {}
    returns: dict[tuple[str, int, int], float] = {}
    for g, group in enumerate(groups):
        outcomes = {kind for _, kind in group if kind != "excluded"}
        for s, (rewards, kind) in enumerate(group):
            for j in range(len(rewards)):
                key = (f"t{g}", s, j)
                if kind == "excluded":
                    result[key] = "infrastructure"
                elif config.groups_without_outcome_variance == "drop" and len(outcomes) == 1:
                    result[key] = "zero_outcome_variance"
                elif config.estimator == "grpo":
                    returns[key] = float(kind == "right")
                else:
                    returns[key] = sum(
                        config.gamma ** (m - j) * rewards[m] for m in range(j, len(rewards))
                    )
    sets: dict[Any, list[float]] = defaultdict(list)
    for key, value in returns.items():
        if config.estimator == "gtpo" or key[2] == 0:
            sets[_set_of(key, config)].append(value)
    for key, value in returns.items():
        values = sets[_set_of(key, config)]
        scale = stdev(values) if len(values) > 1 else 0.0
        result[key] = (value - mean(values)) / scale if scale > 1e-9 else "zero_return_variance"
    return result


def _set_of(key: tuple[str, int, int], config: AdvantagesConfig) -> Any:
    if config.estimator == "grpo":
        return key[0]
    return {"group": key[0], "batch": None, "turn_index": (key[0], key[2])}[config.normalise]


@pytest.mark.parametrize("drop", ["drop", "keep"])
@pytest.mark.parametrize("normalise", ["group", "batch", "turn_index"])
@pytest.mark.parametrize("estimator", ["gtpo", "grpo"])
@LAW
@given(groups=GROUPS, gamma=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_advantages_agree_with_plain_loops(
    estimator: str, normalise: str, drop: str, groups: Groups, gamma: float
) -> None:
    config = config_of(
        estimator=estimator,
        normalise=normalise,
        groups_without_outcome_variance=drop,
        gamma=gamma,
    )
    expected = oracle(groups, config)
    estimated = estimate_advantages(frame_of(groups), config)
    got = {
        row[:3]: row[3] if row[4] is None else row[4]
        for row in estimated.select(*TURN_KEY, "advantage", "excluded").iter_rows()
    }
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        wanted = value if isinstance(value, str) else pytest.approx(value, abs=1e-9)
        assert got[key] == wanted, key


# --- laws -----------------------------------------------------------------------------------


@LAW
@given(groups=GROUPS, normalise=st.sampled_from(["group", "batch", "turn_index"]))
def test_advantages_of_a_set_have_mean_0_and_sample_deviation_1(
    groups: Groups, normalise: str
) -> None:
    estimated = estimate_advantages(frame_of(groups), config_of(normalise=normalise))
    keys = {"group": ["task_id"], "batch": ["estimator"], "turn_index": ["task_id", "turn_index"]}
    sets = (
        estimated.filter(pl.col("excluded").is_null())
        .group_by(keys[normalise])
        .agg(pl.col("advantage").mean().alias("mean"), pl.col("advantage").std().alias("std"))
    )
    assert sets["mean"].to_list() == pytest.approx([0.0] * sets.height, abs=1e-9)
    assert sets["std"].to_list() == pytest.approx([1.0] * sets.height)


@LAW
@given(groups=GROUPS, data=st.data())
def test_the_order_of_samples_does_not_matter(groups: Groups, data: st.DataObject) -> None:
    order = [data.draw(st.permutations(range(len(group)))) for group in groups]
    moved = [[group[i] for i in o] for group, o in zip(groups, order, strict=True)]
    before = nested(estimate_advantages(frame_of(groups), KEEP), "advantage")
    after = nested(estimate_advantages(frame_of(moved), KEEP), "advantage")
    start = 0
    for o in order:
        for new, old in enumerate(o):
            assert after[start + new] == pytest.approx(before[start + old], abs=1e-9)
        start += len(o)


@LAW
@given(groups=GROUPS, factor=st.sampled_from([0.5, 2.0, 10.0]))
def test_the_unit_of_the_rewards_does_not_matter(groups: Groups, factor: float) -> None:
    scaled = [[([factor * r for r in rewards], kind) for rewards, kind in g] for g in groups]
    before = estimate_advantages(frame_of(groups), KEEP)["advantage"].to_list()
    after = estimate_advantages(frame_of(scaled), KEEP)["advantage"].to_list()
    assert after == pytest.approx(before, abs=1e-9)


@LAW
@given(groups=GROUPS, shift=st.sampled_from([-1.0, 0.5]))
def test_without_discounting_ahead_a_constant_does_not_matter(groups: Groups, shift: float) -> None:
    shifted = [[([r + shift for r in rewards], kind) for rewards, kind in g] for g in groups]
    config = config_of(gamma=0.0)
    before = estimate_advantages(frame_of(groups), config)["advantage"].to_list()
    after = estimate_advantages(frame_of(shifted), config)["advantage"].to_list()
    assert after == pytest.approx(before, abs=1e-9)


@LAW
@given(groups=GROUPS)
def test_gamma_0_returns_the_reward_itself(groups: Groups) -> None:
    estimated = estimate_advantages(frame_of(groups), config_of(gamma=0.0))
    assert estimated["return"].to_list() == estimated["reward"].to_list()


def test_the_order_of_rows_does_not_matter() -> None:
    frame = shaped_frame({"t": REWARDS})
    shuffled = ShapedRewards.validate(frame.sample(fraction=1.0, shuffle=True, seed=3))
    assert estimate_advantages(shuffled, KEEP).equals(estimate_advantages(frame, KEEP))


def test_turn_index_compares_turns_of_the_same_index_only() -> None:
    frame = shaped_frame({"t": [[0, 1], [0, 0], [0, 1], [5]]})
    estimated = estimate_advantages(frame, config_of(normalise="turn_index", gamma=0.0))
    second = estimated.filter(pl.col("turn_index") == 1)
    assert second["advantage"].to_list() == pytest.approx([3**-0.5, -2 * 3**-0.5, 3**-0.5])


def test_grpo_gives_each_turn_the_advantage_of_its_trajectory() -> None:
    frame = shaped_frame({"t": [[0.0, 0.0, 1.0], [0.0]]}, right=[("t", 0)])
    estimated = estimate_advantages(frame, AdvantagesConfig(estimator="grpo", normalise="batch"))
    # Mean 1/2 and sample deviation sqrt(1/2) over two trajectories, not over four turns.
    assert nested(estimated, "advantage") == [
        [pytest.approx(0.5**0.5)] * 3,
        [pytest.approx(-(0.5**0.5))],
    ]
    assert estimated.select("estimator", "gamma", "normalise").row(0) == ("grpo", 1.0, "group")


@pytest.mark.parametrize("right", [[], [("t", 0), ("t", 1)]], ids=["all wrong", "all right"])
def test_groups_of_equal_outcomes_are_dropped_with_their_reason(
    right: list[tuple[str, int]],
) -> None:
    frame = shaped_frame({"t": [[0, 1], [-0.1, 0.5]]}, right=right)
    estimated = estimate_advantages(frame, DROP)
    assert set(estimated["excluded"]) == {"zero_outcome_variance"}
    assert estimated["advantage"].null_count() == estimated.height
    assert estimated["return"].null_count() == 0


def test_dropped_groups_do_not_enter_the_statistics_of_the_batch() -> None:
    mixed = [[0.0, 1.0], [0.0, 0.0]]
    alone = shaped_frame({"a": mixed}, right=[("a", 0)])
    beside = shaped_frame({"a": mixed, "b": [[9.0], [7.0]]}, right=[("a", 0)])
    config = AdvantagesConfig(normalise="batch")
    estimated = estimate_advantages(beside, config).filter(pl.col("task_id") == "a")
    assert_frame_equal(estimated, estimate_advantages(alone, config))


def test_returns_without_variance_keep_return_and_baseline() -> None:
    estimated = estimate_advantages(shaped_frame({"t": [[0.1], [0.1], [0.1]]}), KEEP)
    assert set(estimated["excluded"]) == {"zero_return_variance"}
    assert estimated.select("return", "baseline", "scale", "advantage").row(0) == (
        pytest.approx(0.1),
        pytest.approx(0.1),
        None,
        None,
    )


def test_excluded_trajectories_have_no_numbers_and_change_none() -> None:
    group = [[0.0, 1.0], [0.0, 0.0]]
    frame = shaped_frame({"t": [*group, [5.0, 5.0]]}, right=[("t", 0)], excluded=[("t", 2)])
    estimated = estimate_advantages(frame, AdvantagesConfig())
    without = estimate_advantages(shaped_frame({"t": group}, right=[("t", 0)]), AdvantagesConfig())
    assert_frame_equal(estimated.head(4), without)
    numbers = estimated.tail(2).select("reward", "return", "baseline", "scale", "advantage")
    assert numbers.null_count().row(0) == (2, 2, 2, 2, 2)


def test_no_rewards_give_no_advantages() -> None:
    assert estimate_advantages(ShapedRewards.create_empty(), KEEP).height == 0


@pytest.mark.parametrize("kept", [[0, 2], [1, 2]], ids=["gap", "no first turn"])
def test_missing_turns_are_refused_by_name(kept: list[int]) -> None:
    frame = shaped_frame({"t": [[0.0, 0.0, 1.0]]})[kept]
    with pytest.raises(TurnledgerError, match="task_id=t, sample_index=0 has a missing"):
        estimate_advantages(ShapedRewards.validate(frame), KEEP)


def test_repeated_turns_are_refused_by_name() -> None:
    frame = shaped_frame({"t": [[0.0, 1.0]]})
    twice: Any = pl.concat([frame, frame])
    with pytest.raises(TurnledgerError, match="task_id=t, sample_index=0"):
        estimate_advantages(twice, KEEP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shaped_total": None}, "without shaped_total"),
        ({"outcome": None}, "without outcome"),
        ({"excluded": "infrastructure", "shaped_total": None}, "in part"),
    ],
    ids=["no reward", "no outcome", "excluded in part"],
)
def test_a_turn_without_reward_or_reason_is_refused(change: dict[str, Any], message: str) -> None:
    frame = shaped_frame({"t": [[0.0, 1.0], [0.0]]})
    first = (pl.col("sample_index") == 0) & (pl.col("turn_index") == 0)
    changed = frame.with_columns(
        pl.when(first)
        .then(pl.lit(value))
        .otherwise(pl.col(name).cast(pl.String if name == "excluded" else pl.Float64))
        .alias(name)
        for name, value in change.items()
    )
    with pytest.raises(TurnledgerError, match=message):
        estimate_advantages(ShapedRewards.validate(changed, cast=True), KEEP)
