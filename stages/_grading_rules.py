"""The rules by which text and numbers decide whether two answers are equal.

They come in order, and the first that can decide does. What they leave open goes to math-verify.
"""

import re
from dataclasses import dataclass

from schemas.categories import GradingMethod
from stages._grading_numbers import is_same_number, read_with_letter
from stages._grading_texts import (
    Answer,
    as_interval,
    as_latex,
    choice_of,
    depth_of,
    digits_and_base,
    elements_of,
    is_costly,
    key_of,
    named_value,
    read_answer,
    read_normalised,
)
from stages._grading_words import time_of_day

MAX_CHARS = 512
"""Longest answer that is parsed; longer ones are right only if they equal the gold text."""

MAX_DEPTH = 16
"""Deepest nesting of brackets that is parsed, likewise."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether two answers are equal, and what decided it."""

    equal: bool
    method: GradingMethod


def decide(prediction: str, answer: str) -> Decision | None:
    """Returns whether two answers are equal as far as text and numbers tell, else None."""
    if max(len(prediction), len(answer)) > MAX_CHARS:
        return _decide_long(prediction.strip(), answer.strip())
    return _decide(*_comparable(read_answer(prediction), read_answer(answer)))


def as_compared(prediction: str, answer: str) -> tuple[str, str]:
    """Returns what of two answers math-verify compares, as LaTeX."""
    ours, gold = _comparable(read_answer(prediction), read_answer(answer))
    return as_latex(ours.text), as_latex(gold.text)


def _decide_long(prediction: str, answer: str) -> Decision:
    if prediction == answer:
        return Decision(True, GradingMethod.TEXT)
    return Decision(False, GradingMethod.CAP)


def _comparable(ours: Answer, gold: Answer) -> tuple[Answer, Answer]:
    """Returns two answers in forms that can be compared: a named value, an interval as such.

    `x = 5` is 5 beside a gold answer of 5, and `x > 2` the interval beside an interval.
    """
    if ours.key == gold.key or (ours.number and gold.number):
        return ours, gold
    our_name, gold_name = named_value(ours.text), named_value(gold.text)
    if our_name and gold_name and our_name[0] == gold_name[0]:
        ours, gold = read_normalised(our_name[1]), read_normalised(gold_name[1])
    elif our_name and not gold_name and "=" not in gold.text:
        ours = read_normalised(our_name[1])
    elif gold_name and not our_name and "=" not in ours.text:
        gold = read_normalised(gold_name[1])
    return _as_intervals(ours, gold), _as_intervals(gold, ours)


def _as_intervals(answer: Answer, other: Answer) -> Answer:
    if not other.text.startswith(("(", "[")):
        return answer
    interval = as_interval(answer.text)
    return answer if interval is None else read_normalised(interval)


def _decide(ours: Answer, gold: Answer) -> Decision | None:
    if ours.key == gold.key:
        return Decision(True, GradingMethod.TEXT)
    if decision := _decide_times(ours, gold):
        return decision
    if ours.number is not None and gold.number is not None:
        return Decision(is_same_number(ours.number, gold.number), GradingMethod.NUMBER)
    return (
        _decide_units(ours, gold)
        or _decide_words(ours, gold)
        or _decide_forms(ours, gold)
        or _decide_elements(ours, gold)
        or _decide_capped(ours, gold)
    )


def _decide_times(ours: Answer, gold: Answer) -> Decision | None:
    """Decides times of day; without a half of the day on either side it may be a ratio."""
    time, gold_time = time_of_day(ours.text), time_of_day(gold.text)
    if time is None or gold_time is None or not (time[1] or gold_time[1]):
        return None
    halves = {half for half in (time[1], gold_time[1]) if half}
    return Decision(time[0] == gold_time[0] and len(halves) == 1, GradingMethod.NUMBER)


def _decide_units(ours: Answer, gold: Answer) -> Decision | None:
    """Decides where a letter after a number is a unit, as the other answer has one too."""
    number = ours.number or read_with_letter(ours.text)
    gold_number = gold.number or read_with_letter(gold.text)
    if number is None or gold_number is None or not (number.unit and gold_number.unit):
        return None
    return Decision(is_same_number(number, gold_number), GradingMethod.NUMBER)


def _decide_words(ours: Answer, gold: Answer) -> Decision | None:
    """Decides where answers are words or letters of a choice."""
    choice, gold_choice = choice_of(ours.text), choice_of(gold.text)
    if choice and gold_choice:
        return Decision(choice == gold_choice, GradingMethod.TEXT)
    # math-verify reads words as products of letters: "listen" would equal "silent".
    both = (ours.words and gold.words) or (
        (ours.words or gold.words) and ours.text.isalpha() and gold.text.isalpha()
    )
    if both or _is_rearranged(ours.text, gold.text):
        return Decision(False, GradingMethod.TEXT)
    return None


def _is_rearranged(ours: str, gold: str) -> bool:
    """Returns whether words or orders of letters have the same letters: HTT is not TTH.

    Of two small letters it may be a product of variables.
    """
    bare, gold_bare = (re.sub("['\u2019-]", "", text) for text in (ours, gold))
    are_letters = bare.isalpha() and gold_bare.isalpha() and len(bare) == len(gold_bare)
    return are_letters and (len(bare) > 2 or bare.isupper()) and sorted(bare) == sorted(gold_bare)


_SEVERAL_NUMBERS = re.compile(r"\d[\s$]+\d", re.A)


def _decide_forms(ours: Answer, gold: Answer) -> Decision | None:
    """Decides where one answer has a form that the other cannot equal."""
    different = Decision(False, GradingMethod.FORM)
    # math-verify adds numbers in a row, as in mixed fractions: "5 6" would equal 11.
    if gold.number is not None and _SEVERAL_NUMBERS.search(ours.text):
        return different
    # math-verify takes a tuple or an interval for the set of its ends.
    if {_brackets(ours.text), _brackets(gold.text)} == {"set", "tuple"}:
        return different
    digits, base = digits_and_base(ours.text)
    gold_digits, gold_base = digits_and_base(gold.text)
    if base or gold_base:
        # The problem names the base, so that the prediction may leave it out, and not add one.
        same = digits.lstrip("0") == gold_digits.lstrip("0") and base in (gold_base, None)
        return Decision(True, GradingMethod.TEXT) if same else different
    # math-verify compares some texts without case: the radii R and r would be one.
    names, gold_names = _variables(ours.text), _variables(gold.text)
    if names != gold_names and {n.lower() for n in names} == {n.lower() for n in gold_names}:
        return different
    return None


def _brackets(text: str) -> str | None:
    """Returns whether several elements stand in braces, or in other brackets; else None."""
    if "," not in text:
        return None
    if text.startswith("\\{") and text.endswith("\\}"):
        return "set"
    return "tuple" if text.startswith(("(", "[")) and text.endswith((")", "]")) else None


def _variables(text: str) -> set[str]:
    bare = re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    return set(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", bare))


def _decide_elements(ours: Answer, gold: Answer) -> Decision | None:
    """Decides tuples, intervals and matrices of one shape by their elements.

    They are different if one element is, and equal if all are; otherwise it stays open.
    """
    parts, gold_parts = elements_of(ours.text), elements_of(gold.text)
    if parts is None or gold_parts is None:
        return None
    if parts[0] != gold_parts[0] or len(parts[1]) != len(gold_parts[1]):
        is_matrix = parts[0].startswith("matrix") and gold_parts[0].startswith("matrix")
        return Decision(False, GradingMethod.FORM) if is_matrix else None
    decisions = [
        _decide(read_normalised(a), read_normalised(b))
        for a, b in zip(parts[1], gold_parts[1], strict=True)
    ]
    for decision in decisions:
        if decision is not None and not decision.equal:
            return decision
    if None in decisions:
        return None
    return Decision(True, GradingMethod.NUMBER)


def _decide_capped(ours: Answer, gold: Answer) -> Decision | None:
    """Decides what may not be evaluated: it is not the gold text, so it is wrong."""
    too_deep = max(depth_of(ours.text), depth_of(gold.text)) > MAX_DEPTH
    if too_deep or is_costly(key_of(ours.text)) or is_costly(key_of(gold.text)):
        return Decision(False, GradingMethod.CAP)
    return None
