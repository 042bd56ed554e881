"""Numbers and times of day as English says them: `twenty-one`, `1.5 million`, `5:30 p.m.`."""

import re

_SMALL_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
"""
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_SMALL_WORDS.split())}
_TENS = {word: 10 * value for value, word in enumerate(_TENS_WORDS.split(), start=2)}
_POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def spelled_integer(text: str) -> int | None:
    """Returns the integer that words spell, such as `minus one hundred and five`, else None."""
    words = re.split(r"[\s-]+", text.casefold())
    words[:1] = ["one"] if words[0] in ("a", "an") and len(words) > 1 else words[:1]
    sign = 1
    if words[0] in ("minus", "negative"):
        sign, words = -1, words[1:]
    total = group = 0
    room, scale = 1000, 10**15  # What the next word must stay below: two fives are no number.
    for position, word in enumerate(words):
        value = _SMALL.get(word, _TENS.get(word))
        if value is not None and value < room and (value or len(words) == 1):
            group += value
            room = 10 if word in _TENS else 0
        elif word == "hundred" and 0 < group < 100:
            group, room = 100 * group, 100
        elif group and word != "hundred" and 10 ** _POWERS_OF_TEN.get(word, 15) < scale:
            scale = 10 ** _POWERS_OF_TEN[word]
            total, group, room = total + scale * group, 0, 1000
        elif word != "and" or not 0 < position < len(words) - 1:
            return None
    return sign * (total + group) if words else None


_SIGN_WORD = re.compile(r"(?:minus|negative)\s+(?=[\d.\\$])", re.A | re.I)
_SCALE_WORD = re.compile(
    rf"(?<=\d)\s*(?:\\text\s*\{{\s*)?({'|'.join(_POWERS_OF_TEN)})\b(?:\s*\}})?", re.A | re.I
)


def with_digits_alone(text: str) -> str:
    """Writes the words around digits as signs: `minus 1.5 million` as `-1.5e6`."""
    if sign := _SIGN_WORD.match(text):
        text = f"-{text[sign.end() :]}"
    return _SCALE_WORD.sub(lambda match: f"e{_POWERS_OF_TEN[match[1].lower()]}", text, count=1)


_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d))?"
    r"\s*(?:(?:\\text\s*\{\s*)?(?P<half>[ap])\.?\s?m\.?\s*\}?)?",
    re.A | re.I,
)


def time_of_day(text: str) -> tuple[int, str | None] | None:
    """Returns the minutes on a clock face and the half of the day, `a` or `p`, where told.

    None where the text is no time: neither `5:30`, nor `5 am`.
    """
    match = _TIME.fullmatch(text)
    if match is None or not (match["minute"] or match["half"]):
        return None
    hour, half = int(match["hour"]), (match["half"] or "").lower() or None
    if not 0 <= hour <= (12 if half else 24):
        return None
    if half is None and hour > 12:
        half = "p" if hour < 24 else "a"
    return 60 * (hour % 12) + int(match["minute"] or 0), half
