r"""Tool calls through a model's own chat template, in the JSON of Hermes and Qwen.

The policy is told of one tool, `python`, by the template where it takes tools of this kind, else in
the system message. Its turn is a message, or one up to the end of its tool call:

    Multiply.
    <tool_call>
    {"name": "python", "arguments": {"code": "print(12 * 7)"}}
    </tool_call>

What is inserted then ends the message, holds the observation as a message of role `tool`, and
starts the next message, all as the template writes it. A message without call ends the
trajectory; its answer is its last `\boxed{}`.
"""

import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from schemas.categories import FinishReason, ParseError
from schemas.errors import PolicyError
from schemas.texts import as_text
from stages.answers import last_boxed
from stages.dialogue.parsed import ParsedTurn
from stages.dialogue.tags import Demonstrated
from stages.dialogue.templates import (
    PROBLEM,
    Message,
    around_observation,
    around_problem,
    end_of_message,
    has_template,
    rendered,
)
from stages.dialogue.text_dialogue import TextDialogue, TextFormat

INSTRUCTIONS = (
    "Solve the problem step by step. Where a computation helps, call the tool python: it executes "
    "code and shows what it prints. State the final answer as \\boxed{answer}."
)
"""System message."""
TOOL: Message = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Executes Python code and returns what it prints.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "Python code to execute."}},
            "required": ["code"],
        },
    },
}
"""The tool as models are told of it."""
_TOOL_INSTRUCTIONS = f"""

# Tools

You may call this function:
<tools>
{json.dumps(TOOL)}
</tools>

To call it, return a JSON object with its name and arguments within <tool_call></tool_call> tags:
<tool_call>
{{"name": "python", "arguments": {{"code": "print(6 * 7)"}}}}
</tool_call>"""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
TAGS = (_OPEN, _CLOSE, "<tool_response>", "</tool_response>")


def chat_dialogue(
    tokenizer: PreTrainedTokenizerBase, *, end_ids: Sequence[int] = ()
) -> TextDialogue:
    """Returns the dialogue for a tokenizer with a chat template.

    Raises:
        PolicyError: If there is no template, or it cannot be used for tool calls.
    """
    if not has_template(tokenizer):
        raise PolicyError(
            "the policy's tokenizer has no chat template, which rollout.dialogue=chat needs: "
            "take an instruction-tuned model, or rollout.dialogue=text"
        )
    tools = [TOOL] if _takes_tools(tokenizer) else []
    opening = _opening("" if tools else _TOOL_INSTRUCTIONS)
    return TextDialogue(
        tokenizer,
        TextFormat(
            problem=around_problem(tokenizer, opening, tools=tools),
            observation=around_observation(tokenizer, opening, tools=tools),
            stop_strings=(_CLOSE,),
            tags=TAGS,
            read=read_turn,
            write=write_turn,
        ),
        end=end_of_message(tokenizer, opening),
        end_ids=end_ids,
    )


def read_turn(text: str, reason: FinishReason) -> ParsedTurn:
    """Parses a turn: its first closing tag counts, with the last opening one before it.

    Args:
        text: The turn, without the token that ended its message.
        reason: What ended the turn if no call did.
    """
    reasoning = text.partition(_OPEN)[0].removesuffix("\n")
    inside, closed, _ = text.partition(_CLOSE)
    if not closed:
        if _OPEN in text:
            return ParsedTurn.broken(reason, reasoning, ParseError.UNCLOSED_CODE)
        answer = last_boxed(text) if reason is FinishReason.END else None
        if answer is None:
            return ParsedTurn.broken(reason, text, None)
        return ParsedTurn(finish_reason=FinishReason.ANSWER, reasoning=text, answer=answer.strip())
    if _OPEN not in inside:
        return ParsedTurn.broken(FinishReason.END, inside, ParseError.UNCLOSED_CODE)
    code = _code_of_call(inside.rpartition(_OPEN)[2])
    if code is None:
        return ParsedTurn.broken(FinishReason.END, reasoning, ParseError.MALFORMED_CALL)
    return ParsedTurn.call(reasoning, code)


def write_turn(turn: Demonstrated) -> str:
    """Writes a demonstrated turn."""
    if turn.code is not None:
        call = {"name": "python", "arguments": {"code": turn.code}}
        text = f"{_OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{_CLOSE}"
        return f"{turn.reasoning}\n{text}" if turn.reasoning else text
    if turn.answer is not None:
        return f"{turn.reasoning}\nThe answer is \\boxed{{{turn.answer}}}."
    return turn.reasoning


def _code_of_call(text: str) -> str | None:
    """Returns the code of a call's JSON; null if it is no call of this tool."""
    try:
        # Not strict: line breaks within strings are what models write, and mean what they say.
        call = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or call.get("name") != TOOL["function"]["name"]:
        return None
    arguments = call.get("arguments")
    code = arguments.get("code") if isinstance(arguments, dict) else None
    return as_text(code, numbers=False)


def _opening(more_instructions: str) -> list[Message]:
    return [
        {"role": "system", "content": INSTRUCTIONS + more_instructions},
        {"role": "user", "content": PROBLEM},
    ]


def _takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether the template tells of tools by itself, in the format that is read here."""
    without, with_tools = (rendered(tokenizer, _opening(""), tools=tools) for tools in ([], [TOOL]))
    return all(mark in with_tools and mark not in without for mark in (_OPEN, '"arguments"'))
