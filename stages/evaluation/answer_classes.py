"""Which answers to a problem are the same: the classes that a majority vote counts.

All right answers are one class: each equals the gold answer. Wrong ones are compared with one
another by the grading, and what is equal through a third answer is equal too. An answer that the
grading could not decide in time is a class of its own, together with equal texts: asking again
would take as long.
"""

import polars as pl

from schemas.categories import Verdict
from stages.grading import grade

RIGHT_CLASS = 0
"""Class of the right answers of every problem."""

_PROBLEM = ("benchmark", "task_id")


def answer_classes(evaluations: pl.DataFrame, *, time_s: float) -> pl.DataFrame:
    """Adds the class of each answer.

    Args:
        evaluations: Rows of `schemas.tables.Evaluations`.
        time_s: Most seconds of one comparison.

    Returns:
        The rows in their order, with `answer_class` (Int32): 0 for right ones, numbers from 1 for
        classes of wrong ones, whose order means nothing; null where no answer was given or the
        sample has no outcome.
    """
    is_wrong = pl.col("verdict").cast(pl.String).is_in([Verdict.WRONG.value, Verdict.TIMEOUT.value])
    answers = (
        evaluations.filter(is_wrong & pl.col("prediction").is_not_null())
        .select(*_PROBLEM, "prediction", "verdict")
        .unique(subset=[*_PROBLEM, "prediction"], maintain_order=True)
        .with_columns(number=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(_PROBLEM))
    )
    classes = answers.select(*_PROBLEM, "prediction", answer_class=_joined(answers, time_s))
    return evaluations.join(
        classes, on=[*_PROBLEM, "prediction"], how="left", maintain_order="left"
    ).with_columns(
        answer_class=pl.when(pl.col("correct"))
        .then(pl.lit(RIGHT_CLASS, pl.Int32))
        .when(~pl.col("correct"))
        .then("answer_class")
    )


def _joined(answers: pl.DataFrame, time_s: float) -> pl.Series:
    """Returns the class of each wrong answer: the least number that equal answers lead to."""
    comparable = answers.filter(pl.col("verdict").cast(pl.String) == Verdict.WRONG.value)
    pairs = comparable.join(comparable, on=_PROBLEM, suffix="_2").filter(
        pl.col("number") < pl.col("number_2")
    )
    verdicts = grade(pairs.select(prediction="prediction_2", answer="prediction"), time_s=time_s)[
        "verdict"
    ]
    same = pairs.filter(verdicts.cast(pl.String) == Verdict.RIGHT.value)
    edges = pl.concat(
        [
            same.select(*_PROBLEM, "number", other="number_2"),
            same.select(*_PROBLEM, number="number_2", other="number"),
        ]
    )
    classes = answers.select(*_PROBLEM, "number", answer_class="number")
    while True:
        least = (
            edges.join(
                classes.select(*_PROBLEM, "answer_class", other="number"), on=[*_PROBLEM, "other"]
            )
            .group_by(*_PROBLEM, "number")
            .agg(least=pl.col("answer_class").min())
        )
        moved = classes.join(
            least, on=[*_PROBLEM, "number"], how="left", maintain_order="left"
        ).select(*_PROBLEM, "number", answer_class=pl.min_horizontal("answer_class", "least"))
        if moved["answer_class"].equals(classes["answer_class"]):
            return moved["answer_class"]
        classes = moved
