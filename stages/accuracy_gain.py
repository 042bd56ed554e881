"""How much better one policy is than another on the same held-out problems, with an interval.

Both were evaluated on the same problems, so the difference is taken problem by problem. With b_p
and a_p the shares of right samples of problem p before and after, the gain is mean_p (a_p - b_p),
and its interval the 95 % percentile bootstrap over problems. That is narrower than the intervals
of the two accuracies suggest, for hard problems are hard for both.
"""

import numpy as np
import polars as pl

from stages.evaluation import BOOTSTRAP_DRAWS

GAIN_SCHEMA = {
    "benchmark": pl.String,
    "problems": pl.Int64,
    "before": pl.Float64,
    "after": pl.Float64,
    "gain": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}


def accuracy_gain(before: pl.DataFrame, after: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Compares two evaluations problem by problem.

    Args:
        before: Rows of the table `evaluations` of one policy.
        after: Those of the other policy.
        seed: Seed of the bootstrap.

    Returns:
        One row a benchmark of both, by name: `problems` (those with an outcome in both),
        `before`, `after` (mean over these of the share of right samples), `gain` (after - before),
        `low` and `high` (its 95 % percentile bootstrap interval over problems, 2,000 draws). All
        of them but `problems` are null where no problem has an outcome in both.
    """
    key = ["benchmark", "task_id"]
    was, now = (
        frame.group_by(key).agg(pl.col("correct").cast(pl.Float64).mean()).drop_nulls()
        for frame in (before, after)
    )
    both = was.join(now, on=key, suffix="_after").sort(key)
    rows = []
    for benchmark in sorted({*before["benchmark"]} & {*after["benchmark"]}):
        shares = both.filter(pl.col("benchmark") == benchmark)
        rows.append(
            {
                "benchmark": benchmark,
                "problems": len(shares),
                "before": shares["correct"].mean(),
                "after": shares["correct_after"].mean(),
                **_gain((shares["correct_after"] - shares["correct"]).to_numpy(), seed),
            }
        )
    return pl.DataFrame(rows, schema=GAIN_SCHEMA)


def _gain(differences: np.ndarray, seed: int) -> dict[str, float | None]:
    if not len(differences):
        return {"gain": None, "low": None, "high": None}
    size = (BOOTSTRAP_DRAWS, len(differences))
    draws = np.random.default_rng(seed).integers(len(differences), size=size)
    low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
    return {"gain": float(differences.mean()), "low": float(low), "high": float(high)}
