"""Turn rewards: one test a rule of the reward."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.categories import ExecutionStatus
from schemas.config import TurnRewardsConfig
from schemas.errors import TurnledgerError
from schemas.reward_components import COMPONENTS
from schemas.tables import TURN_KEY, Executions, Turns
from stages.turn_rewards import score_turns
from tests.stages.reward_frames import LAW, Turn, executions_frame, prompts_frame, turns_frame

CONFIG = TurnRewardsConfig(invalid_call_penalty=-0.1, no_tool_penalty=-0.2)
CODE: Turn = {"code": "print(7)"}
RIGHT: Turn = {"answer": "7"}
WRONG: Turn = {"answer": "8"}


def score(
    *turns: Turn, config: TurnRewardsConfig = CONFIG, lost: int | None = None
) -> pl.DataFrame:
    """Scores one trajectory of a task whose gold answer is 7."""
    statuses = {("t", 0, i): "ok" for i, turn in enumerate(turns) if turn.get("code")}
    if lost is not None:
        statuses["t", 0, lost] = "infrastructure"
    return score_turns(
        prompts_frame({"t": "7"}),
        turns_frame({("t", 0): turns}),
        executions_frame(statuses),
        config,
    )


def test_accuracy_is_on_the_last_turn_of_a_right_trajectory_only() -> None:
    assert score(CODE, CODE, RIGHT)["accuracy"].to_list() == [0.0, 0.0, 1.0]


def test_a_wrong_trajectory_has_no_accuracy() -> None:
    assert score(CODE, WRONG)["accuracy"].to_list() == [0.0, 0.0]


def test_outcome_is_on_every_turn() -> None:
    assert score(CODE, RIGHT)["outcome"].to_list() == [1.0, 1.0]
    assert score(CODE, WRONG)["outcome"].to_list() == [0.0, 0.0]


def test_the_final_answer_is_that_of_the_last_turn() -> None:
    scored = score({"code": "print(7)", "answer": "7"}, {"reasoning": "no answer here"})
    assert scored["verdict"].to_list() == ["no_answer", "no_answer"]


@pytest.mark.parametrize(
    ("turn", "penalty"),
    [
        ({"parse_error": "unclosed_code"}, -0.1),
        ({"parse_error": "empty_code"}, -0.1),
        ({"parse_error": "malformed_call"}, -0.1),
        ({"parse_error": "syntax_error", "code": "print("}, -0.1),
        ({"parse_error": "unclosed_answer"}, 0.0),
        ({"code": "print(1)"}, 0.0),
    ],
)
def test_an_invalid_call_is_penalised(turn: Turn, penalty: float) -> None:
    assert score(CODE, turn, WRONG)["format"].to_list() == [0.0, penalty, 0.0]


def test_a_syntax_error_costs_nothing_where_it_is_no_invalid_call() -> None:
    config = CONFIG.model_copy(update={"syntax_error_is_invalid": False})
    turn = {"parse_error": "syntax_error", "code": "print("}
    scored = score(turn, RIGHT, config=config)
    assert scored.select("format", "no_tool", "grpo_reward").row(0) == (0.0, 0.0, 1.0)


def test_code_that_raises_costs_nothing() -> None:
    scored = score_turns(
        prompts_frame({"t": "7"}),
        turns_frame({("t", 0): [CODE, RIGHT]}),
        executions_frame({("t", 0, 0): "error"}),
        CONFIG,
    )
    assert scored["total"].to_list() == [0.0, 1.0]


def test_a_first_turn_without_call_is_penalised() -> None:
    assert score(RIGHT).select("no_tool", "total").row(0) == (-0.2, 0.8)


def test_a_later_turn_without_call_is_not_penalised() -> None:
    assert score(CODE, RIGHT)["no_tool"].to_list() == [0.0, 0.0]


@pytest.mark.parametrize("error", ["unclosed_code", "empty_code", "malformed_call"])
def test_a_failed_first_call_pays_for_its_form_only(error: str) -> None:
    assert score({"parse_error": error}).select("format", "no_tool").row(0) == (-0.1, 0.0)


def test_every_turn_says_what_decided_the_verdict() -> None:
    assert score(CODE, RIGHT)["grading_method"].to_list() == ["text", "text"]
    assert score(CODE, WRONG)["grading_method"].to_list() == ["number", "number"]
    assert score(CODE, {})["grading_method"].to_list() == ["absent", "absent"]
    assert score(CODE, RIGHT, lost=0)["grading_method"].to_list() == [None, None]


def test_grpo_reward_is_one_for_right_and_well_formed_only() -> None:
    invalid = {"parse_error": "empty_code"}
    assert score(CODE, RIGHT)["grpo_reward"].to_list() == [1.0, 1.0]
    assert score(CODE, WRONG)["grpo_reward"].to_list() == [0.0, 0.0]
    assert score(invalid, RIGHT)["grpo_reward"].to_list() == [0.0, 0.0]
    assert score(invalid, WRONG)["grpo_reward"].to_list() == [0.0, 0.0]


@pytest.mark.parametrize("last", [RIGHT, WRONG, {}])
def test_a_failure_of_the_machine_is_never_scored(last: Turn) -> None:
    scored = score(CODE, CODE, last, lost=1)
    assert set(scored["excluded"]) == {"infrastructure"}
    for column in ("verdict", "accuracy", "total", "outcome", "grpo_reward"):
        assert scored[column].null_count() == 3, column


def test_a_failure_of_the_machine_leaves_other_trajectories_alone() -> None:
    scored = score_turns(
        prompts_frame({"a": "7", "b": "7"}),
        turns_frame({("a", 0): [CODE, RIGHT], ("a", 1): [CODE, RIGHT], ("b", 0): [CODE, RIGHT]}),
        executions_frame({("a", 0, 0): "infrastructure", ("a", 1, 0): "ok"}),
        CONFIG,
    )
    assert scored.filter(pl.col("excluded").is_null())["outcome"].to_list() == [1.0] * 4


def test_each_group_is_graded_with_its_own_answer() -> None:
    scored = score_turns(
        prompts_frame({"a": "7", "b": "8"}),
        turns_frame({("b", 0): [RIGHT], ("a", 0): [RIGHT]}),
        executions_frame(),
        CONFIG,
    )
    assert dict(scored.select("task_id", "verdict").iter_rows()) == {"a": "right", "b": "wrong"}


def test_rows_come_in_the_order_of_the_key() -> None:
    turns = turns_frame({("b", 1): [CODE, RIGHT], ("b", 0): [WRONG], ("a", 0): [CODE, WRONG]})
    shuffled = Turns.validate(turns.reverse())
    scored = score_turns(prompts_frame({"a": "7", "b": "7"}), shuffled, executions_frame(), CONFIG)
    assert scored.select(TURN_KEY).equals(turns.select(TURN_KEY).sort(TURN_KEY))


def test_no_turns_give_no_rewards() -> None:
    scored = score_turns(
        prompts_frame({"a": "7"}), Turns.create_empty(), executions_frame(), CONFIG
    )
    assert scored.height == 0


def test_turns_without_their_prompt_are_refused_by_name() -> None:
    with pytest.raises(TurnledgerError, match="stranger"):
        score_turns(
            prompts_frame({"t": "7"}),
            turns_frame({("stranger", 0): [RIGHT]}),
            executions_frame(),
            CONFIG,
        )


TURN = st.fixed_dictionaries(
    {},
    optional={
        "code": st.just("print(1)"),
        "answer": st.sampled_from(["7", "8"]),
        "parse_error": st.sampled_from(
            ["unclosed_code", "empty_code", "syntax_error", "unclosed_answer"]
        ),
    },
)


@LAW
@given(st.lists(TURN, min_size=1, max_size=5))
def test_total_is_the_sum_of_its_components(turns: list[dict[str, Any]]) -> None:
    scored = score(*turns)
    parts = scored["accuracy"] + scored["format"] + scored["no_tool"]
    assert scored["total"].to_list() == parts.to_list()


# --- optional components --------------------------------------------------------------------


def components_of(
    turns: Sequence[Turn],
    statuses: Mapping[tuple[str, int, int], str] | None = None,
    **settings: Mapping[str, float],
) -> pl.DataFrame:
    config = TurnRewardsConfig.model_validate({"components": settings})
    return score_turns(
        prompts_frame({"t": "1"}),
        turns_frame({("t", 0): turns}),
        executions_frame(statuses),
        config,
    )


def test_components_are_worth_nothing_by_default() -> None:
    turns = [{}, {"code": "x"}, {"answer": "2"}]
    rewards = components_of(turns, {("t", 0, 1): "error"})
    for name in COMPONENTS:
        assert rewards[name].to_list() == [0.0] * 3
    parts = rewards["accuracy"] + rewards["format"] + rewards["no_tool"]
    assert rewards["total"].to_list() == parts.to_list()


@pytest.mark.parametrize("status", [s.value for s in ExecutionStatus if s != "infrastructure"])
def test_code_that_did_not_end_well_pays(status: str) -> None:
    rewards = components_of(
        [{"code": "x"}, {"answer": "1"}],
        {("t", 0, 0): status},
        execution_error={"penalty": -0.2},
    )
    assert rewards["execution_error"].to_list() == [0.0 if status == "ok" else -0.2, 0.0]
    assert rewards["total"][0] == pytest.approx(rewards["execution_error"][0])


def test_a_turn_with_neither_code_nor_answer_is_void() -> None:
    rewards = components_of([{"code": "x"}, {}, {"answer": "1"}], void_turn={"penalty": -0.3})
    assert rewards["void_turn"].to_list() == [0.0, -0.3, 0.0]
    assert rewards["total"].to_list() == pytest.approx([0.0, -0.3, 1.0])


@pytest.mark.parametrize(
    ("max_tokens", "due"), [(3, -1.0), (2, -1.0), (4, -0.5), (5, 0.0), (100, 0.0)]
)
def test_a_long_trajectory_pays_on_its_last_turn(max_tokens: int, due: float) -> None:
    """Three turns of one token each, and a penalty that grows over two tokens."""
    settings = {"penalty": -1.0, "max_tokens": max_tokens, "cache_tokens": 2}
    rewards = components_of([{}, {}, {"answer": "1"}], overlong=settings)
    assert rewards["overlong"].to_list() == [0.0, 0.0, due]


# --- states ---------------------------------------------------------------------------------


def states_of(observations: Sequence[Sequence[str]]) -> list[list[int]]:
    """Returns the states of samples that saw these observations, [samples][turns]."""
    turns: dict[tuple[str, int], Sequence[Turn]] = {
        ("t", s): [{"code": "x"}] * (len(seen) + 1) for s, seen in enumerate(observations)
    }
    keys = {("t", s, j): "ok" for s, seen in enumerate(observations) for j in range(len(seen))}
    shown = [text for seen in observations for text in seen]
    executions = Executions.validate(
        executions_frame(keys).with_columns(observation=pl.Series(shown))
    )
    rewards = score_turns(
        prompts_frame({"t": "1"}), turns_frame(turns), executions, TurnRewardsConfig()
    )
    return rewards.group_by("sample_index", maintain_order=True).agg("state")["state"].to_list()


def test_first_turns_are_in_one_state_and_then_what_was_shown_decides() -> None:
    first, second, third = states_of([["a", "b"], ["a", "c"], ["b", "a"]])
    assert first[0] == second[0] == third[0]
    assert first[1] == second[1] != third[1]
    assert len({first[2], second[2], third[2]}) == 3


def test_states_of_turns_with_other_indices_differ() -> None:
    ((a, b, c),) = states_of([["x", "x"]])
    assert len({a, b, c}) == 3


@LAW
@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), min_size=1, max_size=6))
def test_states_are_equal_exactly_where_histories_are(observations: list[list[str]]) -> None:
    states = states_of(observations)
    histories = {
        (s, j): tuple(seen[:j]) for s, seen in enumerate(observations) for j in range(len(seen) + 1)
    }
    for (s, j), (r, k) in itertools.combinations(histories, 2):
        assert (states[s][j] == states[r][k]) == (histories[s, j] == histories[r, k])
