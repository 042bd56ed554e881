"""Two policies on the same problems: the difference, problem by problem, and what it is worth."""

import polars as pl

from schemas.errors import TurnledgerError
from stages.evaluation.intervals import bootstrap_interval, holm, sign_flip_p_value

PAIRED_SCHEMA = {
    "benchmark": pl.String,
    "problems": pl.Int64,
    "one_sided": pl.Int64,
    "before": pl.Float64,
    "after": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_value": pl.Float64,
    "p_corrected": pl.Float64,
}


def compare_policies(before: pl.DataFrame, after: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Compares the accuracy of two policies, paired by problem, one row a benchmark.

    The share of right samples of each problem is compared, so the policies may have different
    numbers of samples. A problem that only one of them has an outcome of counts for neither, and is
    counted in `one_sided`.

    Args:
        before: Rows of `schemas.tables.Evaluations` of one policy.
        after: Those of the other, on the same benchmarks.
        seed: Seed of the bootstrap and of the random signs.

    Returns:
        Columns of `PAIRED_SCHEMA`: mean shares on the problems of both, their difference (after
        less before) with its 95 % bootstrap interval over problems, the p-value of a paired
        randomisation test, and that value corrected by Holm's method for the benchmarks compared.

    Raises:
        TurnledgerError: If the two have no problem of any benchmark in common.
    """
    shares = [_shares(evaluations) for evaluations in (before, after)]
    joined = shares[0].join(shares[1], on=["benchmark", "task_id"], how="full", coalesce=True)
    both = pl.col("share").is_not_null() & pl.col("share_right").is_not_null()
    rows = []
    for (benchmark,), problems in joined.sort("benchmark", "task_id").group_by(
        "benchmark", maintain_order=True
    ):
        paired = problems.filter(both)
        if paired.is_empty():
            continue
        a, b = paired["share"].to_numpy(), paired["share_right"].to_numpy()
        rows.append(
            {
                "benchmark": benchmark,
                "problems": len(paired),
                "one_sided": len(problems) - len(paired),
                "before": a.mean(),
                "after": b.mean(),
                "difference": (b - a).mean(),
                **dict(zip(("low", "high"), bootstrap_interval(b - a, seed), strict=True)),
                "p_value": sign_flip_p_value(b - a, seed),
            }
        )
    if not rows:
        raise TurnledgerError("the two policies have no problem of a benchmark in common")
    compared = pl.DataFrame(rows, schema=PAIRED_SCHEMA)
    corrected = holm(compared["p_value"].to_numpy())
    return compared.with_columns(p_corrected=pl.Series(corrected))


def _shares(evaluations: pl.DataFrame) -> pl.DataFrame:
    """Returns the share of right samples of each problem; null where none has an outcome."""
    return evaluations.group_by("benchmark", "task_id", maintain_order=True).agg(
        share=pl.col("correct").cast(pl.Float64).mean()
    )
