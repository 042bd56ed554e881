"""Final answers in texts: where a solution states its answer, and what it states.

In this order, the first that a text holds:

1. `boxed`: the content of its last `\\boxed{}` whose braces are balanced. `\\fbox{}` and
   `\\framebox{}` count too. A box that was never closed is passed over.
2. `tag`: the content of its last `<answer>...</answer>`.
3. `hashes`: the rest of its last line if that begins with `####`, as GSM8K's solutions end;
   elsewhere such a line is a heading.
4. `phrase`: what follows its last "the answer is", "Answer:", and the like, up to the end
   of the sentence or of the line.

A statement without content is none: `\\boxed{}` is passed over for what stands before it. The
answer is returned as written, without space around it. Nothing is searched for a last number: a
text that states no answer has none.

It does not compare answers; that is `stages.grading`. The tags of this project's own policies are
read by `stages.dialogue`.
"""

import re
from enum import StrEnum

import polars as pl


class FoundBy(StrEnum):
    """How a final answer was found in its text, in the order of precedence."""

    BOXED = "boxed"
    """The last `\\boxed{}` with balanced braces."""
    TAG = "tag"
    """The last `<answer>...</answer>`."""
    HASHES = "hashes"
    """The last line that begins with `####`."""
    PHRASE = "phrase"
    """The last "the answer is ..."."""


_FOUND_BY = pl.Enum([found.value for found in FoundBy])
_BOX = r"\\(?:boxed|fbox|framebox)\s*\{"
_MARK = "\x00"
"""Stands for the opening of a box while texts are cut; no text on the way here can hold it."""
_FLAT = r"(?:[^{}\\]|\\.)*"
_NESTED = rf"(?:{_FLAT}\{{(?:{_FLAT}\{{{_FLAT}\}})*{_FLAT}\}})*{_FLAT}"
"""Text whose braces are balanced, at most two deep; deeper ones are read character by character."""
_TOKEN = re.compile(rf"{_BOX}|\\[\\{{}}]|[{{}}]")
_TAG = r"(?is)<answer>(.*?)</answer>"
_HASHES = r"(?:^|\n)[ \t]*####[ \t]*([^\s#][^\n]*?)\s*$"
_PHRASE = (
    r"(?im)(?:\b(?:the|final|correct|my) answer(?: to [^.\n:]{1,80}?)?(?: is|\**:| =)"
    r"|^\W*answer\**:)(?: :|:)?\s*((?:[^.\n]|\.\S)+)"
)


def final_answers(texts: pl.Series) -> pl.DataFrame:
    """Returns the final answer that each text states.

    Args:
        texts: Solutions as text (String); null where there is none.

    Returns:
        One row a text, in order: `answer` (String) and `found_by` (an enum of `FoundBy`), both
        null where the text states no answer.
    """
    text = pl.col("text")
    found = (
        pl.DataFrame({"text": texts.cast(pl.String)})
        .with_columns(boxed=_boxed_answers(texts.cast(pl.String)))
        .with_columns(
            tag=_last_with_content(text, _TAG),
            hashes=_last_with_content(text, _HASHES),
            phrase=_without_mark_up(_last_with_content(text, _PHRASE)),
        )
    )
    ways = [way.value for way in FoundBy]
    return found.select(
        answer=pl.coalesce(ways),
        found_by=pl.coalesce(pl.when(pl.col(way).is_not_null()).then(pl.lit(way)) for way in ways)
        .cast(pl.String)
        .cast(_FOUND_BY),
    )


def last_boxed(text: str) -> str | None:
    """Returns the content of the last `\\boxed{}` with balanced braces, or None without one.

    Of boxes within each other the innermost is the last. The braces of sets, `\\{` and `\\}`,
    group nothing.
    """
    found, found_start = None, -1
    opened: list[tuple[bool, int]] = []
    for token in _TOKEN.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append((len(token[0]) > 1, token.end()))
        elif token[0] == "}" and opened:
            is_box, start = opened.pop()
            content = text[start : token.start()]
            if is_box and start > found_start and content.strip():
                found, found_start = content, start
    return found


def _boxed_answers(texts: pl.Series) -> pl.Series:
    """Returns the stripped content of each text's last balanced box; null without one."""
    with_box = texts.str.contains(_BOX) & texts.is_not_null()
    last = texts.str.replace_all(_BOX, _MARK).str.split(_MARK).list.last()
    plain = last.str.extract(rf"^({_NESTED})\}}", 1).str.strip_chars()
    plain = pl.select(pl.when(with_box & (plain != "")).then(plain)).to_series()
    left = texts.filter(with_box & plain.is_null())
    read = [last_boxed(text) for text in left]
    rest = iter([None if content is None else content.strip() for content in read])
    if not read:
        return plain
    is_left = (with_box & plain.is_null()).fill_null(False)
    values = [next(rest) if open_ else value for value, open_ in zip(plain, is_left, strict=True)]
    return pl.Series(values, dtype=pl.String)


def _last_with_content(text: pl.Expr, pattern: str) -> pl.Expr:
    """Returns the first group of a pattern's last match that is more than space."""
    matches = text.str.extract_all(pattern)
    contents = matches.list.eval(pl.element().str.extract(pattern, 1).str.strip_chars())
    return contents.list.filter(pl.element() != "").list.last()


def _without_mark_up(answer: pl.Expr) -> pl.Expr:
    """Removes bold type around an answer in running text, and the end of its sentence."""
    reasons = r"(?i),\s*(?:because|since|so|as|which)\b.*$"
    bare = answer.str.replace(reasons, "").str.strip_chars_end(" .*!").str.strip_chars_start(" *")
    return pl.when(bare != "").then(bare)
