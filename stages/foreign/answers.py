r"""The final answer of a trajectory whose record does not name it, out of its last turn's text.

The last `<answer>` of a text counts; without one its last `\boxed{}`; without that what follows the
last "the answer is", "Answer:" or `####` on its line, after `####` only a number: it also begins a
heading in Markdown. It is not judged here.
"""

import re

import polars as pl

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\f?boxed\s*\{")
_STATED = re.compile(
    r"(?:\banswer\s+is\b:?|\banswer\s*:|####(?=[ \t]*[-+$]?[\d.]))[ \t*]*([^\n]+)", re.IGNORECASE
)
_CHAT_MARK = re.compile(r"<\|[a-z_]+\|>|</s>")


def final_answers(texts: pl.Series) -> pl.Series:
    """Returns the final answer in each text, null where there is none; String in, String out."""
    found = [None if text is None else _final_answer(text) for text in texts]
    return pl.Series("answer", found, dtype=pl.String)


def _final_answer(text: str) -> str | None:
    tagged = _TAGGED.findall(text)
    if tagged:
        return tagged[-1].strip() or None
    boxed = _last_box(text)
    if boxed is not None:
        return boxed.strip() or None
    stated = _STATED.findall(_CHAT_MARK.sub("", text))
    # The period ends the sentence, not the answer.
    return stated[-1].strip().rstrip("*").removesuffix(".").strip() or None if stated else None


def _last_box(text: str) -> str | None:
    """Returns the content of the last box that is closed."""
    for opening in reversed(list(_BOX.finditer(text))):
        depth = 1
        for position in range(opening.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[opening.end() : position]
    return None
