"""Format `trl`: the Parquet files of TRL's `log_completions`, a row a completion.

Columns are `step`, `prompt`, `completion`, one for every reward function, one for every name given
to `log_extra`, and `advantage`. Prompt and completion are texts or lists of messages. TRL keeps no
gold answer by itself: `log_extra("solution", ...)` in a reward function does.
Written by `GRPOTrainer.log` in trl/trainer/grpo_trainer.py.
"""

from stages.foreign.calls import turns_of
from stages.foreign.messages import parts_of, problem_of
from stages.foreign.record import (
    GOLD_NAMES,
    PREDICTION_NAMES,
    Fields,
    ForeignTrajectory,
    first_of,
    gold_answer,
    prediction_of,
    score_of,
)

_NO_REWARDS = ("step", "advantage", *GOLD_NAMES, *PREDICTION_NAMES)


def is_row(fields: Fields) -> bool:
    """Says whether a row looks like this format."""
    names = fields.keys()
    # verifiers may keep an advantage too, and always an example_id.
    is_logged = "example_id" not in names and not names.isdisjoint({"step", "advantage"})
    return {"prompt", "completion"} <= names and is_logged


def parse_row(fields: Fields) -> ForeignTrajectory:
    """Returns the trajectory of a row.

    Raises:
        RejectedRow: If it cannot be used.
    """
    return ForeignTrajectory(
        problem=problem_of(fields.get("prompt")),
        gold=gold_answer(first_of(fields, GOLD_NAMES)),
        turns=turns_of(parts_of(fields.get("completion"))),
        prediction=prediction_of(fields),
        score=_accuracy(fields),
    )


def _accuracy(fields: Fields) -> float | None:
    """Returns the reward that speaks of accuracy, or the only one; null where that is not clear."""
    rewards = {
        name: reward
        for name, value in fields.items()
        if name not in _NO_REWARDS and (reward := score_of(value)) is not None
    }
    named = [name for name in rewards if "accuracy" in name or "correct" in name]
    chosen = named or list(rewards)
    return rewards[chosen[0]] if len(chosen) == 1 else None
