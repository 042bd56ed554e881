"""Answers as texts: one way of writing for what is written in many, and the parts of an answer.

What carries no meaning is removed: wrappers, spacing commands, sizes of brackets, bold type, a
period. Nothing is evaluated, and no meaning is guessed: `1,2` stays two numbers.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from stages._grading_numbers import Number, read_number
from stages.answers import last_boxed

_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "0123456789"
)
_CHARACTERS = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2012\uff0d\ufe63", "-")
    | {
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u00f7": "/",
        "\u2044": "/",
        "\u00b1": "\\pm ",
        "\u2248": " ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u2260": "\\ne ",
        "\u221e": "\\infty ",
        "\u222a": "\\cup ",
        "\u2229": "\\cap ",
        "\u2208": "\\in ",
        "\u2205": "\\emptyset ",
        "\u03c0": "\\pi ",
        "\u03b8": "\\theta ",
        "\u00bd": "\\frac{1}{2}",
        "\u00bc": "\\frac{1}{4}",
        "\u00be": "\\frac{3}{4}",
    }
    | {chr(0xFF01 + k): chr(0x21 + k) for k in range(94) if k != 12}  # full-width forms
    | dict.fromkeys(map(chr, (0x00A0, 0x2007, 0x2009, 0x202F, 0x3000)), " ")
)
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|[:=])\s*:?\s*",
    re.IGNORECASE,
)
_MATH_FIRST = re.compile(
    r"\A(?:\$(?![\s$])([^$]*[^\s$])\$|\\\((.+?)\\\))(?=\s*(?:\\text|[A-Za-z]))", re.S
)
"""What stands before a unit, such as `$5$ km`."""
_WRAPPED = [
    re.compile(r"\$\$([^$]+)\$\$", re.S),
    re.compile(r"\$([^$]+)\$", re.S),
    re.compile(r"\\\(((?:(?!\\\)).)+)\\\)", re.S),
    re.compile(r"\\\[((?:(?!\\\]).)+)\\\]", re.S),
    re.compile(r"\*\*([^*]+)\*\*", re.S),
    re.compile(r"\\text\s*\{([^{}]*)\}", re.S),
    re.compile(r"\{([^{}]*)\}", re.S),
    re.compile(r"=\s*([^=]+)", re.S),
]
_DEGREE = r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\u00b0|\\degree(?![A-Za-z])"
_REPLACED = [
    (
        re.compile(r"\\(?:textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)(?=\s*\{)"),
        r"\\text",
    ),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r",\s*\\!\s*(?=\d{3})", re.A), ","),
    (re.compile(r"\\!|\\,|\\;|\\:|\{,\}(?=\d)"), ""),
    (re.compile(r"\\(?:quad|qquad)(?![A-Za-z])|(?<!\\)\\(?=\s)|(?<!\\)\\$|~"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)", re.A), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*(\{)", re.A), r"\\frac{\1}\2"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)(?!\d)", re.A), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*(\d+|[a-z](?![A-Za-z]))", re.A), r"\\sqrt{\1}"),
    (re.compile(r"\u221a\s*(?:(\d+|[a-z])|\(([^()]*)\)|\{([^{}]*)\})", re.A), r"\\sqrt{\1\2\3}"),
    (re.compile(rf"(?:{_DEGREE})\s*(?:\\text\s*\{{\s*)?C(?![A-Za-z])\s*\}}?"), " celsius"),
    (re.compile(rf"(?:{_DEGREE})\s*(?:\\text\s*\{{\s*)?F(?![A-Za-z])\s*\}}?"), " fahrenheit"),
    (re.compile(_DEGREE), ""),
    (re.compile(r"_\s*\{\s*\(?(?:\\text\s*\{)?\s*(\w+)\s*\}?\)?\s*\}"), r"_\1"),
    (re.compile(r"\\leq(?![A-Za-z])|\\leqslant(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\geq(?![A-Za-z])|\\geqslant(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\log_(\w)\s*"), r"\\log_{\1}"),
    (re.compile(r"\\begin\s*\{[bvBV]?(?:small)?matrix\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\s*\{[bvBV]?(?:small)?matrix\}"), r"\\end{pmatrix}"),
]
_MARKED_UP = re.compile(r"[\\{_~\u221a\u00b0]|[<>]=")
"""What a text holds if any of the replacements can apply; most answers hold none of it."""


def normalise(text: str) -> str:
    """Returns an answer in one way of writing; its last `\\boxed{}` alone if it has one."""
    boxed = last_boxed(text)
    text = _with_powers((text if boxed is None else boxed).strip()).translate(_CHARACTERS).strip()
    if lead := _LEAD.match(text):
        text = text[lead.end() :]
    text = _MATH_FIRST.sub(lambda math: math[1] or math[2], text, count=1)
    if _MARKED_UP.search(text):
        for pattern, replacement in _REPLACED:
            text = pattern.sub(replacement, text)
    while True:
        bare = text.strip().rstrip(",;").rstrip()
        if bare.endswith(".") and not bare.endswith("..."):
            bare = bare[:-1].rstrip()
        if bare.startswith(("$", "\\", "*", "{", "=")):
            for wrapped in _WRAPPED:
                if match := wrapped.fullmatch(bare):
                    bare = match[1].strip()
        if bare == text:
            return text
        text = bare


def _with_powers(text: str) -> str:
    """Writes raised digits as powers."""
    raised = "[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
    return re.sub(raised, lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)


_LONG_WORDS = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Za-z]+(?: [A-Za-z]+)* [A-Za-z]{4,}")
_SHORT = """
    yes no odd all any both none one two six ten red sun mon tue wed thu fri sat jan feb mar apr
    jun jul aug sep oct nov dec man boy cat dog cow on or it he she
"""
_SHORT_WORDS = frozenset(_SHORT.split())
"""Words that are too short to be told from products of variables by their length."""


def is_words(text: str) -> bool:
    """Returns whether a text is made of words, so that its letters are no variables."""
    return text.casefold() in _SHORT_WORDS or _LONG_WORDS.fullmatch(text) is not None


_CHOICE = re.compile(r"\(?\s*([A-J])\s*\)?|\(\s*([a-j])\s*\)|(?:option|choice)\s+\(?([A-J])\)?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\(([A-J])\)|([A-J])[.):])\s*(?:\\text\s*\{)?(?P<rest>.+)", re.S)


def choice_of(text: str) -> str | None:
    """Returns the letter of a choice: `A`, `(A)`, `(a)`, `(A) 5`, `A. five`; else None."""
    if match := _CHOICE.fullmatch(text):
        return next(letter for letter in match.groups() if letter).upper()
    match = _CHOICE_WITH_TEXT.fullmatch(text)
    if match is None or re.search(r"\b(?:or|and)\b|\([A-J]\)|,\s*[A-J]\b", match["rest"]):
        return None
    return match[1] or match[2]


def key_of(text: str) -> str:
    """Returns a normalised text without spaces, except between digits, where they part numbers."""
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    return bare.casefold() if is_words(text) else bare


def depth_of(text: str) -> int:
    """Returns the deepest nesting of brackets."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


_NAME = r"\\?[A-Za-z]+(?:_\w+|_\{\w+\})?(?:\(\s*[A-Za-z]\s*\))?"
_EQUATION = re.compile(
    rf"(?P<name>{_NAME})\s*=\s*(?P<value>[^=]+)|(?P<first>[^=A-Za-z\\]+)=\s*(?P<last>{_NAME})", re.S
)
_MEMBERSHIP = re.compile(rf"(?P<name>{_NAME})\s*\\in\b\s*(?P<value>.+)", re.S)


def named_value(text: str) -> tuple[str, str] | None:
    """Returns the name and value of `x = 5`, `f(x) = 2x`, `5 = x` or `x \\in [0, 1]`, else None."""
    match = _EQUATION.fullmatch(text)
    if match and match["last"]:
        return key_of(match["last"]), match["first"].strip()
    match = match or _MEMBERSHIP.fullmatch(text)
    return None if match is None else (key_of(match["name"]), match["value"].strip())


_BASE = re.compile(r"\(?([0-9A-Fa-f]+)\)?_(\d+)")


def digits_and_base(text: str) -> tuple[str, str | None]:
    """Returns digits and base of a number such as `52_8`, or the text and None."""
    match = _BASE.fullmatch(key_of(text))
    return (text, None) if match is None else (match[1], match[2])


_BRACKETED = re.compile(r"(?P<open>[(\[])(?P<inner>.*)(?P<close>[)\]])", re.S)
_MATRIX = re.compile(r"\\begin\{pmatrix\}(?P<inner>.*)\\end\{pmatrix\}", re.S)


def elements_of(text: str) -> tuple[str, list[str]] | None:
    """Returns shape and elements of a tuple, an interval or a matrix, else None.

    The shape holds the brackets, or the number of columns of each row of a matrix.
    """
    if match := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in re.split(r"\\\\", match["inner"]) if row.strip()]
        if any(r"\begin" in cell for row in rows for cell in row):
            return None
        shape = ",".join(str(len(row)) for row in rows)
        return f"matrix {shape}", [cell.strip() for row in rows for cell in row]
    match = _BRACKETED.fullmatch(text)
    parts = [] if match is None else _split_at_commas(match["inner"])
    return None if match is None or len(parts) < 2 else (match["open"] + match["close"], parts)


def _split_at_commas(text: str) -> list[str]:
    """Returns the parts between commas outside brackets; none where brackets do not match."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return []
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()] if depth == 0 else []


_RELATION = r"\s*(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))\s*"
_SIDE = r"([^<>=,]+?)"
_CHAIN = re.compile(rf"{_SIDE}{_RELATION}([A-Za-z]){_RELATION}{_SIDE}")
_SINGLE = re.compile(rf"([A-Za-z]){_RELATION}{_SIDE}|{_SIDE}{_RELATION}([A-Za-z])")
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def as_interval(text: str) -> str | None:
    """Returns an inequality in one variable as interval: `3 < x \\le 4` as `(3,4]`; else None."""
    parts = re.split(r"\s*(?:\\text\s*\{\s*or\s*\}|\bor\b|\\cup|\\lor)\s*", text)
    intervals = [_one_interval(part.strip()) for part in parts]
    return None if None in intervals else "\\cup".join(i for i in intervals if i)


def _one_interval(text: str) -> str | None:
    if chain := _CHAIN.fullmatch(text):
        low, first, _, second, high = chain.groups()
        if (first in ("<", "\\le")) != (second in ("<", "\\le")):
            return None
        if first in (">", "\\ge"):
            low, first, second, high = high, _TURNED[second], _TURNED[first], low
        return f"{'(' if first == '<' else '['}{low},{high}{')' if second == '<' else ']'}"
    single = _SINGLE.fullmatch(text)
    if single is None:
        return None
    _, relation, bound, other_bound, other_relation, _ = single.groups()
    if relation is None:
        relation, bound = _TURNED[other_relation], other_bound
    if re.search(r"(?<!\\)\b[A-Za-z]\b", bound):
        return None
    if relation in ("<", "\\le"):
        return f"(-\\infty,{bound}{')' if relation == '<' else ']'}"
    return f"{'(' if relation == '>' else '['}{bound},\\infty)"


def is_costly(text: str) -> bool:
    """Returns whether an expression asks for more digits than anybody could mean.

    Towers of powers, exponents and binomials of five digits, factorials of four digits or of an
    expression, numbers of more than 100 digits: sympy would compute them until it is killed.
    """
    return _COSTLY.search(text.replace("**", "^")) is not None


_RAISED = r"\^\s*(?:(?:[{(]\s*)+[^{}()^]{0,20}|\d+\s*)"
"""A caret with what stands before the next one, if that one is in the exponent."""
_COSTLY = re.compile(
    rf"(?:{_RAISED}){{2}}\^|\^\s*[{{(]*\s*[+-]?\s*\d{{5,}}|\\binom\{{\d{{5,}}"
    r"|\d{4,}\s*!|[)}!]\s*!|\d{101,}",
    re.A,
)


def as_latex(text: str) -> str:
    """Returns what Python and sympy print (`x**10`, `pi`, `sqrt(2)`) as LaTeX."""
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?!\w)", r"\1\\times 10^{\2}", text)
    text = re.sub(r"\*\*\s*(\([^()]*\)|-?[\w.]+)", r"^{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    return re.sub(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln|exp)(?=\s*\()", r"\\\1", text)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is compared."""

    text: str
    """Normalised."""
    key: str
    number: Number | None
    words: bool


@lru_cache(maxsize=20_000)
def read_answer(text: str) -> Answer:
    """Returns an answer as it is compared; kept, for a gold answer meets many predictions."""
    normal = normalise(text)
    return read_normalised(normal)


def read_normalised(normal: str) -> Answer:
    """Returns an answer of a text that is normalised already."""
    words = is_words(normal)
    return Answer(normal, key_of(normal), read_number(normal), words)
