import pytest

from schemas.categories import ParseError
from stages.foreign.calls import tool_code, turns_of
from stages.foreign.messages import _said
from stages.foreign.record import ForeignTurn, RejectedRow
from stages.foreign.splitting import split_text


def only_turn(text: str) -> ForeignTurn:
    (turn,) = turns_of(split_text(text))
    return turn


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "function": {"name": "python", "arguments": {"code": "f(1)"}}},
        {"id": "1", "function": {"name": "python", "arguments": '{"code": "f(1)"}'}},
        {"name": "python", "arguments": {"code": "f(1)", "timeout": None, "query": None}},
        {"name": "python", "arguments": "f(1)"},
        '{"name": "run", "arguments": "{\\"script\\": \\"f(1)\\"}"}',
    ],
)
def test_the_code_of_a_call_is_found_in_every_usual_form(call: object) -> None:
    assert tool_code(call) == "f(1)"


def test_a_call_of_another_tool_is_a_python_call() -> None:
    call = {"name": "search", "arguments": {"query": "it's", "top": 3, "code": None}}
    assert tool_code(call) == 'search(query="it\'s", top=3)'


@pytest.mark.parametrize("call", [3, None, "no JSON", {"arguments": {}}, {"name": 4}])
def test_what_is_no_call_is_rejected(call: object) -> None:
    with pytest.raises(RejectedRow, match="a tool call without name"):
        tool_code(call)


def test_a_fenced_block_that_nobody_ran_is_no_call() -> None:
    assert only_turn("Like this:\n```python\nprint(1)\n```\nYes.").code is None


def test_a_call_that_was_not_run_is_a_call() -> None:
    turn = only_turn("Try.<code>print(1)</code>")
    assert (turn.code, turn.output) == ("print(1)", None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Try.<code>print(1)", ParseError.UNCLOSED_CODE),
        ('Try.<tool_call>{"name": "py', ParseError.UNCLOSED_CODE),
        ("Try.<code> </code>", ParseError.EMPTY_CODE),
        ("Try.", None),
    ],
)
def test_a_broken_call_is_named(text: str, error: ParseError | None) -> None:
    turn = only_turn(text)
    assert (turn.code, turn.parse_error, turn.reasoning) == (None, error, "Try.")


@pytest.mark.parametrize("calls", [5, True, 1.5, "text", {"function": {}}])
def test_calls_that_are_no_list_reject_the_row(calls: object) -> None:
    with pytest.raises(RejectedRow, match="tool_calls are no list"):
        _said({"role": "assistant", "content": "x", "tool_calls": calls})
