"""Format `verl`: what its trainer writes into `rollout_data_dir` and `validation_data_dir`.

    {"input": "...", "output": "...", "gts": "18", "score": 1.0, "step": 3, ...}

`input` and `output` are decoded token ids, the output with everything that tools showed. The gold
answer is `gts`, which older versions lack; the name of the reward's own label, if any, is `acc`.
Written by `RayPPOTrainer._dump_generations` in verl/trainer/ppo/ray_trainer.py.
"""

from stages.foreign.calls import turns_of
from stages.foreign.record import (
    GOLD_NAMES,
    Fields,
    ForeignTrajectory,
    first_of,
    gold_answer,
    optional_text,
    prediction_of,
    problem_text,
    score_of,
    text_of,
)
from stages.foreign.splitting import problem_of_prompt, split_text


def is_row(fields: Fields) -> bool:
    """Says whether a row looks like this format."""
    return "input" in fields and "output" in fields


def parse_row(fields: Fields) -> ForeignTrajectory:
    """Returns the trajectory of a row.

    Raises:
        RejectedRow: If it cannot be used.
    """
    return ForeignTrajectory(
        problem=problem_text(problem_of_prompt(text_of(fields.get("input"), "input"))),
        gold=gold_answer(first_of(fields, ("gts", *GOLD_NAMES))),
        turns=turns_of(split_text(text_of(fields.get("output"), "output"))),
        prediction=prediction_of(fields),
        score=score_of(first_of(fields, ("acc", "score"))),
        row_id=optional_text(fields.get("request_id"), "request_id"),
    )
