"""Grading of final answers: is the prediction the gold answer?

Cheap first: equal texts and integers as columns, then equal text after normalisation and numbers
as exact fractions, each pair of texts once. Only what that leaves open goes to math-verify, in
child processes that are killed when they do not end.

It does not read the reasoning of a trajectory, and it does not search a text for a number: the
whole answer must be the gold answer, or a `\\boxed{}` in it. An expression that evaluates to the
gold answer (`2^3` for 8) is right, as math-verify has it.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

import polars as pl

from schemas.errors import TurnledgerError
from schemas.tables import Verdict
from stages._grading_processes import compare

MAX_CHARS = 512
"""Longest answer that is parsed; longer ones are right only if they equal the gold text."""

MAX_DEPTH = 16
"""Deepest nesting of brackets that is parsed, likewise."""

_PAIR = ("prediction", "answer")
_VERDICTS = pl.Enum([v.value for v in Verdict])
_PLAIN_INTEGER = r"^-?[0-9]{1,18}$"


def grade(predictions: pl.DataFrame, *, time_s: float) -> pl.Series:
    """Returns the verdict of each row's prediction.

    Args:
        predictions: Columns `prediction` (String, null where no answer was given) and `answer`
            (String, the gold answer).
        time_s: Wall time, seconds, after which the comparison of one pair is given up.

    Returns:
        Series `verdict`, an enum of `Verdict`, in the order of the rows.

    Raises:
        TurnledgerError: On a missing column or gold answer, and where a comparing process
            cannot be started: a machine's failure is no wrong answer.
    """
    missing = [name for name in _PAIR if name not in predictions.columns]
    if missing:
        raise TurnledgerError(f"grading needs the columns {', '.join(missing)}")
    if predictions["answer"].null_count():
        raise TurnledgerError("grading needs a gold answer on every row; some are null")
    pairs = predictions.select(_PAIR)
    distinct = pairs.unique(maintain_order=True).with_columns(verdict=_plain_verdict())
    undecided = distinct.filter(pl.col("verdict").is_null()).select(_PAIR)
    rest = _verdicts(list(undecided.iter_rows()), time_s)
    graded = pl.concat(
        [
            distinct.filter(pl.col("verdict").is_not_null()),
            undecided.with_columns(pl.Series("verdict", rest, dtype=_VERDICTS)),
        ]
    )
    return pairs.join(graded, on=_PAIR, how="left", nulls_equal=True, maintain_order="left")[
        "verdict"
    ]


def _plain_verdict() -> pl.Expr:
    """Says as `decide` would what needs no look into the text; null for all else."""
    prediction, answer = pl.col("prediction"), pl.col("answer")
    integers = [text.str.contains(_PLAIN_INTEGER) for text in (prediction, answer)]
    equal_integers = prediction.cast(pl.Int64, strict=False) == answer.cast(pl.Int64, strict=False)
    return (
        pl.when(prediction.is_null())
        .then(pl.lit(Verdict.NO_ANSWER.value))
        .when((prediction == answer) & prediction.str.contains("[!-~]"))  # not all space
        .then(pl.lit(Verdict.RIGHT.value))
        .when(pl.all_horizontal(integers))
        .then(
            pl.when(equal_integers)
            .then(pl.lit(Verdict.RIGHT.value))
            .otherwise(pl.lit(Verdict.WRONG.value))
        )
        .cast(_VERDICTS)
    )


def _verdicts(pairs: list[tuple[str, str]], time_s: float) -> list[str]:
    """Returns the verdicts of pairs of texts, as many of them as can be without math-verify."""
    verdicts: list[Verdict | None] = [_verdict(*pair) for pair in pairs]
    left_open = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
    compared = iter(compare([_for_comparison(*pair) for pair in left_open], time_s=time_s))
    return [(next(compared) if verdict is None else verdict).value for verdict in verdicts]


def _verdict(prediction: str, answer: str) -> Verdict | None:
    if not prediction.strip():
        return Verdict.NO_ANSWER
    decided = decide(prediction, answer)
    if decided is None:
        return None
    return Verdict.RIGHT if decided else Verdict.WRONG


def _for_comparison(prediction: str, answer: str) -> tuple[str, str]:
    return _as_latex(_normalise(prediction)), _as_latex(_normalise(answer))


def decide(prediction: str, answer: str) -> bool | None:
    """Returns whether two answers are equal as far as text and numbers tell, else None."""
    if max(len(prediction), len(answer)) > MAX_CHARS:
        return prediction.strip() == answer.strip()
    ours, gold = _normalise(prediction), _normalise(answer)
    if _key(ours) == _key(gold):
        return True
    number, gold_number = _number(ours), _number(gold)
    if number is not None and gold_number is not None:
        return _is_same_number(number, gold_number)
    # math-verify adds numbers in a row, as in mixed fractions: "5 6" would equal 11.
    several = gold_number is not None and _SEVERAL_NUMBERS.search(ours) is not None
    # It reads words as products of letters: "listen" would equal "silent".
    words = all(_WORDS.fullmatch(text) for text in (ours, gold))
    too_deep = max(_depth(ours), _depth(gold)) > MAX_DEPTH
    return False if several or words or too_deep else None


_CHARACTERS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u2012": "-",
        "\uff0d": "-",
        "\uff05": "%",
        "\u00d7": "\\times ",
    }
    | dict.fromkeys(map(chr, (0x00A0, 0x2007, 0x2009, 0x202F, 0x3000)), " ")
)
_LEAD = re.compile(r"(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|[:=])\s*:?\s*", re.IGNORECASE)
_WRAPPED = [
    re.compile(r"\$\$([^$]+)\$\$", re.S),
    re.compile(r"\$([^$]+)\$", re.S),
    re.compile(r"\\\(((?:(?!\\\)).)+)\\\)", re.S),
    re.compile(r"\\\[((?:(?!\\\]).)+)\\\]", re.S),
    re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", re.S),
    re.compile(r"\{([^{}]*)\}", re.S),
]
_REPLACED = [
    (re.compile(r"\\(?:left|right)(?![A-Za-z])"), ""),
    (re.compile(r",\s*\\!\s*(?=\d{3})", re.A), ","),
    (re.compile(r"\\!|\\,|\\;|\\:|\{,\}(?=\d)"), ""),
    (re.compile(r"\\(?:quad|qquad)(?![A-Za-z])|\\ |~"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)", re.A), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*(\{)", re.A), r"\\frac{\1}\2"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)(?!\d)", re.A), r"\1{\2}"),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\u00b0"), ""),
]


def _normalise(text: str) -> str:
    """Returns an answer without what carries no meaning: wrappers, spacing commands, a period."""
    text = _boxed(text.strip().translate(_CHARACTERS)).strip()
    if lead := _LEAD.match(text):
        text = text[lead.end() :]
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    while True:
        bare = text.strip()
        if bare.endswith(".") and not bare.endswith("..."):
            bare = bare[:-1].rstrip()
        for wrapped in _WRAPPED:
            if match := wrapped.fullmatch(bare):
                bare = match[1].strip()
        if bare == text:
            return text
        text = bare


def _boxed(text: str) -> str:
    """Returns the content of the last `\\boxed{}`, or the text where there is none."""
    opening = re.compile(r"\\f?box(?:ed)?\s*\{")
    starts = [match.end() for match in opening.finditer(text)]
    while starts:
        depth = 1
        for position in range(starts[-1], len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[starts[-1] : position]
        starts.pop()
    return text


def _key(text: str) -> str:
    """Returns the text without spaces, except between digits, where they part numbers."""
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    return bare.casefold() if _WORDS.fullmatch(text) else bare


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _as_latex(text: str) -> str:
    """Returns what Python and sympy print (`x**10`, `pi`) as LaTeX, for math-verify."""
    text = re.sub(r"\*\*\s*(\([^()]*\)|-?[\w.]+)", r"^{\1}", text)
    return re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)


@dataclass(frozen=True, slots=True)
class _Number:
    value: Fraction
    decimals: int
    """Decimal places as written; 0 for integers and fractions."""
    percent: bool


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+"
_EXPONENT = r"(?:[eE]|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?)\s*(?P<exponent>[+-]?\d{1,3})\}?"
_SIGN = re.compile(r"(?P<before>[+-]?)\s*(?:\\\$|[$\u20ac\u00a3])?\s*(?P<after>[+-]?)\s*")
_PERCENT = re.compile(r"\s*(?:\\?%|percent)$")
_DECIMAL = re.compile(rf"(?P<digits>{_DIGITS})(?:{_EXPONENT})?", re.A)
_FRACTION = re.compile(
    rf"(?:(?P<whole>\d+)(?:\s*(?=\\frac)|\s+(?=\d)))?"
    rf"(?:\\frac\s*\{{\s*(?P<a>-?(?:{_DIGITS}))\s*\}}\s*\{{\s*(?P<b>-?(?:{_DIGITS}))\s*\}}"
    rf"|(?P<c>{_DIGITS})\s*/\s*(?P<d>{_DIGITS}))",
    re.A,
)
_NOT_UNITS = (
    "and|or|to|by|of|over|times|plus|minus|mod|divided|half|third|quarter|hundred|thousand|"
    "million|billion|trillion|dozen|pi|sqrt|sin|cos|tan|log|ln|exp|percent|base"
)
_UNIT = re.compile(
    rf"(?<=[\d.}}])(?:\s*\\(?:text|mathrm|mbox)\s*"
    rf"\{{\s*(?!(?:{_NOT_UNITS})\b)[A-Za-z][A-Za-z .]*\}}"
    rf"|\s*\{{[A-Za-z]{{2,}}\}}|(?:\s+(?!(?:{_NOT_UNITS})\b)[A-Za-z]{{2,}}){{1,3}})$",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Za-z]+(?: [A-Za-z]+)* [A-Za-z]{4,}")
_SEVERAL_NUMBERS = re.compile(r"\d[\s$]+\d", re.A)


def _number(text: str) -> _Number | None:
    """Returns the number that a text states, with at most a currency, percent sign or unit."""
    sign = _SIGN.match(text)
    if sign is None or (sign["before"] and sign["after"]):
        return None
    body = text[sign.end() :]
    percent = _PERCENT.search(body)
    body = body[: percent.start()] if percent else _UNIT.sub("", body)
    factor = -1 if "-" in (sign["before"], sign["after"]) else 1
    if match := _DECIMAL.fullmatch(body):
        exponent = int(match["exponent"] or 0)
        value = _fraction(match["digits"]) * Fraction(10) ** exponent
        decimals = len(match["digits"].partition(".")[2]) - exponent
        return _Number(factor * value, decimals, percent is not None)
    if match := _FRACTION.fullmatch(body):
        above, below = (_fraction(match[a] or match[b]) for a, b in (("a", "c"), ("b", "d")))
        if below == 0:
            return None
        value = int(match["whole"] or 0) + above / below
        return _Number(factor * value, 0, percent is not None)
    return None


def _fraction(digits: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", digits).removesuffix(".") or "0")


def _is_same_number(ours: _Number, gold: _Number) -> bool:
    """Returns whether two numbers are equal; a percent sign on one side only may be left out."""
    if ours.percent == gold.percent:
        return _is_equal_or_rounded(ours, gold.value, gold.decimals)
    if ours.percent:
        return any(_is_equal_or_rounded(ours, gold.value * f, gold.decimals) for f in (1, 100))
    return any(_is_equal_or_rounded(ours, gold.value / f, gold.decimals) for f in (1, 100))


def _is_equal_or_rounded(ours: _Number, gold: Fraction, gold_decimals: int) -> bool:
    """Returns whether values are equal, up to the rounding of a decimal of 6 places or more.

    Code prints 0.3333333333333333 for 1/3 and 0.30000000000000004 for 0.3. Such a decimal
    stands for all values that round to it, and for the error of double precision.
    """
    difference = abs(ours.value - gold)
    places = [d for d in (ours.decimals, gold_decimals) if d >= 6]
    if difference == 0 or not places:
        return difference == 0
    return difference <= max(Fraction(1, 2 * 10 ** min(places)), abs(gold) / 10**13)
