"""Chat messages, as TRL and verifiers keep them, as the parts of a dialogue.

An assistant's message was said, with its tool calls beside it; every other one was shown. What was
said is looked through for marks of its own (see `stages.foreign.splitting`), as some programs put a
whole dialogue into one message. Pictures and sounds are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.foreign.calls import tool_code
from stages.foreign.record import RejectedRow, problem_text, text_of
from stages.foreign.splitting import Part, problem_of_prompt, split_text


def problem_of(prompt: Any) -> str:
    """Returns the problem that a prompt asks: the last message of the user, or out of a text.

    Raises:
        RejectedRow: If there is none.
    """
    if not _are_messages(prompt):
        return problem_text(problem_of_prompt(text_of(prompt, "prompt")))
    asked = [message for message in prompt if _role(message) == "user"]
    return problem_text(_content(asked[-1]) if asked else None)


def parts_of(completion: Any) -> list[Part]:
    """Returns the parts of a completion, which is a text or a list of messages.

    Raises:
        RejectedRow: If it is missing or neither.
    """
    if completion is None:
        raise RejectedRow("no completion")
    if not _are_messages(completion):
        return split_text(text_of(completion, "completion"))
    parts: list[Part] = []
    for message in completion:
        if _role(message) == "assistant":
            if parts and parts[-1].is_said:
                parts.append(Part(text="", is_said=False))  # two messages are two turns
            parts += _said(message)
        else:
            parts.append(Part(text="", is_said=False, shown=_content(message)))
    return parts


def _are_messages(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _said(message: Any) -> list[Part]:
    content = _content(message)
    thought = message.get("reasoning_content")
    if isinstance(thought, str) and thought.strip():
        content = f"<think>\n{thought}\n</think>\n{content}"
    called = message.get("tool_calls") or ()
    if not isinstance(called, list | tuple):
        raise RejectedRow("tool_calls are no list")
    calls = tuple(tool_code(call) for call in called)
    parts = split_text(content)
    if not calls:
        return parts
    if not parts or not parts[-1].is_said:
        parts.append(Part(text="", is_said=True))
    # What was called is part of what was generated, as a chat template would write it.
    text = parts[-1].text + "".join(f"<code>{code}</code>" for code in calls)
    return [*parts[:-1], Part(text=text, is_said=True)]


def _role(message: Any) -> str:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RejectedRow("a message without role")
    role: str = message["role"]
    return role


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not _are_messages(content):
        return text_of(content, "content of a message")
    texts = [part.get("text") for part in content or () if isinstance(part, Mapping)]
    return "\n".join(text_of(text, "content of a message") for text in texts if text is not None)
