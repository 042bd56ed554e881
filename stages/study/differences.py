"""Arms of a study against one of them: paired by seed, with intervals and corrected p-values."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from stages.evaluation.intervals import holm, sign_flip_p_value, typical_interval
from stages.study.curves import METRICS, budgets_of

DIFFERENCES_SCHEMA = {
    "task": pl.String,
    "arm": pl.String,
    "metric": pl.String,
    "seeds": pl.Int64,
    "reference": pl.Float64,
    "mean": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "coverage": pl.Float64,
    "p_value": pl.Float64,
    "p_corrected": pl.Float64,
}
TESTED = ("final", "area")
"""Metrics whose p-values are corrected together; the others describe, and are not tested."""
POOLED = "all"
"""Task under which the mean over all tasks stands: each seed counts by its mean over them."""


def compare_arms(
    trainings: pl.DataFrame, reference: str, arms: Sequence[str], tasks: Sequence[str]
) -> pl.DataFrame:
    """Compares arms with the reference, metric by metric, one row a task, arm and metric.

    Seeds are paired. The interval is that of typical values, which inverts the sign-flip test that
    the p-value comes from; with fewer than six seeds no interval covers 95 %, and `coverage` says
    what the widest one covers. p-values are corrected by Holm's method over all arms and tasks of
    the same metric.

    Args:
        trainings: As `summarise_trainings` returns them.
        reference: Arm that the others are compared with.
        arms: The others; the reference among them is passed over.
        tasks: The tasks; with several, their mean is compared too, as task `all`.

    Returns:
        Columns of `DIFFERENCES_SCHEMA`: means of reference and arm over the seeds of both, their
        difference (arm less reference) with its interval, and p-values for the metrics of `TESTED`.
        Seeds of which either has no value are left out; without any there is no row.
    """
    chosen = trainings.filter(pl.col("task").is_in(list(tasks)))
    if len(tasks) > 1:
        # A seed without one of the tasks has no mean over them.
        pooled = (
            chosen.group_by("arm", "seed")
            .agg(
                pl.lit(POOLED).alias("task"),
                pl.len().alias("tasks"),
                *(
                    pl.when(pl.col(name).null_count() == 0).then(pl.col(name).mean()).alias(name)
                    for name in METRICS
                ),
            )
            .filter(pl.col("tasks") == len(tasks))
        )
        names = ["task", "arm", "seed", *METRICS]
        chosen = pl.concat([chosen.select(names), pooled.select(names)])
    rows = []
    for task in (*tasks, *((POOLED,) if len(tasks) > 1 else ())):
        here = chosen.filter(task=task)
        base = here.filter(arm=reference)
        for arm in (name for name in arms if name != reference):
            both = here.filter(arm=arm).join(base, on="seed", suffix="_reference").sort("seed")
            for metric in METRICS:
                row = _difference(both, metric)
                if row is not None:
                    rows.append({"task": task, "arm": arm, "metric": metric, **row})
    corrected = pl.col("p_value").map_batches(lambda p: pl.Series(holm(p.to_numpy())))
    return pl.DataFrame(rows, schema=DIFFERENCES_SCHEMA).with_columns(
        p_corrected=pl.when(pl.col("metric").is_in(TESTED)).then(corrected.over("metric"))
    )


def _difference(both: pl.DataFrame, metric: str) -> dict[str, object] | None:
    paired = both.select(after=metric, before=f"{metric}_reference").drop_nulls()
    if paired.is_empty():
        return None
    before, after = paired["before"].to_numpy(), paired["after"].to_numpy()
    low, high, coverage = typical_interval(after - before)
    return {
        "seeds": len(paired),
        "reference": before.mean(),
        "mean": after.mean(),
        "difference": (after - before).mean(),
        "low": low,
        "high": high,
        "coverage": coverage,
        "p_value": sign_flip_p_value(after - before, seed=0) if metric in TESTED else None,
        "p_corrected": None,
    }


def choose_rates(trainings: pl.DataFrame) -> dict[str, float]:
    """Returns the learning rate of each arm: that with the largest mean area over its seeds.

    Args:
        trainings: As `summarise_trainings` returns them, with `learning_rate`. Of equal areas the
            smaller rate is taken.
    """
    means = (
        trainings.group_by("arm", "learning_rate")
        .agg(pl.col("area").mean())
        .sort("arm", pl.col("area"), "learning_rate", descending=[False, True, False])
        .group_by("arm", maintain_order=True)
        .first()
    )
    return dict(zip(means["arm"].to_list(), means["learning_rate"].to_list(), strict=True))


def typical_curve(curves: pl.DataFrame, points: int = 41) -> pl.DataFrame:
    """Returns the mean learning curve of each task and arm with its interval over seeds.

    Args:
        curves: Columns of `curves.CURVES_SCHEMA`.
        points: Numbers of tokens at which it is taken, evenly up to the budget of the task.

    Returns:
        `task`, `arm`, `tokens`, `accuracy`, `low`, `high`; the interval as in `compare_arms`.
    """
    rows: list[tuple[object, ...]] = []
    budgets = budgets_of(curves)
    for (task,), here in curves.sort("iteration").group_by("task", maintain_order=True):
        grid = np.linspace(0, budgets[str(task)], points)
        for (arm,), runs in here.group_by("arm", maintain_order=True):
            lines = np.stack(
                [
                    np.interp(grid, one["tokens"].to_numpy(), one["accuracy"].to_numpy())
                    for _, one in runs.group_by("seed", maintain_order=True)
                ]
            )
            for place, tokens in enumerate(grid):
                low, high, _ = typical_interval(lines[:, place])
                rows.append((task, arm, tokens, lines[:, place].mean(), low, high))
    figures = ("tokens", "accuracy", "low", "high")
    schema = {"task": pl.String, "arm": pl.String, **dict.fromkeys(figures, pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")
