"""Evaluation: outcomes of samples on benchmark problems, and their summary with intervals."""

import dataframely as dy
import numpy as np
import polars as pl

from schemas.tables import (
    TRAJECTORY_KEY,
    TURN_KEY,
    Evaluations,
    Executions,
    ExecutionStatus,
    Prompts,
    Turns,
    Verdict,
)
from stages.grading import grade

BOOTSTRAP_DRAWS = 2_000
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


def evaluate(
    prompts: dy.DataFrame[Prompts],
    turns: dy.DataFrame[Turns],
    executions: dy.DataFrame[Executions],
    *,
    benchmark: str,
    grading_time_s: float,
) -> dy.DataFrame[Evaluations]:
    """Grades the final answer of every trajectory.

    Args:
        prompts: Benchmark problems with gold answers.
        turns: All turns of the evaluated policy on them.
        executions: Their executions.
        benchmark: Name under which the outcomes are kept.
        grading_time_s: Most seconds of one comparison.

    Returns:
        One row a trajectory. One that the infrastructure failed has neither verdict nor outcome.
    """
    status = pl.col("status")
    failed = status.is_not_null() & (status != ExecutionStatus.OK.value)
    samples = (
        turns.join(executions.select(*TURN_KEY, "status"), on=TURN_KEY, how="left")
        .sort(TURN_KEY)
        .group_by(TRAJECTORY_KEY, maintain_order=True)
        .agg(
            prediction=pl.col("answer").last(),
            turns=pl.len().cast(pl.Int32),
            tool_calls=pl.col("code").is_not_null().sum().cast(pl.Int32),
            failed_tool_calls=failed.sum().cast(pl.Int32),
            broken=(status == ExecutionStatus.INFRASTRUCTURE.value).any(),
            tokens=pl.col("token_ids").list.len().sum().cast(pl.Int64),
            policy_version=pl.col("policy_version").last(),
        )
        .join(prompts.select("task_id", "answer", "source", "level"), on="task_id")
        .sort(TRAJECTORY_KEY)
    )
    verdicts = grade(samples.select("prediction", "answer"), time_s=grading_time_s)["verdict"]
    samples = samples.with_columns(
        benchmark=pl.lit(benchmark), verdict=pl.when(~pl.col("broken")).then(verdicts)
    ).with_columns(correct=pl.col("verdict") == Verdict.RIGHT.value)
    return Evaluations.validate(samples.select(Evaluations.column_names()))


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
        low, high = _bootstrap_interval(shares, seed)
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


def _bootstrap_interval(shares: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    if not len(shares):
        return None, None
    draws = np.random.default_rng(seed).integers(len(shares), size=(BOOTSTRAP_DRAWS, len(shares)))
    low, high = np.quantile(shares[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
