"""Turn rewards: one test a rule of the reward."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import TurnRewardsConfig
from schemas.errors import TurnledgerError
from schemas.tables import TURN_KEY, Turns
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


@pytest.mark.parametrize("error", ["unclosed_code", "empty_code"])
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
