"""Chat templates: what a model's own template puts around a problem and around an observation.

A template writes whole conversations. Here it is asked to write a few with words in the place of
what is not known yet, and is cut at these words. So nothing that was sampled goes through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from schemas.errors import PolicyError

Message = dict[str, Any]

PROBLEM = 'the "problem"\n4071'
_TURNS = ("turn 5183", "turn 6295")
# Quotes and a line break, which a template that writes observations as JSON would not leave.
_OBSERVATIONS = ('the "observation"\n7307', 'the "observation"\n8419')
TODAY = datetime(2024, 7, 26)
"""The date that templates write which ask for today's, so that a run has the same prompts on every
day: the one that Llama 3 writes where it knows none."""
_DATE_CODES = "aAbBdemjyYFHIMSpTxXc"
# A macro, for transformers passes templates no functions but its own.
_TELL_THE_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(
        f" | replace('%{flag}{code}', '{TODAY.strftime(f'%{flag}{code}')}')"
        for code in _DATE_CODES
        for flag in ("", "-")
    )
    + " }}{%- endmacro %}\n"
)
_THINK = "<think>\n"
_THOUGHT = "a thought\n</think>\n\n"
_TEMPLATE_ERRORS = (
    *(TemplateError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RuntimeError),  # RecursionError among them
)
"""What templates raise, which are programs of their own, at messages that they do not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """Text on both sides of something."""

    before: str
    after: str


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether a tokenizer brings a chat template."""
    return bool(tokenizer.chat_template)


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Message] = (),
    to_continue: bool = True,
) -> str:
    """Returns a conversation as the template writes it.

    Args:
        tokenizer: Brings the template.
        messages: The conversation.
        tools: Descriptions of functions, for templates that take some.
        to_continue: Whether the start of the policy's next message follows.

    Raises:
        PolicyError: If the template refuses the conversation.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=to_continue,
            chat_template=_TELL_THE_DATE + tokenizer.get_chat_template(tools=list(tools) or None),
        )
    except _TEMPLATE_ERRORS as error:
        roles = ", ".join(message["role"] for message in messages)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PolicyError(
            f"the policy's chat template refuses messages of {roles}: {reason}"
        ) from (error)
    return str(text)


def around_problem(
    tokenizer: PreTrainedTokenizerBase,
    opening: Sequence[Message],
    *,
    tools: Sequence[Message] = (),
) -> Around:
    """Returns what stands around the problem, up to where the policy's first message starts.

    Args:
        tokenizer: Brings the template.
        opening: Messages before the policy's first, of which one holds `PROBLEM`.
        tools: As for `rendered`.

    Raises:
        PolicyError: If the template does not write the problem as it is, once, or leaves another
            opening message out.
    """
    text = rendered(tokenizer, opening, tools=tools)
    for message in opening:
        # Some strip what they write.
        if str(message["content"]).strip() not in text:
            raise PolicyError(
                "the policy's chat template cannot be used: it does not write the message of role "
                f"{message['role']}, so the policy would not be told what to do"
            )
    before, after = _cut(text, PROBLEM)
    return Around(before=before, after=after)


def around_observation(
    tokenizer: PreTrainedTokenizerBase,
    opening: Sequence[Message],
    *,
    tools: Sequence[Message] = (),
) -> Around:
    """Returns what stands around an observation.

    `before` begins where the policy's message ends, and `after` ends where its next one starts.
    Where a template opens the policy's messages with `<think>`, the turns that it is tried with
    close it, as the policy's own will.

    Args:
        tokenizer: Brings the template.
        opening: Messages before the policy's first.
        tools: As for `rendered`.

    Raises:
        PolicyError: If the template writes earlier messages otherwise once others follow, so that
            a trajectory cannot be made by adding to its end.
    """
    messages = list(opening)
    written = rendered(tokenizer, messages, tools=tools)
    thinks = written.endswith(_THINK)
    found = []
    for turn, observation in zip(_TURNS, _OBSERVATIONS, strict=True):
        content = f"{_THINK}{_THOUGHT}{turn}" if thinks else turn
        messages += [
            {"role": "assistant", "content": content},
            {"role": "tool", "name": "python", "content": observation},
        ]
        said = f"{written}{_THOUGHT}" if thinks else written
        written = rendered(tokenizer, messages, tools=tools)
        history, rest = _cut(written, turn)
        before, after = _cut(rest, observation)
        # A template may open the next message with more than an earlier one has: an empty thought.
        if not said.startswith(history):
            raise PolicyError(
                "the policy's chat template cannot be used for tool calls: it writes earlier "
                "messages otherwise once others follow"
            )
        found.append(Around(before=before, after=after))
    if found[0] != found[1]:
        raise PolicyError(
            "the policy's chat template cannot be used for tool calls: it does not write every "
            "observation alike"
        )
    return found[0]


def end_of_message(tokenizer: PreTrainedTokenizerBase, opening: Sequence[Message]) -> str:
    """Returns what the template writes behind the policy's message, in a finished conversation.

    Raises:
        PolicyError: If it begins that message with a head which it does not write when it is asked
            to: the policy would have to write the head itself.
    """
    messages = [*opening, {"role": "assistant", "content": _TURNS[0]}]
    before, after = _cut(rendered(tokenizer, messages, to_continue=False), _TURNS[0])
    asked, alone = (rendered(tokenizer, opening, to_continue=wish) for wish in (True, False))
    if asked == alone and before.removeprefix(asked).strip():
        raise PolicyError(
            "the policy's chat template cannot be used: it does not start the policy's message "
            "where add_generation_prompt asks for it"
        )
    return after


def _cut(text: str, word: str) -> tuple[str, str]:
    before, found, after = text.partition(word)
    if not found or word in after:
        raise PolicyError(
            "the policy's chat template cannot be used: it does not write every message once and "
            "as it is"
        )
    return before, after
