r"""One text that holds a whole dialogue, cut into what was said and what was shown.

Rollouts are often kept as the decoded tokens of the policy and the environment in one text. What
was shown to the policy is recognised by its marks:

- the turn of another role in a chat template: `<|im_start|>user ... <|im_end|>` (ChatML), or
  `<|start_header_id|>ipython<|end_header_id|> ... <|eot_id|>` (Llama 3), up to the next turn of
  the assistant;
- the same after decoding without special tokens, where of ChatML only a line `user` (or `tool`) and
  a line `assistant` are left;
- a fenced block ```` ```output ````, as of ToRA and those after it;
- tags: `<tool_response>` (Hermes, Qwen), `<interpreter>` (ReTool), `<information>` (Search-R1),
  `<observation>`, `<result>`, `<output>`.

What stands inside a fenced block of code or a call is said, whatever it looks like. The parts
joined give back the text. Here nothing is said about calls; see `stages.foreign.calls`.
"""

import re
from dataclasses import dataclass

OBSERVATION_TAGS = (
    *("tool_response", "interpreter", "information", "observation", "result", "output"),
)
FENCE = (
    r"(?:(?<=\n)|\A)[^\S\n]*```(?P<language>[\w+-]*)[^\S\n]*\n"
    r"(?P<body>.*?)(?:(?<=\n)|\n)[^\S\n]*```(?=\s|\Z)"
)
"""A fenced block; ends at the first fence that begins a line."""
CALL = r"<(?P<call>tool_call|code)>(?P<called>.*?)</(?P=call)>"

_OUTPUT_LANGUAGES = ("output", "outputs")
_OTHERS = "user|tool|ipython|environment|observation"
_TURN_END = r"(?:<\|(?:im_end|eot_id|eom_id)\|>\n?)?"
_RESPONSES = r"(?:<tool_response>(?:(?!</tool_response>).)*</tool_response>\s*)+"


def _header(role: str) -> str:
    return rf"(?:<\|im_start\|>(?:{role})\n|<\|start_header_id\|>(?:{role})<\|end_header_id\|>\n\n)"


_ASSISTANT = _header("assistant")
_REGION = re.compile(
    "|".join(
        [
            FENCE,
            CALL,
            rf"{_TURN_END}{_header(_OTHERS)}(?P<chat>.*?)(?:{_TURN_END}{_ASSISTANT}|\Z)",
            rf"(?P<boundary>{_TURN_END}{_ASSISTANT})",
            rf"(?:(?<=\n)|\A|\n)(?:{_OTHERS})\n(?P<responses>{_RESPONSES})(?:assistant\n|\Z)?",
            rf"(?:(?<=\n)|\A|\n)(?:{_OTHERS})\n(?P<plain>.*?)\nassistant\n",
            rf"<(?P<tag>{'|'.join(OBSERVATION_TAGS)})>(?P<tagged>.*?)</(?P=tag)>",
        ]
    ),
    re.DOTALL,
)
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_LAST_MARKS = re.compile(r"<\|(?:im_end|eot_id|eom_id|endoftext)\|>\s*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a text."""

    text: str
    """The piece as it stands there, marks included."""
    is_said: bool
    """Whether the policy said it; else it was shown, or only parts two turns."""
    shown: str | None = None
    """What was shown, without its marks; null where nothing was, and for what was said."""


def split_text(text: str) -> list[Part]:
    """Returns the parts of a text; joined, their texts are the text.

    What was said comes in as few parts as there can be: what was shown stands between.
    """
    parts: list[Part] = []
    start = position = 0
    while match := _REGION.search(text, position):
        position = match.end()
        is_code = match["call"] is not None or (
            match["language"] is not None and match["language"] not in _OUTPUT_LANGUAGES
        )
        if is_code:
            continue
        if match.start() > start:
            parts.append(Part(text=text[start : match.start()], is_said=True))
        parts.append(Part(text=match[0], is_said=False, shown=_shown(match)))
        start = match.end()
    if start < len(text):
        parts.append(Part(text=text[start:], is_said=True))
    return parts


def problem_of_prompt(prompt: str) -> str:
    """Returns what the user asked last in a prompt that a chat template made; else all of it.

    Also of a prompt that was decoded without special tokens, where the roles are bare lines.
    """
    marked = re.split(_header("user"), prompt)
    if len(marked) > 1:
        return re.split(r"<\|(?:im_end|eot_id)\|>", marked[-1])[0].strip()
    bare = re.split(r"(?:\A|\n)user\n", prompt)
    if len(bare) > 1:
        return re.split(r"\n+assistant(?:\n|\Z)", bare[-1])[0].strip()
    return prompt.strip()


def _shown(match: re.Match[str]) -> str | None:
    inner = next(
        (
            match[n]
            for n in ("body", "chat", "responses", "plain", "tagged")
            if match[n] is not None
        ),
        None,
    )
    if inner is None:
        return None
    responses = _RESPONSE.findall(inner)
    if responses:
        return "\n".join(response.strip("\n") for response in responses)
    return _LAST_MARKS.sub("", inner).strip("\n")
