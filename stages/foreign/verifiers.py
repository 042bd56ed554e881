"""Format `verifiers`: results.jsonl of its evaluations, a row a rollout.

    {"example_id": 0, "prompt": [...], "completion": [...], "answer": "18", "reward": 1.0, ...}

Messages are those of the OpenAI API; each of `tool_calls` is JSON text or an object. A rollout that
failed by an error of its environment is rejected, for it is not known what it is worth.
Written by `state_to_output` in verifiers/utils/save_utils.py.
"""

from collections.abc import Mapping

from stages.foreign.calls import turns_of
from stages.foreign.messages import parts_of, problem_of
from stages.foreign.record import (
    GOLD_NAMES,
    Fields,
    ForeignTrajectory,
    RejectedRow,
    first_of,
    gold_answer,
    optional_text,
    score_of,
)

_ERROR_CHARS = 80


def is_row(fields: Fields) -> bool:
    """Says whether a row looks like this format."""
    names = fields.keys()
    return {"prompt", "completion"} <= names and not names.isdisjoint({"example_id", "reward"})


def parse_row(fields: Fields) -> ForeignTrajectory:
    """Returns the trajectory of a row.

    Raises:
        RejectedRow: If it cannot be used.
    """
    error = fields.get("error")
    if error:
        told = error.get("error") if isinstance(error, Mapping) else error
        raise RejectedRow(f"the rollout failed: {str(told)[:_ERROR_CHARS]}")
    return ForeignTrajectory(
        problem=problem_of(fields.get("prompt")),
        gold=gold_answer(first_of(fields, ("answer", *GOLD_NAMES, "info"))),
        turns=turns_of(parts_of(fields.get("completion"))),
        score=score_of(fields.get("reward")),
        task=optional_text(fields.get("example_id"), "example_id"),
    )
