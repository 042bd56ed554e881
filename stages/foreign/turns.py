"""Format `turns`: a row a trajectory, with its turns as objects of text, code and output.

    {"problem": "...", "gold": "18", "prediction": "18", "correct": true,
     "turns": [{"text": "...", "code": "print(18)", "output": "18"}, {"text": "...", "code": null}]}

Each part of a turn may be missing or null; an empty code is none. `text` may hold the code too.
"""

from collections.abc import Mapping
from typing import Any

from stages.foreign.record import (
    GOLD_NAMES,
    PROBLEM_NAMES,
    Fields,
    ForeignTrajectory,
    ForeignTurn,
    RejectedRow,
    first_of,
    gold_answer,
    optional_text,
    prediction_of,
    problem_text,
    score_of,
    text_of,
)

LABEL_NAMES = ("correct", "label", "score", "reward")


def is_row(fields: Fields) -> bool:
    """Says whether a row looks like this format."""
    return "turns" in fields


def parse_row(fields: Fields) -> ForeignTrajectory:
    """Returns the trajectory of a row.

    Raises:
        RejectedRow: If it cannot be used.
    """
    turns = fields.get("turns")
    if not isinstance(turns, list):
        raise RejectedRow("turns are no list" if turns is not None else "no turns")
    row_id = optional_text(fields.get("id"), "id")
    return ForeignTrajectory(
        problem=problem_text(first_of(fields, PROBLEM_NAMES)),
        gold=gold_answer(first_of(fields, GOLD_NAMES)),
        turns=[_turn(turn, number) for number, turn in enumerate(turns, start=1)],
        prediction=prediction_of(fields),
        score=score_of(first_of(fields, LABEL_NAMES)),
        task=optional_text(first_of(fields, ("task_id", "problem_id")), "task id") or row_id,
        row_id=row_id,
    )


def _turn(turn: Any, number: int) -> ForeignTurn:
    if not isinstance(turn, Mapping):
        raise RejectedRow(f"turn {number} is no object")
    text = text_of(turn.get("text"), f"text of turn {number}")
    code = text_of(turn.get("code"), f"code of turn {number}").strip("\n")
    output = turn.get("output")
    shown = None if output is None else text_of(output, f"output of turn {number}")
    if not code.strip():
        return ForeignTurn(text=text, reasoning=text, output=shown or None)
    before, found, _ = text.partition(code)
    return ForeignTurn(
        text=text if found else f"{text}<code>{code}</code>",
        reasoning=before,
        code=code,
        output=shown,
    )
