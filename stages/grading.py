"""Grading of final answers: is the prediction the gold answer, and what says so?

Cheap first, each pair of texts once: equal texts and plain numbers as columns
(`stages._grading_columns`), then the rules for text and exact numbers (`stages._grading_rules`).
Only what they leave open goes to math-verify, in child processes that are killed when they do not
end. The page on grading has every rule, in order.

It does not read the reasoning of a trajectory, and it does not search a text for a number
(`stages.answers` finds answers): the whole answer must be the gold answer, or a `\\boxed{}` in it.
An expression that evaluates to the gold answer (`2^3` for 8) is right, as math-verify has it.
"""

import polars as pl

from schemas.categories import GradingMethod, Verdict
from schemas.errors import TurnledgerError
from stages._grading_columns import METHODS, VERDICTS, decide_columns
from stages._grading_processes import compare
from stages._grading_rules import Decision, as_compared, decide

__all__ = ["Decision", "decide", "disagreements", "grade"]

_PAIR = ("prediction", "answer")


def grade(predictions: pl.DataFrame, *, time_s: float) -> pl.DataFrame:
    """Returns the verdict of each row's prediction, and what decided it.

    Args:
        predictions: Columns `prediction` (String, null where no answer was given) and `answer`
            (String, the gold answer).
        time_s: Wall time, seconds, after which the comparison of one pair is given up.

    Returns:
        Columns `verdict`, an enum of `Verdict`, and `method`, an enum of `GradingMethod`, in the
        order of the rows.

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
    distinct = pairs.unique(maintain_order=True)
    decided = distinct.hstack(decide_columns(distinct))
    undecided = decided.filter(pl.col("verdict").is_null()).select(_PAIR)
    graded = pl.concat(
        [
            decided.filter(pl.col("verdict").is_not_null()),
            undecided.hstack(_grade_singly(list(undecided.iter_rows()), time_s)),
        ]
    )
    return pairs.join(graded, on=_PAIR, how="left", nulls_equal=True, maintain_order="left").select(
        "verdict", "method"
    )


def disagreements(labelled: pl.DataFrame, *, time_s: float) -> pl.DataFrame:
    """Returns the rows whose verdict is not their label, with verdict and method beside it.

    Args:
        labelled: Columns `prediction`, `answer` and `label` (Boolean: right or not), and any
            others.
        time_s: As in `grade`.

    Raises:
        TurnledgerError: As `grade`.
    """
    graded = labelled.hstack(grade(labelled, time_s=time_s))
    return graded.filter((pl.col("verdict") == Verdict.RIGHT.value) != pl.col("label"))


def _grade_singly(pairs: list[tuple[str, str]], time_s: float) -> pl.DataFrame:
    """Grades pairs of texts, as many of them as can be without math-verify."""
    decisions = [decide(*pair) for pair in pairs]
    left_open = [pair for pair, found in zip(pairs, decisions, strict=True) if found is None]
    compared = iter(compare([as_compared(*pair) for pair in left_open], time_s=time_s))
    graded = [
        (next(compared), GradingMethod.MATH_VERIFY)
        if found is None
        else (Verdict.RIGHT if found.equal else Verdict.WRONG, found.method)
        for found in decisions
    ]
    return pl.DataFrame(
        [(verdict.value, method.value) for verdict, method in graded],
        schema={"verdict": VERDICTS, "method": METHODS},
        orient="row",
    )
