"""What all formats have in common: the record of a trajectory, and reading fields of foreign rows.

A row that cannot be used raises `RejectedRow`, whose message is the reason told to the user.
Nothing here knows a format, a file or a table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.categories import ParseError
from schemas.texts import as_text

Fields = Mapping[str, Any]
"""A row as the file has it: field name to value."""

GOLD_NAMES = (
    *("gold", "ground_truth", "gold_answer", "reference_answer", "expected_answer"),
    *("solution", "target", "answer"),
)
"""Fields that hold the gold answer, the surest first: an `answer` may be one or the other."""
PREDICTION_NAMES = ("prediction", "pred", "predicted_answer", "final_answer")
PROBLEM_NAMES = ("problem", "question", "prompt")

_ANSWER_MARK = "####"
"""GSM8K writes the solution, then this mark, then the answer."""
_NO_PREDICTION = "[INVALID]"
"""What verl's `math_dapo` writes where it found no answer."""


class Row(Protocol):
    """One row of a file; `storage.problem_sources.RawRow` is one."""

    @property
    def text(self) -> str:
        """The row as text, to show a person which one it is."""

    @property
    def fields(self) -> Fields | None:
        """Field name to value; null if the row has none."""

    @property
    def problem(self) -> str | None:
        """Why it has none; null if it has."""


class RejectedRow(Exception):
    """A row that cannot be used; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignTurn:
    """One turn of a foreign trajectory."""

    text: str
    """What was generated, the call included."""
    reasoning: str
    """The text before the call or answer."""
    code: str | None = None
    """Code of the call; null without one."""
    output: str | None = None
    """What the call showed; null if it was not run or nobody kept it."""
    parse_error: ParseError | None = None
    """Whether the call was opened and not closed, or empty; what is no Python is found later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignTrajectory:
    """One row that can be used."""

    problem: str
    gold: str
    turns: Sequence[ForeignTurn]
    """At least one, and at least one that is not empty."""
    prediction: str | None = None
    """Final answer by the row's own field; null if it has to be found in the last turn."""
    score: float | None = None
    """Label or reward of the file."""
    task: str | None = None
    """Name of the problem, or of the first sample of it."""
    row_id: str | None = None
    """Identifier that no two samples share; null where the format has none."""


def first_of(fields: Fields, names: Sequence[str]) -> Any:
    """Returns the value of the first of these fields that is there and not null; else null."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def text_of(value: Any, what: str) -> str:
    """Returns a text or number as text, and null as the empty text.

    Raises:
        RejectedRow: If it is something else.
    """
    text = "" if value is None else as_text(value, numbers=True)
    if text is None:
        raise RejectedRow(f"{what} is not text")
    return text


def optional_text(value: Any, what: str) -> str | None:
    """Does as `text_of`, and returns null for what is empty."""
    return text_of(value, what).strip() or None


def problem_text(value: Any) -> str:
    """Returns the text of a problem.

    Raises:
        RejectedRow: If it is missing, empty or no text.
    """
    text = optional_text(value, "problem")
    if text is None:
        raise RejectedRow("no problem")
    return text


def gold_answer(value: Any) -> str:
    """Returns the gold answer, out of structures such as `{"ground_truth": "42"}` or `["42"]`.

    Of a text with `####`, the part after the last mark is taken.

    Raises:
        RejectedRow: If there is none, are several, or it is no text.
    """
    while isinstance(value, Mapping | list | tuple):
        if isinstance(value, Mapping):
            value = first_of(value, GOLD_NAMES)
        elif len(value) > 1:
            raise RejectedRow("several gold answers")
        else:
            value = value[0] if value else None
    text = text_of(value, "gold answer").rpartition(_ANSWER_MARK)[2].strip()
    if not text:
        raise RejectedRow("no gold answer")
    return text


def prediction_of(fields: Fields) -> str | None:
    """Returns the final answer that the row itself names; null if it names none."""
    text = optional_text(first_of(fields, PREDICTION_NAMES), "prediction")
    return None if text == _NO_PREDICTION else text


def score_of(value: Any) -> float | None:
    """Returns a label or reward as a number; null for what is none."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def require_content(turns: Sequence[ForeignTurn]) -> Sequence[ForeignTurn]:
    """Returns the turns, if there are any that say something.

    Raises:
        RejectedRow: If not.
    """
    if not turns:
        raise RejectedRow("no turns")
    if not any(turn.text.strip() for turn in turns):
        raise RejectedRow("all turns are empty")
    return turns
