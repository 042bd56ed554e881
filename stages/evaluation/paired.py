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
        randomisation test, and that value corrected by Holm's method for the benchmarks compared;
        null for a benchmark without a problem that both have an outcome of.

    Raises:
        TurnledgerError: If the two have no benchmark in common.
    """
    shares = [_shares(evaluations) for evaluations in (before, after)]
    joined = shares[0].join(shares[1], on=["benchmark", "task_id"], how="full", coalesce=True)
    names = {*before["benchmark"]} & {*after["benchmark"]}
    both = pl.col("share").is_not_null() & pl.col("share_right").is_not_null()
    rows = []
    for (benchmark,), problems in joined.sort("benchmark", "task_id").group_by(
        "benchmark", maintain_order=True
    ):
        if benchmark not in names:
            continue
        paired = problems.filter(both)
        counts = {"problems": len(paired), "one_sided": len(problems) - len(paired)}
        rows.append({"benchmark": benchmark, **counts, **_difference(paired, seed)})
    if not rows:
        raise TurnledgerError("the two policies have no benchmark in common")
    compared = pl.DataFrame(rows, schema=PAIRED_SCHEMA).drop("p_corrected")
    tested = compared.drop_nulls("p_value")
    corrected = pl.Series("p_corrected", holm(tested["p_value"].to_numpy()))
    return compared.join(
        tested.select("benchmark", corrected), on="benchmark", how="left", maintain_order="left"
    )


def _difference(paired: pl.DataFrame, seed: int) -> dict[str, float | None]:
    """Returns the figures of one benchmark; none without a problem of both."""
    if paired.is_empty():
        return {}
    before, after = paired["share"].to_numpy(), paired["share_right"].to_numpy()
    low, high = bootstrap_interval(after - before, seed)
    return {
        "before": before.mean(),
        "after": after.mean(),
        "difference": (after - before).mean(),
        "low": low,
        "high": high,
        "p_value": sign_flip_p_value(after - before, seed),
    }


def _shares(evaluations: pl.DataFrame) -> pl.DataFrame:
    """Returns the share of right samples of each problem; null where none has an outcome."""
    return evaluations.group_by("benchmark", "task_id", maintain_order=True).agg(
        share=pl.col("correct").cast(pl.Float64).mean()
    )
