"""Accuracy by level of the problem and by number of turns, and what samples cost."""

import polars as pl

_MEANS = {
    "turns": pl.col("turns").mean(),
    "tool_calls": pl.col("tool_calls").mean(),
    "tool_use_share": (pl.col("tool_calls") > 0).mean(),
    "failed_tool_call_share": pl.when(pl.col("tool_calls").sum() > 0).then(
        pl.col("failed_tool_calls").sum() / pl.col("tool_calls").sum()
    ),
    "tokens": pl.col("tokens").mean(),
    "no_answer_share": pl.col("prediction").is_null().mean(),
}


def use_of_samples(evaluations: pl.DataFrame) -> pl.DataFrame:
    """Says how samples were spent, one row a benchmark.

    Returns:
        `benchmark`; means a sample of `turns`, `tool_calls` and generated `tokens`;
        `tool_use_share` (samples that called the tool), `failed_tool_call_share` (calls whose
        execution was not ok; null without calls), `no_answer_share`, and `tokens_in_all`.
    """
    return evaluations.group_by("benchmark", maintain_order=True).agg(
        **_MEANS, tokens_in_all=pl.col("tokens").sum()
    )


def accuracy_by(evaluations: pl.DataFrame, what: str) -> pl.DataFrame:
    """Returns accuracy by a column of the samples, such as `level`, `turns` or `source`.

    A mean over problems would weigh a problem of few such samples as one of many, so this one is
    over samples.

    Returns:
        `benchmark`, the column, `problems`, `samples` (those with an outcome) and `accuracy` (share
        of right ones), sorted; nothing for a benchmark in which the column is null throughout.
    """
    known = evaluations.filter(pl.col("correct").is_not_null())
    has_any = known.filter(pl.col(what).is_not_null()).select("benchmark").unique()
    return (
        known.join(has_any, on="benchmark", how="semi")
        .group_by("benchmark", what)
        .agg(
            problems=pl.col("task_id").n_unique(),
            samples=pl.len(),
            accuracy=pl.col("correct").mean(),
        )
        .sort("benchmark", what, nulls_last=True)
    )
