"""Evaluation: outcomes of trajectories, and summaries on numbers computed by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from stages.evaluation import evaluate
from tests.stages.reward_frames import Turn, executions_frame, prompts_frame, turns_frame

CALL: Turn = {"code": "print(7)"}
RIGHT: Turn = {"answer": "7"}
WRONG: Turn = {"answer": "8"}


def outcomes(
    trajectories: Mapping[tuple[str, int], Sequence[Turn]],
    statuses: Mapping[tuple[str, int, int], str] | None = None,
) -> list[dict[str, Any]]:
    """Evaluates trajectories of problems whose gold answer is 7."""
    evaluations = evaluate(
        prompts_frame({task: "7" for task, _ in trajectories}),
        turns_frame(trajectories),
        executions_frame(statuses),
        benchmark="toy",
        grading_time_s=20.0,
    )
    return evaluations.rows(named=True)


def one_outcome(turns: Sequence[Turn], *statuses: str) -> dict[str, Any]:
    executed = {("a", 0, index): status for index, status in enumerate(statuses)}
    return outcomes({("a", 0): turns}, executed)[0]


@pytest.mark.parametrize(
    ("turns", "verdict", "correct"),
    [
        ([RIGHT], "right", True),
        ([{"answer": " 7.0 "}], "right", True),
        ([WRONG], "wrong", False),
        ([{"answer": None}], "no_answer", False),
        ([{"answer": ""}], "no_answer", False),
        ([CALL, RIGHT], "right", True),
    ],
)
def test_the_final_answer_is_graded(turns: list[Turn], verdict: str, correct: bool) -> None:
    outcome = one_outcome(turns, *["ok"] * (len(turns) - 1))
    assert (outcome["verdict"], outcome["correct"]) == (verdict, correct)
    assert outcome["prediction"] == turns[-1]["answer"]


@pytest.mark.parametrize("turns", [[CALL, RIGHT], [CALL, WRONG], [CALL, CALL]])
def test_a_trajectory_that_the_infrastructure_failed_has_no_outcome(turns: list[Turn]) -> None:
    outcome = one_outcome(turns, "infrastructure")
    assert (outcome["verdict"], outcome["correct"]) == (None, None)


@pytest.mark.parametrize("status", ["error", "timeout", "memory", "output_limit", "refused"])
def test_a_call_that_the_policy_failed_leaves_the_outcome(status: str) -> None:
    outcome = one_outcome([CALL, RIGHT], status)
    assert outcome["correct"] is True
    assert outcome["failed_tool_calls"] == 1


def test_a_failed_machine_leaves_the_other_samples_their_outcome() -> None:
    both = outcomes({("a", 0): [CALL, RIGHT], ("a", 1): [RIGHT]}, {("a", 0, 0): "infrastructure"})
    assert [outcome["correct"] for outcome in both] == [None, True]


def test_turns_calls_and_tokens_are_counted() -> None:
    outcome = one_outcome([CALL, CALL, RIGHT], "error", "ok")
    counted = ("turns", "tool_calls", "failed_tool_calls", "tokens")
    assert [outcome[name] for name in counted] == [3, 2, 1, 3]


def test_every_trajectory_has_one_row_in_the_order_of_the_key() -> None:
    rows = outcomes({("b", 0): [RIGHT], ("a", 1): [CALL, WRONG], ("a", 0): [RIGHT]})
    assert [(row["task_id"], row["sample_index"]) for row in rows] == [("a", 0), ("a", 1), ("b", 0)]
    assert {row["benchmark"] for row in rows} == {"toy"}
