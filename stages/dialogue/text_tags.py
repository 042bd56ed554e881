r"""The tag protocol in plain text, for pretrained models, as ReTool writes it (arXiv 2504.11536).

The prompt holds the instructions below and the problem, inside the model's chat template if it
has one. What follows is one message of the policy, into which observations are inserted:

    Multiply.
    <code>
    ```python
    print(12 * 7)
    ```
    </code>
    <interpreter>
    84
    </interpreter>
    <answer>\boxed{84}</answer>

The policy samples a turn up to `</code>`, `</answer>` or the end of its message. A message that
ends with a `\boxed{}` and no tag has answered too. Text that is inserted cannot write the tags:
they get a space behind `<`.
"""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from schemas.categories import FinishReason, ParseError
from stages.answers import last_boxed
from stages.dialogue.parsed import ParsedTurn
from stages.dialogue.tags import Demonstrated
from stages.dialogue.templates import (
    PROBLEM,
    Around,
    around_problem,
    end_of_message,
    has_template,
)
from stages.dialogue.text_dialogue import TextDialogue, TextFormat

INSTRUCTIONS = r"""Solve the problem step by step. Where a computation helps, write Python code:
<code>
```python
print(6 * 7)
```
</code>
It is executed, and what it prints is shown to you:
<interpreter>
42
</interpreter>
State the final answer in the end:
<answer>\boxed{42}</answer>

Problem:
"""
"""What the policy is told before the problem."""
TAGS = ("<code>", "</code>", "<interpreter>", "</interpreter>", "<answer>", "</answer>")
_CLOSING = re.compile("</code>|</answer>")
_OPENING = re.compile("<code>|<answer>")
_FENCE = re.compile(r"\s*```(?:python|py)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.S)


def text_dialogue(
    tokenizer: PreTrainedTokenizerBase, *, end_ids: Sequence[int] = ()
) -> TextDialogue:
    """Returns the dialogue for a tokenizer.

    Raises:
        schemas.errors.PolicyError: If there is a chat template that a problem cannot be put into.
    """
    if has_template(tokenizer):
        opening = [{"role": "user", "content": INSTRUCTIONS + PROBLEM}]
        problem = around_problem(tokenizer, opening)
        end = end_of_message(tokenizer, opening)
    else:
        problem = Around(before=_start(tokenizer) + INSTRUCTIONS, after="\n\nSolution:\n")
        end = ""
    return TextDialogue(
        tokenizer,
        TextFormat(
            problem=problem,
            observation=Around(before="\n<interpreter>\n", after="\n</interpreter>\n"),
            stop_strings=("</code>", "</answer>"),
            tags=TAGS,
            read=read_turn,
            write=write_turn,
        ),
        end=end,
        end_ids=end_ids,
    )


def read_turn(text: str, reason: FinishReason) -> ParsedTurn:
    """Parses a turn: its first closing tag counts, with the last opening one before it.

    Args:
        text: The turn, without the token that ended its message.
        reason: What ended the turn if no tag did.
    """
    reasoning = text[: opening.start() if (opening := _OPENING.search(text)) else len(text)]
    closing = _CLOSING.search(text)
    if closing is None:
        return _read_untagged(text, reasoning, reason)
    inside = text[: closing.start()]
    tag = closing[0].replace("/", "")
    start = inside.rfind(tag)
    if start >= 0:
        content = inside[start + len(tag) :]
        if tag == "<code>":
            return ParsedTurn.call(reasoning, _without_fence(content))
        return ParsedTurn(
            finish_reason=FinishReason.ANSWER,
            reasoning=reasoning,
            answer=(last_boxed(content) or content).strip(),
        )
    wrong_call = tag == "<code>" or "<code>" in inside
    error = ParseError.UNCLOSED_CODE if wrong_call else ParseError.UNCLOSED_ANSWER
    return ParsedTurn.broken(FinishReason.END, reasoning, error)


def write_turn(turn: Demonstrated) -> str:
    """Writes a demonstrated turn."""
    if turn.code is not None:
        return f"{turn.reasoning}<code>\n```python\n{turn.code}\n```\n</code>"
    if turn.answer is not None:
        return f"{turn.reasoning}<answer>\\boxed{{{turn.answer}}}</answer>"
    return turn.reasoning


def _read_untagged(text: str, reasoning: str, reason: FinishReason) -> ParsedTurn:
    if "<code>" in text:
        return ParsedTurn.broken(reason, reasoning, ParseError.UNCLOSED_CODE)
    boxed = last_boxed(text) if reason is FinishReason.END else None
    if boxed is not None:
        return ParsedTurn(
            finish_reason=FinishReason.ANSWER, reasoning=reasoning, answer=boxed.strip()
        )
    error = ParseError.UNCLOSED_ANSWER if "<answer>" in text else None
    return ParsedTurn.broken(reason, reasoning, error)


def _without_fence(code: str) -> str:
    fenced = _FENCE.fullmatch(code)
    return code.strip("\n") if fenced is None else fenced[1]


def _start(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the token that the tokenizer puts before every text, if it does."""
    return (
        str(tokenizer.bos_token)
        if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        else ""
    )
