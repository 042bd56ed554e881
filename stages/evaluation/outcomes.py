"""Outcomes: what became of each sample of a policy on benchmark problems."""

import dataframely as dy
import polars as pl

from schemas.categories import ExecutionStatus, Verdict
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, Evaluations, Executions, Prompts, Turns
from stages.grading import grade


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
