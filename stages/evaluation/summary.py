"""Summary of an evaluation: means over problems, with bootstrap intervals."""

import polars as pl

from stages.evaluation.intervals import bootstrap_interval

SUMMARY_SCHEMA = {
    "benchmark": pl.String,
    "problems": pl.Int64,
    "samples": pl.Int64,
    "avg_at_k": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "pass_at_k": pl.Float64,
    "left_out": pl.Int64,
    "tool_calls": pl.Float64,
    "failed_tool_call_share": pl.Float64,
    "turns": pl.Float64,
}


def summarise(evaluations: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Summarises outcomes: one row a benchmark.

    Columns: `benchmark`, `problems`, `samples` (k, the most samples of a problem), `avg_at_k`
    (mean over problems of the share of right samples), `low` and `high` (95 % percentile
    bootstrap over problems, 2,000 draws), `pass_at_k` (share of problems with a right sample),
    `left_out` (samples without an outcome), `tool_calls` (mean a sample),
    `failed_tool_call_share` and `turns` (mean a sample). A problem without any outcome counts for
    none of the means over problems.
    """
    by_problem = evaluations.group_by("benchmark", "task_id", maintain_order=True).agg(
        share=pl.col("correct").cast(pl.Float64).mean(),
        solved=pl.col("correct").cast(pl.Float64).max(),
        samples=pl.len(),
    )
    rows = []
    for (benchmark,), problems in by_problem.group_by("benchmark", maintain_order=True):
        samples = evaluations.filter(pl.col("benchmark") == benchmark)
        shares = problems["share"].drop_nulls().to_numpy()
        low, high = bootstrap_interval(shares, seed)
        calls = int(samples["tool_calls"].sum())
        rows.append(
            {
                "benchmark": benchmark,
                "problems": len(problems),
                "samples": problems["samples"].max(),
                "avg_at_k": float(shares.mean()) if len(shares) else None,
                "low": low,
                "high": high,
                "pass_at_k": problems["solved"].mean(),
                "left_out": samples["correct"].null_count(),
                "tool_calls": samples["tool_calls"].mean(),
                "failed_tool_call_share": (
                    int(samples["failed_tool_calls"].sum()) / calls if calls else None
                ),
                "turns": samples["turns"].mean(),
            }
        )
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMA)
