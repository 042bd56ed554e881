"""Every estimator against plain loops, its laws, and the small numbers of published formulas."""

import itertools
from typing import Any

import dataframely as dy
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import AdvantagesConfig
from schemas.errors import TurnledgerError
from schemas.tables import TURN_KEY, ShapedRewards
from stages.advantages import ESTIMATORS, estimate_advantages
from tests.stages.advantages import oracle
from tests.stages.advantages.oracle import Groups, Key, Trajectory
from tests.stages.reward_frames import LAW, shaped_frame


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    penalties = draw(st.lists(st.sampled_from([0.0, 0.0, -0.1, -0.2]), min_size=1, max_size=4))
    return Trajectory(
        right=draw(st.sampled_from([True, False, None])),
        penalties=penalties,
        states=[0, *(draw(st.integers(1, 3)) for _ in penalties[1:])],
        shaped=draw(st.sampled_from([0.0, 0.3, 0.45])),
        well_formed=draw(st.booleans()),
    )


GROUPS = st.lists(st.lists(trajectories(), min_size=1, max_size=5), min_size=1, max_size=4).map(
    lambda groups: {f"t{g}": group for g, group in enumerate(groups)}
)


def frame_of(groups: Groups) -> dy.DataFrame[ShapedRewards]:
    rows = []
    for task, group in groups.items():
        for s, t in enumerate(group):
            for j, state in enumerate(t.states):
                is_last = j == len(t.penalties) - 1
                accuracy = t.outcome if is_last else 0.0
                counts = t.right is not None
                rows.append(
                    {
                        "task_id": task,
                        "sample_index": s,
                        "turn_index": j,
                        "shaping": "no_peers" if counts else "excluded",
                        "peers": 0,
                        "accuracy": accuracy if counts else None,
                        "total": t.penalties[j] + accuracy if counts else None,
                        "shaped_total": t.rewards(shaped=True)[j] if counts else None,
                        "outcome": t.outcome if counts else None,
                        "grpo_reward": t.grpo_reward if counts else None,
                        "state": state,
                        "excluded": None if counts else "infrastructure",
                    }
                )
    frame = pl.DataFrame(rows, infer_schema_length=None)
    missing = [name for name in ShapedRewards.column_names() if name not in frame.columns]
    return ShapedRewards.validate(
        frame.with_columns(pl.lit(None).alias(name) for name in missing), cast=True
    )


def credit_of(groups: Groups, config: AdvantagesConfig) -> dict[Key, float | str]:
    estimated = estimate_advantages(frame_of(groups), config)
    rows = estimated.select(*TURN_KEY, "advantage", "excluded").iter_rows()
    return {row[:3]: row[3] if row[4] is None else row[4] for row in rows}


VARIANTS: list[dict[str, Any]] = [
    *({"estimator": name} for name in ESTIMATORS if name != "gtpo"),
    *(
        {"estimator": "gtpo", "normalise": normalise, "baseline": baseline, "scale": scale}
        for normalise, baseline, scale in itertools.product(
            ("group", "batch", "turn_index"), ("mean", "leave_one_out", "length"), ("std", "off")
        )
    ),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
@LAW
@given(
    groups=GROUPS,
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    turn_weight=st.sampled_from([0.0, 0.5, 1.0]),
    without=st.sampled_from(["drop", "keep", "scale", "agreement"]),
)
def test_every_estimator_agrees_with_plain_loops(
    variant: dict[str, Any], groups: Groups, gamma: float, turn_weight: float, without: str
) -> None:
    config = AdvantagesConfig(
        gamma=gamma, turn_weight=turn_weight, groups_without_outcome_variance=without, **variant
    )
    expected, got = oracle.advantages(groups, config), credit_of(groups, config)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        wanted = value if isinstance(value, str) else pytest.approx(value, abs=1e-8)
        assert got[key] == wanted, key


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
@LAW
@given(groups=GROUPS)
def test_an_advantage_is_made_of_its_parts(variant: dict[str, Any], groups: Groups) -> None:
    config = AdvantagesConfig(groups_without_outcome_variance="keep", turn_weight=0.5, **variant)
    estimated = estimate_advantages(frame_of(groups), config)
    part = (pl.col("return") - pl.col("baseline")) / pl.col("scale")
    of_turn = pl.col("turn_weight") * pl.col("turn_advantage")
    rebuilt = estimated.select(
        pl.when(pl.col("advantage").is_not_null()).then(part.fill_null(0) + of_turn.fill_null(0))
    ).to_series()
    assert rebuilt.to_list() == pytest.approx(estimated["advantage"].to_list(), abs=1e-9)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
@LAW
@given(groups=GROUPS, data=st.data())
def test_the_order_of_samples_does_not_matter(
    variant: dict[str, Any], groups: Groups, data: st.DataObject
) -> None:
    config = AdvantagesConfig(groups_without_outcome_variance="keep", **variant)
    orders = {t: data.draw(st.permutations(range(len(group)))) for t, group in groups.items()}
    moved = {task: [groups[task][i] for i in order] for task, order in orders.items()}
    before, after = credit_of(groups, config), credit_of(moved, config)
    for (task, s, j), value in after.items():
        wanted = before[task, orders[task][s], j]
        assert value == (wanted if isinstance(wanted, str) else pytest.approx(wanted, abs=1e-8))


def outcomes(*right: bool, turns: int = 1) -> Groups:
    return {"t": [Trajectory(r, [0.0] * turns, [0] * turns, 0.0, True) for r in right]}


def test_rloo_is_the_deviation_from_the_mean_stretched_by_the_group_size() -> None:
    credit = credit_of(outcomes(True, False, False, False), AdvantagesConfig(estimator="rloo"))
    assert credit["t", 0, 0] == pytest.approx(4 / 3 * (1 - 1 / 4))
    assert credit["t", 1, 0] == pytest.approx(4 / 3 * (0 - 1 / 4))


def test_dr_grpo_is_grpo_without_its_division() -> None:
    groups = outcomes(True, True, False)
    divided = credit_of(groups, AdvantagesConfig(estimator="grpo"))
    plain = credit_of(groups, AdvantagesConfig(estimator="dr_grpo"))
    assert plain["t", 0, 0] == pytest.approx(1 / 3)
    assert [plain[k] for k in plain] == pytest.approx([divided[k] * 3**-0.5 for k in plain])


def test_gtpo_with_one_turn_and_no_format_is_grpo() -> None:
    groups = outcomes(True, False, False, True, True)
    assert credit_of(groups, AdvantagesConfig()) == pytest.approx(
        credit_of(groups, AdvantagesConfig(estimator="grpo"))
    )


def test_gigpo_compares_turns_in_the_same_state_only() -> None:
    groups: Groups = {
        "t": [
            Trajectory(True, [0.0, 0.0], [0, 1], 0.0, True),
            Trajectory(False, [0.0, 0.0], [0, 1], 0.0, True),
            Trajectory(False, [0.0, 0.0], [0, 2], 0.0, True),
        ]
    }
    estimated = estimate_advantages(frame_of(groups), AdvantagesConfig(estimator="gigpo", gamma=1))
    of_turn = dict(zip(estimated.select(TURN_KEY).rows(), estimated["turn_advantage"], strict=True))
    assert of_turn["t", 0, 1] == pytest.approx(2**-0.5)
    assert of_turn["t", 1, 1] == pytest.approx(-(2**-0.5))
    assert of_turn["t", 2, 1] is None  # alone in its state
    assert of_turn["t", 0, 0] == pytest.approx(2 * 3**-0.5)


def test_mt_grpo_pays_the_turn_that_earned_it() -> None:
    groups: Groups = {
        "t": [
            Trajectory(True, [0.0, 0.0], [0, 0], 0.0, True),
            Trajectory(False, [-0.1, 0.0], [0, 0], 0.0, True),
        ]
    }
    credit = credit_of(groups, AdvantagesConfig(estimator="mt_grpo", turn_weight=0.5))
    assert credit["t", 0, 0] == pytest.approx(2**-0.5 * 1.5)
    assert credit["t", 0, 1] == pytest.approx(2**-0.5)


@LAW
@given(groups=GROUPS, normalise=st.sampled_from(["group", "turn_index", "batch"]))
def test_a_length_conditioned_baseline_leaves_no_slope_in_the_turn_count(
    groups: Groups, normalise: str
) -> None:
    """Within turns of a set with equal outcome: what one more turn costs is all subtracted."""
    config = AdvantagesConfig(
        baseline="length", scale="off", groups_without_outcome_variance="keep", normalise=normalise
    )
    credit = {k: v for k, v in credit_of(groups, config).items() if not isinstance(v, str)}
    sets: dict[object, list[Key]] = {}
    for key in credit:
        name = {"group": key[0], "turn_index": (key[0], key[2]), "batch": None}[normalise]
        sets.setdefault(name, []).append(key)
    counting = {
        (task, s): t for task, g in groups.items() for s, t in enumerate(g) if t.right is not None
    }
    for members in sets.values():
        assert oracle._slope(members, credit, counting) == pytest.approx(0.0, abs=1e-8)


def test_a_group_without_variance_of_outcome_is_scaled_by_the_batch() -> None:
    groups: Groups = {
        "mixed": [Trajectory(r, [0.0], [0], 0.0, True) for r in (True, False)],
        "wrong": [Trajectory(False, [p], [0], 0.0, True) for p in (0.0, -0.1)],
    }
    kept = credit_of(groups, AdvantagesConfig(groups_without_outcome_variance="keep"))
    scaled = credit_of(groups, AdvantagesConfig(groups_without_outcome_variance="scale"))
    assert kept["wrong", 1, 0] == pytest.approx(-(2**-0.5))
    assert scaled["wrong", 1, 0] == pytest.approx(-0.05 / 0.5188, rel=1e-3)
    assert scaled["mixed", 0, 0] == kept["mixed", 0, 0]


def test_groups_of_equal_outcomes_are_marked_whatever_becomes_of_them() -> None:
    groups = {"a": outcomes(True, False)["t"], "b": outcomes(False, False)["t"]}
    for without in ("drop", "keep", "scale"):
        config = AdvantagesConfig(groups_without_outcome_variance=without)
        estimated = estimate_advantages(frame_of(groups), config)
        marked = estimated.filter("outcomes_equal")["task_id"].unique().to_list()
        assert marked == ["b"]


def test_gigpo_without_states_is_refused() -> None:
    frame = shaped_frame({"t": [[0.0], [1.0]]}, right=[("t", 1)])
    stateless = ShapedRewards.validate(frame.with_columns(state=pl.lit(None, pl.Int32)))
    with pytest.raises(TurnledgerError, match="gigpo needs the state of every turn"):
        estimate_advantages(stateless, AdvantagesConfig(estimator="gigpo"))


@LAW
@given(groups=GROUPS)
def test_what_turns_change_adds_up_to_what_the_trajectory_earned_beyond_its_group(
    groups: Groups,
) -> None:
    config = AdvantagesConfig(estimator="tree_td", groups_without_outcome_variance="keep")
    frame = frame_of(groups)
    joined = estimate_advantages(frame, config).join(
        frame.select(*TURN_KEY, "shaped_total"), on=TURN_KEY
    )
    per = (
        joined.filter(pl.col("advantage").is_not_null())
        .group_by("task_id", "sample_index")
        .agg(
            changed=(pl.col("advantage") * pl.col("scale")).sum(),
            earned=pl.col("shaped_total").sum(),
        )
    )
    beyond = per["earned"] - per.select(pl.col("earned").mean().over("task_id")).to_series()
    assert per["changed"].to_list() == pytest.approx(beyond.to_list(), abs=1e-8)


def passing(right: bool, *states: int, penalty: float = 0.0) -> Trajectory:
    """A trajectory whose first turn has a penalty."""
    return Trajectory(right, [penalty, *([0.0] * (len(states) - 1))], [*states], 0.0, True)


def test_a_turn_after_which_all_are_where_they_were_changes_nothing() -> None:
    groups = {"t": [passing(True, 0, 1, 2), passing(False, 0, 1, 3), passing(False, 0, 1, 3)]}
    credit = credit_of(groups, AdvantagesConfig(estimator="tree_td", scale="off"))
    first = {key: value for key, value in credit.items() if key[2] == 0}
    assert list(first.values()) == pytest.approx([0.0] * 3)
    # One right in three passed the state before, which counts as one more in those after.
    scale = 3**-0.5
    assert credit["t", 0, 1] == pytest.approx((2 / 3 - 1 / 3) / scale)
    assert credit["t", 1, 1] == pytest.approx((1 / 9 - 1 / 3) / scale)
    assert credit["t", 0, 2] == pytest.approx((1 - 2 / 3) / scale)


AGREEMENT = AdvantagesConfig(estimator="grpo", groups_without_outcome_variance="agreement")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@LAW
@given(groups=GROUPS)
def test_agreement_leaves_groups_alone_in_which_some_are_right(
    estimator: str, groups: Groups
) -> None:
    dropping = AdvantagesConfig(estimator=estimator)
    credit, before = (
        credit_of(groups, dropping.model_copy(update={"groups_without_outcome_variance": without}))
        for without in ("agreement", "drop")
    )
    changed = {key[0] for key, value in credit.items() if value != before[key]}
    assert not any(t.right for task in changed for t in groups[task])


def test_turns_that_come_out_alike_are_credited_where_none_is_right() -> None:
    groups = {"t": [passing(False, *states) for states in ([0, 1], [0, 1], [0, 1], [0, 2], [0])]}
    credit = credit_of(groups, AGREEMENT)
    # Two of four others came out alike; one result, and an answer, are alone.
    assert credit["t", 0, 0] == pytest.approx(3 * (0.5 - 0.3))
    assert credit["t", 3, 0] == credit["t", 4, 0] == pytest.approx(3 * (0.0 - 0.3))
    # In state 1 all answered, which tells them apart no more.
    assert credit["t", 0, 1] == credit["t", 3, 1] == "zero_outcome_variance"


def test_turns_that_fail_in_the_same_way_agree_with_nobody() -> None:
    right, failed = ([passing(False, 0, n, penalty=p)] * 2 for n, p in ((1, 0.0), (2, -0.1)))
    credit = credit_of({"t": [*right, *failed]}, AGREEMENT)
    assert credit["t", 0, 0] == pytest.approx(0.5)
    assert credit["t", 2, 0] == pytest.approx(-0.5)


def test_the_weight_of_turns_is_that_of_agreement() -> None:
    groups = {"t": [passing(False, 0, 1), passing(False, 0, 1), passing(False, 0)]}
    whole, half = (
        credit_of(groups, AGREEMENT.model_copy(update={"turn_weight": w})) for w in (1.0, 0.5)
    )
    assert half["t", 0, 0] == pytest.approx(0.5 * whole["t", 0, 0])


def test_the_more_are_right_elsewhere_the_less_those_count_that_failed_together() -> None:
    apart = [passing(False, *states) for states in ([0, 1], [0, 1], [0, 1], [0, 2])]
    easy = [passing(True, 0), passing(True, 0), passing(True, 0), passing(False, 0)]
    alone, beside = (credit_of({"t": apart, **more}, AGREEMENT) for more in ({}, {"u": easy}))
    assert alone["t", 3, 0] == pytest.approx(-1.5)
    # Three of eight are right, and three failed together.
    assert beside["t", 3, 0] == pytest.approx(-1.5 * (5 / 8) ** 3)


def test_groups_that_are_all_right_count_as_solved_and_are_dropped() -> None:
    apart = [passing(False, *states) for states in ([0, 1], [0, 1], [0, 1], [0, 2])]
    credit = credit_of({"t": apart, "u": [passing(True, 0)] * 4}, AGREEMENT)
    assert credit["u", 0, 0] == "zero_outcome_variance"
    assert credit["t", 3, 0] == pytest.approx(-1.5 * (1 / 2) ** 3)


def test_agreement_without_states_is_refused() -> None:
    frame = shaped_frame({"t": [[0.0], [1.0]]}, right=[("t", 1)])
    stateless = ShapedRewards.validate(frame.with_columns(state=pl.lit(None, pl.Int32)))
    with pytest.raises(TurnledgerError, match="agreement needs the state of every turn"):
        estimate_advantages(stateless, AGREEMENT)
