"""Turns out of the parts of a dialogue: what was called in each, and what it showed.

A turn is all that was said up to what was shown next. Its code is that of its calls, joined by
newlines. Calls are `<tool_call>` with JSON inside (Hermes, Qwen), and `<code>`; where there is
neither, the last fenced block of Python, but only if something was shown after it: else it is an
illustration that nobody ran.

A call of a code tool is its code. A call of another tool is written as the Python call of its name,
`search(query='...')`, so that it can be compared with others and is no syntax error.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from schemas.categories import ParseError
from stages.foreign.record import ForeignTurn, RejectedRow, text_of
from stages.foreign.splitting import CALL, FENCE, Part

CODE_ARGUMENTS = ("code", "python", "python_code", "source", "script")
"""Arguments that hold the code of a code tool."""

_CALL = re.compile(CALL, re.DOTALL)
_FENCE = re.compile(FENCE, re.DOTALL)
_OPENED = re.compile(r"<(?:tool_call|code)>")
_ANSWER = re.compile(r"<answer>")
_PYTHON = ("python", "py", "python3", "")


def turns_of(parts: Sequence[Part]) -> list[ForeignTurn]:
    """Returns the turns of a dialogue, in order.

    What is shown before anything was said, and space after the last thing shown, are no turns.
    """
    turns: list[ForeignTurn] = []
    said: list[Part] = []
    shown: list[str] = []
    was_shown = False
    for part in parts:
        if part.is_said and not part.text.strip():
            continue
        if part.is_said and was_shown:
            turns.append(_turn(said, shown))
            said, shown, was_shown = [], [], False
        if part.is_said:
            said.append(part)
        elif said:
            was_shown = True
            if part.shown is not None:
                shown.append(part.shown)
    if said:
        turns.append(_turn(said, shown))
    return turns


def tool_code(call: Any) -> str:
    """Returns the code of a tool call as chat messages have it, in any of the usual forms.

    Args:
        call: `{"function": {"name", "arguments"}}`, `{"name", "arguments"}`, or one of these as
            JSON text; the arguments may be JSON text too.

    Raises:
        RejectedRow: If it is none of these.
    """
    if isinstance(call, str):
        call = _json(call)
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise RejectedRow("a tool call without name")
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        parsed = _json(arguments)
        # Some servers pass the bare code of a code tool as its arguments.
        arguments = parsed if isinstance(parsed, Mapping) else {"code": arguments}
    if not isinstance(arguments, Mapping):
        arguments = {}
    # Parquet gives every call the arguments of all: those of other tools are null.
    given = {name: value for name, value in arguments.items() if value is not None}
    code = next((given[name] for name in CODE_ARGUMENTS if name in given), None)
    if code is not None:
        return text_of(code, "code of a tool call").strip("\n")
    shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"{call['name']}({shown})"


def _turn(said: Sequence[Part], shown: Sequence[str]) -> ForeignTurn:
    text = "".join(part.text for part in said)
    calls = list(_CALL.finditer(text))
    codes = [_called(call) for call in calls]
    begin = calls[0].start() if calls else len(text)
    if not codes and shown:
        fences = [f for f in _FENCE.finditer(text) if f["language"].lower() in _PYTHON]
        if fences:
            codes, begin = [fences[-1]["body"]], fences[-1].start()
    after = text[calls[-1].end() if calls else 0 :]
    opened = _OPENED.search(after) if not codes else None
    answered = _ANSWER.search(text)
    ends = [begin, *(mark.start() for mark in (opened, answered) if mark is not None)]
    code = "\n".join(code for code in codes if code.strip())
    error = ParseError.UNCLOSED_CODE if opened is not None else None
    return ForeignTurn(
        text=text,
        reasoning=text[: min(ends)],
        code=code or None,
        output="\n".join(shown) if shown else None,
        parse_error=ParseError.EMPTY_CODE if codes and not code else error,
    )


def _called(call: re.Match[str]) -> str:
    """Returns the code between the tags of a call; what is no JSON stays as it is."""
    inner = call["called"]
    if call["call"] == "code":
        fence = _FENCE.fullmatch(inner.strip())
        return (fence["body"] if fence else inner).strip("\n")
    parsed = _json(inner)
    if not isinstance(parsed, Mapping) or not isinstance(parsed.get("name"), str):
        return inner.strip("\n")
    return tool_code(parsed)


def _json(text: str) -> Any:
    """Returns the value of a JSON text; null for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
