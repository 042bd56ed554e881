"""Numbers as answers state them: exact fractions, with a currency, a unit or a percent sign.

It reads a text that was normalised by `stages._grading_texts`, and only if the whole of it states
one number. It evaluates nothing: `2^3` is no number here.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from stages._grading_words import spelled_integer, with_digits_alone

ROUNDED_PLACES = 3
"""Decimal places from which on a decimal may stand for an endless one: 0.333 for 1/3."""

PRINTED_PLACES = 6
"""Decimal places from which on a decimal stands for every value that rounds to it."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number with how it was written."""

    value: Fraction
    decimals: int | None
    """Decimal places as written, 0 for integers; None for fractions."""
    significant: int
    """Digits as written, zeros in front of the first other one left out; 0 for fractions."""
    percent: bool
    unit: str | None
    """Unit or currency by its one name, if it is a known one."""


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:_\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_EXPONENT = (
    r"(?:[eE]|\s*(?:\\times|\\cdot|\*|[xX])\s*10\s*(?:\^|\*\*)\s*[{(]?)\s*"
    r"(?P<exponent>[+-]?\d{1,3})[)}]?"
)
_CURRENCIES = {"$": "dollar", "\\$": "dollar", "US$": "dollar", "USD": "dollar"}
_CURRENCIES |= {"\u20ac": "euro", "EUR": "euro", "\u00a3": "pound", "GBP": "pound"}
_CURRENCY = r"US\$|\\?\$|\u20ac|\u00a3|USD|EUR|GBP"
_DIGIT = re.compile(r"\d", re.A)
_SIGN = re.compile(
    rf"(?P<before>[+-]?)\s*(?P<currency>{_CURRENCY})?\s*(?P<after>[+-]?)\s*", re.IGNORECASE
)
_CURRENCY_AFTER = re.compile(rf"(?<=[\d.}}])\s*(?P<currency>{_CURRENCY})$", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(?:\\?%|per ?cent|\\text\s*\{\s*(?:\\?%|per ?cent)\s*\})$")
_DECIMAL = re.compile(rf"(?P<digits>{_DIGITS})(?:{_EXPONENT})?", re.A)
_FRACTION = re.compile(
    rf"(?:(?P<whole>\d+)(?:\s*(?=\\frac)|\s+(?=\d)))?"
    rf"(?:\\frac\s*\{{\s*(?P<a>-?(?:{_DIGITS}))\s*\}}\s*\{{\s*(?P<b>-?(?:{_DIGITS}))\s*\}}"
    rf"|\(?(?P<c>{_DIGITS})\)?\s*/\s*\(?(?P<d>-?(?:{_DIGITS}))\)?)",
    re.A,
)
_REPEATING = re.compile(
    r"(?P<whole>\d+)\.(?P<first>\d*)\\(?:overline|bar)\s*\{\s*(?P<again>\d+)\s*\}", re.A
)
NOT_UNITS = (
    "and|or|to|by|of|over|times|plus|minus|mod|divided|half|third|quarter|hundred|thousand|"
    "million|billion|trillion|dozen|pi|sqrt|sin|cos|tan|log|ln|exp|percent|base|less|more|per|"
    "halves|thirds|quarters|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|"
    "hundredths?|thousandths?|millionths?|hundreds|thousands|millions|billions|trillions|lakhs?|"
    "crores?|dozens|squared|cubed|factorial|roots?|choose|is|are|not|below|above"
)
"""Words after a number that are no unit, as alternatives of a pattern."""
_NO_UNIT = re.compile(NOT_UNITS, re.IGNORECASE)
_SHORT_UNITS = "mm|cm|dm|km|ft|in|yd|mi|mg|kg|lbs?|oz|ml|mL|hrs?|min|secs?|mph|kph"
_POWER = r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
_PER = rf"(?:\s*(?:/|per)\s*(?:[A-Za-z]{{2,}}|[smhd]){_POWER})?"
_UNIT = re.compile(
    rf"(?<=[\d.}}])(?:\s*\\text\s*\{{\s*(?!(?:{NOT_UNITS})\b)(?P<a>[A-Za-z][A-Za-z .]*?{_PER})"
    rf"\s*\}}{_POWER}|\s*\{{(?P<b>[A-Za-z]{{2,}})\}}"
    rf"|\s*(?P<c>{_SHORT_UNITS})(?![A-Za-z]){_POWER}{_PER}"
    rf"|\s+(?P<d>(?:m|g|s|h|L)(?=/)|(?!(?:{NOT_UNITS})\b)[A-Za-z]{{2,}}"
    rf"(?:\s+(?!(?:{NOT_UNITS})\b)[A-Za-z]{{2,}}){{0,2}}){_POWER}{_PER})\.?$",
    re.IGNORECASE,
)
_UNITS = {
    alias: name
    for name, aliases in {
        "mm": "mm millimeter millimetre",
        "cm": "cm centimeter centimetre",
        "m": "m meter metre",
        "km": "km kilometer kilometre",
        "inch": "in inch inche",
        "foot": "ft foot feet",
        "yard": "yd yard",
        "mile": "mi mile",
        "mg": "mg milligram",
        "g": "g gram",
        "kg": "kg kilogram",
        "pound weight": "lb",
        "ounce": "oz ounce",
        "second": "s sec second",
        "minute": "min minute",
        "hour": "h hr hour",
        "day": "day",
        "week": "week",
        "month": "month",
        "year": "year",
        "dollar": "dollar usd",
        "cent": "cent",
        "euro": "euro eur",
        "mile/hour": "mph",
        "km/hour": "kph",
        "degree": "degree",
        "radian": "radian rad",
        "celsius": "celsius",
        "fahrenheit": "fahrenheit",
    }.items()
    for alias in aliases.split()
}
"""Units that exclude each other; any other word after a number may be left out or differ."""


def read_number(text: str) -> Number | None:
    """Returns the number that a text states, with at most a currency, percent sign or unit."""
    if not _DIGIT.search(text):
        return _read_words(text)
    text = with_digits_alone(text)
    sign = _SIGN.match(text)
    if sign is None or (sign["before"] and sign["after"]):
        return None
    body = text[sign.end() :]
    percent = _PERCENT.search(body)
    body, unit = (body[: percent.start()], None) if percent else _without_unit(body)
    if sign["currency"]:
        unit = _CURRENCIES[sign["currency"].upper()]
    read = _read_digits(body)
    if read is None:
        return None
    value, decimals, significant = read
    factor = -1 if "-" in (sign["before"], sign["after"]) else 1
    return Number(factor * value, decimals, significant, percent is not None, unit)


def _read_digits(body: str) -> tuple[Fraction, int | None, int] | None:
    """Returns value, decimal places and significant digits of a number without sign and unit."""
    if match := _DECIMAL.fullmatch(body):
        exponent = int(match["exponent"] or 0)
        value = _fraction(match["digits"]) * Fraction(10) ** exponent
        decimals = len(match["digits"].partition(".")[2]) - exponent
        significant = len(re.sub(r"\D", "", match["digits"]).lstrip("0"))
        return value, max(decimals, 0), significant
    if match := _FRACTION.fullmatch(body):
        above, below = (_fraction(match[a] or match[b]) for a, b in (("a", "c"), ("b", "d")))
        return None if below == 0 else (int(match["whole"] or 0) + above / below, None, 0)
    if match := _REPEATING.fullmatch(body):
        once, again = match["whole"] + match["first"], match["again"]
        below = 10 ** len(match["first"]) * (10 ** len(again) - 1)
        return Fraction(int(once + again) - int(once), below), None, 0
    return None


def _read_words(text: str) -> Number | None:
    """Returns the number that words spell, with at most a unit after them."""
    percent = _PERCENT.search(text)
    if percent is not None:
        text = text[: percent.start()]
    value, unit = spelled_integer(text), None
    if value is None and percent is None:
        words, _, last = text.rpartition(" ")
        if words and _NO_UNIT.fullmatch(last) is None and spelled_integer(last) is None:
            value, unit = spelled_integer(words), _unit_name(last)
    return None if value is None else Number(Fraction(value), 0, 1, percent is not None, unit)


def _without_unit(body: str) -> tuple[str, str | None]:
    """Returns what stands before a unit or currency, and the name of the unit if known."""
    if match := _CURRENCY_AFTER.search(body):
        return body[: match.start()], _CURRENCIES[match["currency"].upper()]
    match = _UNIT.search(body)
    if match is None:
        return body, None
    return body[: match.start()], _unit_name(match[0])


_ONE_UNIT = re.compile(
    r"(?P<before>(?:square|sq|cubic|cu)\.? )?(?P<name>.+?)(?P<after>\^[23]| squared| cubed)?"
)


def _unit_name(written: str) -> str | None:
    """Returns the one name of a unit: `km/hour` of `\\text{ km/h}`; None if it has none."""
    bare = re.sub(r"\\text|[{}]|\s(?=\^)|(?<=\^)\s", "", written).lower()
    names = []
    for part in re.split(r"/|\bper\b", bare):
        match = _ONE_UNIT.fullmatch(" ".join(part.split()).rstrip("."))
        name = match and (_UNITS.get(match["name"]) or _UNITS.get(match["name"].removesuffix("s")))
        if match is None or name is None:
            return None
        power = (match["before"] or "") + (match["after"] or "")
        names.append(name + ("^3" if re.search("3|cu", power) else "^2" if power else ""))
    return "/".join(names)


def _fraction(digits: str) -> Fraction:
    return Fraction(re.sub(r"[, _]", "", digits).removesuffix(".") or "0")


_LETTER_UNIT = re.compile(r"(?<=[\d.}])\s*(?P<unit>[mgshL](?:\^\{?[23]\}?)?)$")


def read_with_letter(text: str) -> Number | None:
    """Returns the number before a single letter that is a unit, such as `5 m`.

    Alone such a letter may be a variable; beside another unit it is none.
    """
    match = _LETTER_UNIT.search(text)
    number = None if match is None else read_number(text[: match.start()])
    if match is None or number is None or number.unit is not None:
        return None
    return replace(number, unit=_unit_name(match["unit"]) or match["unit"])


def is_same_number(ours: Number, gold: Number) -> bool:
    """Returns whether two numbers are equal.

    A unit or percent sign on one side only may be left out, so that both 50 and 0.5 equal 50 %;
    different known units make different numbers.
    """
    if ours.unit and gold.unit and ours.unit != gold.unit:
        return False
    if ours.percent == gold.percent:
        return _is_equal_or_rounded(ours, gold.value, gold)
    if ours.percent:
        return any(_is_equal_or_rounded(ours, gold.value * f, gold) for f in (1, 100))
    return any(_is_equal_or_rounded(ours, gold.value / f, gold) for f in (1, 100))


def _is_equal_or_rounded(ours: Number, gold_value: Fraction, gold: Number) -> bool:
    """Returns whether values are equal, up to rounding of decimals where it must have been rounded.

    Code prints 0.3333333333333333 for 1/3 and 0.30000000000000004 for 0.3: a decimal of 6 places
    or more stands for all values that round to it, and for the error of double precision. People
    write 0.333 for 1/3: from 3 places on a decimal stands for a fraction that no decimal ends.
    """
    difference = abs(ours.value - gold_value)
    if difference == 0:
        return True
    if ours.decimals is not None and gold.decimals is not None:
        least, written = PRINTED_PLACES, [ours, gold]
    elif ours.decimals is not None:
        least = ROUNDED_PLACES if _is_endless(gold_value) else PRINTED_PLACES
        written = [ours]
    elif gold.decimals is not None:
        least = ROUNDED_PLACES if _is_endless(ours.value) else PRINTED_PLACES
        written = [gold]
    else:
        return False
    # Of few digits the last is no rounding error: 1.4e-7 is not 1e-7.
    places = [n.decimals or 0 for n in written if min(n.decimals or 0, n.significant) >= least]
    if not places:
        return False
    printed = abs(gold_value) / 10**13 if max(places) >= PRINTED_PLACES else 0
    return difference <= max(Fraction(1, 2 * 10 ** min(places)), printed)


def _is_endless(value: Fraction) -> bool:
    """Returns whether no decimal states a value: its denominator has a factor other than 2, 5."""
    below = value.denominator
    for factor in (2, 5):
        while below % factor == 0:
            below //= factor
    return below != 1
