"""Learning curves over sampled tokens, and the figures of a training at a budget of tokens.

Between evaluations a curve is straight. All trainings of a task are read at the same budget, the
fewest tokens that any of them sampled, so none is credited for having sampled more.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

TRAINING = ["task", "arm", "seed"]
"""What names a training within a study."""

CURVES_SCHEMA = {
    "task": pl.String,
    "arm": pl.String,
    "seed": pl.Int64,
    "iteration": pl.Int32,
    "tokens": pl.Int64,
    "accuracy": pl.Float64,
    "failed_calls": pl.Float64,
    "tool_calls": pl.Float64,
    "turns": pl.Float64,
}
"""One row an evaluated policy: tokens sampled for training up to it, avg@k, share of tool calls
that failed (null without any), and means of tool calls and turns a sample."""

METRICS = {
    "final": "avg@k at the budget",
    "area": "mean avg@k up to the budget",
    "tokens_to_threshold": "tokens until avg@k reaches the threshold",
    "failed_calls": "share of failing tool calls at the budget",
    "turns": "turns a sample at the budget",
}
"""Figure of a training to what it means."""


def summarise_trainings(curves: pl.DataFrame, thresholds: Mapping[str, float]) -> pl.DataFrame:
    """Returns the figures of each training, one row a training.

    Args:
        curves: Columns of `CURVES_SCHEMA`; each training from iteration 0 on.
        thresholds: Task to the accuracy that `tokens_to_threshold` is about.

    Returns:
        `TRAINING`, `budget` (tokens, that of the task) and a Float64 column for each of `METRICS`.
        `tokens_to_threshold` is null where the task has no threshold or it is not reached in the
        budget, `failed_calls` where no policy before the budget called a tool.
    """
    ordered = curves.sort(*TRAINING, "iteration")
    budgets = budgets_of(curves)
    rows = [
        {
            **dict(zip(TRAINING, key, strict=True)),
            "budget": budgets[str(key[0])],
            **_figures(curve, budgets[str(key[0])], thresholds.get(str(key[0]))),
        }
        for key, curve in ordered.group_by(TRAINING, maintain_order=True)
    ]
    names = {name: CURVES_SCHEMA[name] for name in TRAINING}
    return pl.DataFrame(
        rows, schema={**names, "budget": pl.Int64, **dict.fromkeys(METRICS, pl.Float64)}
    )


def budgets_of(curves: pl.DataFrame) -> dict[str, int]:
    """Returns the budget of each task: the fewest tokens that one of its trainings sampled."""
    sampled = curves.group_by(TRAINING).agg(pl.col("tokens").max())
    return dict(sampled.group_by("task").agg(pl.col("tokens").min()).iter_rows())


def _figures(curve: pl.DataFrame, budget: int, threshold: float | None) -> dict[str, float | None]:
    tokens = curve["tokens"].cast(pl.Float64).to_numpy()
    accuracy = curve["accuracy"].to_numpy()
    called = curve.drop_nulls("failed_calls")
    return {
        "final": _at(curve, "accuracy", budget),
        "area": _mean_up_to(tokens, accuracy, budget),
        "tokens_to_threshold": None
        if threshold is None
        else _reached_at(tokens, accuracy, budget, threshold),
        "failed_calls": _at(called, "failed_calls", budget) if len(called) else None,
        "turns": _at(curve, "turns", budget),
    }


def _at(curve: pl.DataFrame, column: str, budget: int) -> float:
    tokens = curve["tokens"].cast(pl.Float64).to_numpy()
    return float(np.interp(budget, tokens, curve[column].to_numpy()))


def _cut(
    tokens: NDArray[np.float64], values: NDArray[np.float64], budget: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns a curve that ends at the budget."""
    inside = tokens < budget
    last = np.interp(budget, tokens, values)
    return np.append(tokens[inside], budget), np.append(values[inside], last)


def _mean_up_to(tokens: NDArray[np.float64], values: NDArray[np.float64], budget: float) -> float:
    if budget <= tokens[0]:
        return float(values[0])
    x, y = _cut(tokens, values, budget)
    return float(np.trapezoid(y, x) / (budget - tokens[0]))


def _reached_at(
    tokens: NDArray[np.float64], values: NDArray[np.float64], budget: float, threshold: float
) -> float | None:
    """Returns where a curve first is at the threshold; null if it is not up to the budget."""
    x, y = _cut(tokens, values, budget)
    above = np.flatnonzero(y >= threshold)
    if not len(above):
        return None
    first = above[0]
    if first == 0:
        return float(x[0])
    before, after = y[first - 1], y[first]
    share = (threshold - before) / (after - before)
    return float(x[first - 1] + share * (x[first] - x[first - 1]))
