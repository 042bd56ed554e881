"""Shaping: who earns what for code that resembles right code."""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from schemas.config import SimilarityConfig, TurnRewardsConfig
from schemas.errors import TurnledgerError
from schemas.tables import ShapedRewards, TurnRewards, Turns
from stages.similarity import Embed, shape_rewards, similarity_matrix
from stages.turn_rewards import score_turns
from tests.stages.reward_frames import LAW, Turn, executions_frame, prompts_frame, turns_frame

EDIT = SimilarityConfig(measure="edit")

RIGHT: Turn = {"answer": "7"}
WRONG: Turn = {"answer": "8"}


def shape(
    config: SimilarityConfig,
    *trajectories: list[Turn],
    lost: int | None = None,
    embed: Embed | None = None,
) -> pl.DataFrame:
    """Shapes one group whose gold answer is 7; `lost` is the trajectory the machine failed."""
    turns = turns_frame({("t", i): turns for i, turns in enumerate(trajectories)})
    executions = executions_frame({} if lost is None else {("t", lost, 0): "infrastructure"})
    rewards = score_turns(prompts_frame({"t": "7"}), turns, executions, TurnRewardsConfig())
    return shape_rewards(turns, rewards, config, embed)


def of(shaped: pl.DataFrame, sample: int, column: str) -> list[Any]:
    return shaped.filter(pl.col("sample_index") == sample)[column].to_list()


def test_the_sum_over_peers_is_divided_by_their_number_once() -> None:
    shaped = shape(
        SimilarityConfig(alpha=0.5, measure="edit"),
        [{"code": "a b c d"}, WRONG],
        [{"code": "a b c d"}, RIGHT],  # similarity 1
        [{"code": "a b x y"}, RIGHT],  # similarity 1/2
    )
    assert of(shaped, 0, "shaped_accuracy") == [0.0, pytest.approx(0.5 / 2 * (1 + 0.5))]
    assert of(shaped, 0, "similarity_mean") == [pytest.approx(0.75)] * 2
    assert of(shaped, 0, "similarity_max") == [pytest.approx(1.0)] * 2
    assert of(shaped, 0, "peers") == [2, 2]


def test_the_largest_similarity_may_be_taken_instead() -> None:
    shaped = shape(
        SimilarityConfig(alpha=0.5, aggregate="max"),
        [{"code": "a b c d"}, WRONG],
        [{"code": "a b c d"}, RIGHT],
        [{"code": "a b x y"}, RIGHT],
    )
    assert of(shaped, 0, "shaped_accuracy")[-1] == pytest.approx(0.5)


def test_the_code_of_all_turns_is_joined_in_order() -> None:
    shaped = shape(
        EDIT,
        [{"code": "a b"}, {"code": "c d"}, WRONG],
        [{"code": "a b c d"}, RIGHT],
    )
    assert of(shaped, 0, "similarity_max")[0] == 1.0


@LAW
@given(alpha=st.floats(0.0, 1.0))
def test_shaped_accuracy_scales_with_alpha(alpha: float) -> None:
    shaped = shape(
        SimilarityConfig(alpha=alpha), [{"code": "a b"}, WRONG], [{"code": "a c"}, RIGHT]
    )
    assert of(shaped, 0, "shaped_accuracy")[-1] == pytest.approx(alpha * 0.5)


def test_right_trajectories_keep_their_rewards() -> None:
    shaped = shape(EDIT, [{"code": "a"}, WRONG], [{"code": "a b"}, RIGHT], [RIGHT])
    right = shaped.filter(pl.col("sample_index") > 0)
    assert set(right["shaping"]) == {"right"}
    assert right["shaped_total"].to_list() == right["total"].to_list()


def test_penalties_stay_in_the_shaped_total() -> None:
    shaped = shape(
        SimilarityConfig(alpha=0.5),
        [{"code": "a", "parse_error": "syntax_error"}],
        [{"code": "a"}, RIGHT],
    )
    assert of(shaped, 0, "shaped_total") == [pytest.approx(0.5 - 0.1)]


@pytest.mark.parametrize(
    ("group", "shaping"),
    [
        ([[{"code": "a"}, WRONG], [{"code": "a"}, WRONG]], "no_peers"),
        ([[{"code": "a"}, WRONG], [RIGHT]], "no_peers"),
        ([[WRONG], [{"code": "a"}, RIGHT]], "no_code"),
        ([[{"code": "# only a comment"}, WRONG], [{"code": "a"}, RIGHT]], "no_code"),
    ],
    ids=["all wrong", "right peer without code", "no code", "comments only"],
)
def test_nothing_is_shaped_without_code_and_peers(group: list[list[Turn]], shaping: str) -> None:
    shaped = shape(EDIT, *group)
    assert set(of(shaped, 0, "shaping")) == {shaping}
    assert shaped["shaped_total"].to_list() == shaped["total"].to_list()
    assert set(of(shaped, 0, "similarity_mean")) == {None}


def test_alpha_0_measures_and_changes_nothing() -> None:
    shaped = shape(SimilarityConfig(alpha=0.0), [{"code": "a"}, WRONG], [{"code": "a"}, RIGHT])
    assert shaped["shaped_total"].to_list() == shaped["total"].to_list()
    assert of(shaped, 0, "similarity_mean") == [1.0, 1.0]


def test_an_excluded_trajectory_stays_null_and_is_no_peer() -> None:
    shaped = shape(EDIT, [{"code": "a"}, WRONG], [{"code": "a"}, RIGHT], lost=1)
    assert of(shaped, 1, "shaping") == ["excluded", "excluded"]
    assert of(shaped, 1, "shaped_total") == [None, None]
    assert set(of(shaped, 0, "shaping")) == {"no_peers"}


def test_an_excluded_trajectory_is_no_peer_even_with_an_outcome() -> None:
    turns = turns_frame({("t", 0): [{"code": "a"}, WRONG], ("t", 1): [{"code": "a"}, RIGHT]})
    rewards = score_turns(prompts_frame({"t": "7"}), turns, executions_frame(), TurnRewardsConfig())
    out = pl.when(pl.col("sample_index") == 1).then(pl.lit("infrastructure"))
    marked = TurnRewards.validate(rewards.with_columns(excluded=out), cast=True)
    assert of(shape_rewards(turns, marked, EDIT), 0, "shaping") == ["no_peers", "no_peers"]


def test_trajectories_of_other_groups_are_no_peers() -> None:
    turns = turns_frame({("a", 0): [{"code": "x"}, WRONG], ("b", 0): [{"code": "x"}, RIGHT]})
    rewards = score_turns(
        prompts_frame({"a": "7", "b": "7"}), turns, executions_frame(), TurnRewardsConfig()
    )
    shaped = shape_rewards(turns, rewards, EDIT)
    assert shaped.filter(task_id="a")["shaping"].to_list() == ["no_peers", "no_peers"]


def test_groups_shaped_together_are_shaped_as_each_alone() -> None:
    codes = ["a b c", "a b", "# nothing", "a x c", "b"]
    trajectories = {
        (task, sample): [{"code": code}, RIGHT if (sample + size) % 2 else WRONG]
        for size, task in enumerate("abcd")
        for sample, code in enumerate(codes[size:])
    }

    def shaped(wanted: str) -> pl.DataFrame:
        turns = turns_frame({key: t for key, t in trajectories.items() if key[0] in wanted})
        shuffled = Turns.validate(turns.sample(fraction=1, shuffle=True, seed=1))
        prompts = prompts_frame(dict.fromkeys(wanted, "7"))
        rewards = score_turns(prompts, shuffled, executions_frame(), TurnRewardsConfig())
        return shape_rewards(shuffled, rewards, EDIT)

    assert_frame_equal(shaped("abcd"), pl.concat([shaped(task) for task in "abcd"]))


def test_tables_of_different_turns_are_refused() -> None:
    turns = turns_frame({("t", 0): [{"code": "x"}, WRONG]})
    rewards = score_turns(prompts_frame({"t": "7"}), turns, executions_frame(), TurnRewardsConfig())
    with pytest.raises(TurnledgerError, match="turn_index=1 has no reward"):
        shape_rewards(turns, TurnRewards.validate(rewards.head(1)), EDIT)
    with pytest.raises(TurnledgerError, match="turn_index=1 is not among the turns"):
        shape_rewards(turns.head(1), rewards, EDIT)  # type: ignore[arg-type]


def test_no_turns_give_no_rewards() -> None:
    shaped = shape_rewards(turns_frame({}), TurnRewards.create_empty(), EDIT)
    assert shaped.equals(ShapedRewards.create_empty())


@st.composite
def groups(draw: st.DrawFn) -> list[list[Turn]]:
    """A group of a few trajectories of one to three turns, with and without code."""
    codes = st.sampled_from([None, "# none", "a = 1", "a = 1\nb = 2", "print(a)", "b = 2", "a = ("])
    turns = st.lists(codes.map(lambda code: {"code": code}), max_size=3)
    answers = st.sampled_from([RIGHT, WRONG])
    trajectory = st.tuples(turns, answers).map(lambda parts: [*parts[0], parts[1]])
    return draw(st.lists(trajectory, min_size=1, max_size=5))


def shaped_slowly(group: list[list[Turn]], config: SimilarityConfig) -> list[list[float]]:
    """The shaped accuracy of every turn, written from the formulas one trajectory at a time."""

    def codes_of(trajectory: list[Turn]) -> dict[int, str]:
        codes = {j: turn.get("code") for j, turn in enumerate(trajectory)}
        return {j: code for j, code in codes.items() if code and not code.startswith("#")}

    def units_of(trajectory: list[Turn]) -> dict[int, str]:
        codes = codes_of(trajectory)
        if config.scope == "turn" or not codes:
            return codes
        return {len(trajectory) - 1: "\n".join(codes.values())}

    peers = [units_of(t) for t in group if t[-1] == RIGHT and codes_of(t)]
    accuracies = []
    for trajectory in group:
        accuracy = [0.0] * len(trajectory)
        if trajectory[-1] == RIGHT:
            accuracy[-1] = 1.0
        elif peers:
            units = units_of(trajectory)
            for j, code in units.items():
                closest = [
                    max(similarity_matrix([code], [theirs], config)[0, 0] for theirs in p.values())
                    for p in peers
                ]
                over_peers = (
                    sum(closest) / len(peers) if config.aggregate == "mean" else max(closest)
                )
                accuracy[j] = config.alpha / len(units) * over_peers
        accuracies.append(accuracy)
    return accuracies


@pytest.mark.parametrize("scope", ["trajectory", "turn"])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
@LAW
@given(group=groups())
def test_shaped_accuracy_is_that_of_a_slow_oracle(
    scope: str, aggregate: str, group: list[list[Turn]]
) -> None:
    config = SimilarityConfig.model_validate({"scope": scope, "aggregate": aggregate, "alpha": 0.4})
    shaped = shape(config, *group)
    for sample, expected in enumerate(shaped_slowly(group, config)):
        assert of(shaped, sample, "shaped_accuracy") == pytest.approx(expected)


@pytest.mark.parametrize("measure", ["edit", "ngram", "tree"])
@pytest.mark.parametrize("scope", ["trajectory", "turn"])
@LAW
@given(group=groups(), random=st.randoms(use_true_random=False))
def test_order_of_the_samples_changes_nothing(
    measure: str, scope: str, group: list[list[Turn]], random: Random
) -> None:
    config = SimilarityConfig.model_validate({"scope": scope, "measure": measure})
    places = list(range(len(group)))
    random.shuffle(places)
    shaped, shuffled = shape(config, *group), shape(config, *(group[place] for place in places))
    for sample, place in enumerate(places):
        for column in ("shaping", "shaped_accuracy", "similarity_mean", "similarity_max"):
            expected = of(shaped, place, column)
            assert of(shuffled, sample, column) == pytest.approx(expected, nan_ok=True)


def test_in_scope_turn_each_turn_with_code_earns_its_part() -> None:
    shaped = shape(
        SimilarityConfig(alpha=0.5, scope="turn"),
        [{"code": "a b"}, {"code": "x y"}, {"code": None}, WRONG],
        [{"code": "c d"}, {"code": "a b"}, RIGHT],
    )
    assert of(shaped, 0, "shaped_accuracy") == [0.25, 0.0, 0.0, 0.0]
    assert of(shaped, 0, "similarity_max") == [1.0, 0.0, None, None]


@LAW
@given(group=groups(), alpha=st.floats(0.0, 1.0))
def test_in_scope_turn_a_wrong_trajectory_earns_alpha_at_most(
    group: list[list[Turn]], alpha: float
) -> None:
    shaped = shape(SimilarityConfig(alpha=alpha, scope="turn"), *group)
    wrong = shaped.filter(pl.col("outcome") == 0).group_by("sample_index")
    for earned in wrong.agg(pl.col("shaped_accuracy").sum())["shaped_accuracy"]:
        assert 0.0 <= earned <= alpha + 1e-12


def test_each_distinct_code_is_embedded_once() -> None:
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    config = SimilarityConfig(measure="embedding", embedding_path="model")
    wrong: list[Turn] = [{"code": "a"}, WRONG]
    shape(
        config, wrong, wrong, [{"code": "a"}, RIGHT], [{"code": "bb"}, RIGHT], [RIGHT], embed=embed
    )
    assert sorted(asked) == ["a", "bb"]


def test_without_a_pair_to_compare_nothing_is_embedded() -> None:
    def embed(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError

    config = SimilarityConfig(measure="embedding", embedding_path="model")
    shape(config, [{"code": "a"}, WRONG], [RIGHT], embed=embed)


def test_a_turn_that_is_no_python_does_not_spoil_the_tree_of_the_others() -> None:
    shaped = shape(
        SimilarityConfig(measure="tree"),
        [{"code": "a = b"}, {"code": "a = ("}, WRONG],
        [{"code": "x = y"}, RIGHT],
    )
    # The assignment is shared; the broken line is a part that the peer has not.
    assert of(shaped, 0, "similarity_max")[0] == pytest.approx(2 * 1 / (2 + 1))
