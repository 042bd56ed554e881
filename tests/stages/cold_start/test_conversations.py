"""Rows of a file as conversations: what is taken, what is left out and why, what is right."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.errors import ImitationError
from stages.cold_start.conversations import Conversation, read_conversations
from storage.problem_sources import RawRow

PROBLEM = {"role": "user", "content": "Take 12. Multiply it by 7."}
CALL = {
    "role": "assistant",
    "content": "Multiply.",
    "tool_calls": [{"function": {"name": "python", "arguments": '{"code": "print(12 * 7)"}'}}],
}
SHOWN = {"role": "tool", "content": "84"}
ANSWER = {"role": "assistant", "content": "The answer is \\boxed{84}."}


def rows(*fields: Mapping[str, Any]) -> list[RawRow]:
    return [RawRow(json.dumps(row), dict(row)) for row in fields]


def chat(*messages: Mapping[str, Any]) -> list[Conversation]:
    return read_conversations(rows({"messages": list(messages)}), time_s=60)


def test_a_conversation_is_its_problem_and_the_turns_of_the_assistant() -> None:
    (read,) = chat({"role": "system", "content": "Be brief."}, PROBLEM, CALL, SHOWN, ANSWER)
    assert read.unusable is None
    assert read.problem == PROBLEM["content"]
    assert [(turn.text, turn.code, turn.shown) for turn in read.turns] == [
        ("Multiply.", "print(12 * 7)", "84"),
        ("The answer is \\boxed{84}.", None, None),
    ]
    assert [turn.answer for turn in read.turns] == [None, "84"]


def test_a_conversation_may_end_with_a_call() -> None:
    (read,) = chat(PROBLEM, CALL)
    assert [(turn.code, turn.answer) for turn in read.turns] == [("print(12 * 7)", None)]


def test_calls_and_outputs_within_one_message_are_turns() -> None:
    text = "Multiply.<code>print(12 * 7)</code>\n<interpreter>\n84\n</interpreter>\n\\boxed{84}"
    (read,) = chat(PROBLEM, {"role": "assistant", "content": text})
    assert [turn.code for turn in read.turns] == ["print(12 * 7)", None]
    assert read.turns[0].shown == "84"
    assert read.turns[1].answer == "84"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([PROBLEM], "no message of the assistant"),
        ([ANSWER], "no problem"),
        ([PROBLEM, {"role": "assistant", "content": " "}], "no turns"),
        ([PROBLEM, {"role": "narrator", "content": "Meanwhile"}], "a message of role narrator"),
        ([PROBLEM, {"content": "84"}], "a message without role"),
        ([PROBLEM, "84"], "a message without role"),
        ([PROBLEM, ANSWER, PROBLEM, ANSWER], "a turn without call before the last"),
        ([PROBLEM, ANSWER, ANSWER], "a turn without call before the last"),
        ([PROBLEM, CALL, ANSWER], "a call without what it showed"),
        ([PROBLEM, {"role": "assistant", "content": "<code>print("}], "a call with unclosed code"),
    ],
)
def test_a_conversation_that_no_dialogue_could_hold_is_left_out(
    messages: list[Any], reason: str
) -> None:
    (read,) = chat(*messages)
    assert read.unusable == reason
    assert read.turns == ()


def test_a_row_that_is_no_json_is_left_out_under_its_number() -> None:
    good = rows({"messages": [PROBLEM, ANSWER]})
    read = read_conversations([*good, RawRow("{", None, "not JSON"), *good], time_s=60)
    assert [(c.row, c.unusable) for c in read] == [(1, None), (2, "not JSON"), (3, None)]


def test_a_conversation_without_gold_answer_is_neither_right_nor_wrong() -> None:
    (read,) = chat(PROBLEM, ANSWER)
    assert read.is_right is None


def test_rows_of_formats_that_can_be_imported_are_graded() -> None:
    turns = [
        {"text": "Multiply.", "code": "print(12 * 7)", "output": "84"},
        {"text": "<answer>84</answer>"},
    ]
    golds = ("84", "84.0", "85")
    foreign = [{"problem": "12 * 7?", "gold": gold, "turns": turns} for gold in golds]
    read = read_conversations(rows(*foreign), time_s=60)
    assert [c.is_right for c in read] == [True, True, False]
    assert read[0].turns[1].text == ""
    assert read[0].turns[1].answer == "84"


def test_a_trajectory_without_answer_is_not_right() -> None:
    row = {"problem": "12 * 7?", "gold": "84", "turns": [{"text": "I do not know"}]}
    (read,) = read_conversations(rows(row), time_s=60)
    assert read.is_right is False


def test_rows_of_no_known_format_are_refused_with_their_fields() -> None:
    with pytest.raises(ImitationError, match="a row has question, reply: take rows with messages"):
        read_conversations(rows({"question": "12 * 7?", "reply": "84"}), time_s=60)


def test_a_file_without_json_is_refused() -> None:
    with pytest.raises(ImitationError, match="no row has fields: rows are not JSON"):
        read_conversations([RawRow("# Title", None, "not JSON")], time_s=60)
