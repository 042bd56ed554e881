"""What an import brought, read from its tables."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from storage import Store, open_table, table_iterations


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Counts of an imported run."""

    groups: int
    trajectories: int
    turns: int
    executions: int
    failed: int
    """Executions that ended in an error."""
    answered: int
    """Trajectories with a final answer."""
    labelled: int
    """Trajectories that the file gives a label or reward."""
    mean_score: float | None
    """Mean label or reward of these; null without any."""
    left_out: int
    """Outputs after turns without a call."""
    rejected: pl.DataFrame
    """`reason` and `rows`, the most frequent first."""

    def lines(self) -> Iterator[str]:
        """Yields what a person wants to know of it."""
        yield (
            f"{self.trajectories:,} trajectories of {self.groups:,} problems, "
            f"{self.turns:,} turns, {self.executions:,} executions with {self.failed:,} failed, "
            f"{self.trajectories - self.answered:,} without final answer"
        )
        if self.mean_score is not None:
            told = f"{self.mean_score:.3f} on average"
            yield f"{self.labelled:,} have a label or reward in the file, {told}"
        if self.left_out:
            yield f"{self.left_out:,} outputs after turns without a call are left out"
        yield f"{self.rejected['rows'].sum():,} rows rejected"
        for reason, rows in self.rejected.iter_rows():
            yield f"  {rows:6,}  {reason}"


def report_of(store: Store, run: str) -> Imported:
    """Counts what an imported run holds.

    Raises:
        StoreError: If a table is missing or damaged.
    """

    def table(name: str) -> pl.LazyFrame:
        return open_table(store.url, run, name)

    labels = table("foreign_labels").collect()
    rejected = (
        table("rejected_trajectories")
        # Rows that a reason names differ: they are one kind of reason.
        .with_columns(reason=pl.col("reason").str.replace_all(r"\d+", "N"))
        .group_by("reason")
        .agg(rows=pl.len())
        .sort("rows", "reason", descending=[True, False])
        .collect()
    )
    turns = (
        table("turns")
        .select(turns=pl.len(), answered=pl.col("answer").is_not_null().sum())
        .collect()
    )
    executions = (
        table("executions")
        .select(executions=pl.len(), failed=(pl.col("status") != "ok").sum())
        .collect()
        if _has_executions(store, run)
        else pl.DataFrame({"executions": [0], "failed": [0]})
    )
    mean = labels["score"].mean()
    return Imported(
        groups=table("prompts").select(pl.len()).collect().item(),
        trajectories=labels.height,
        **turns.row(0, named=True),
        **executions.row(0, named=True),
        labelled=labels["score"].count(),
        mean_score=mean if isinstance(mean, float) else None,
        left_out=int(labels["outputs_left_out"].sum()),
        rejected=rejected,
    )


def _has_executions(store: Store, run: str) -> bool:
    """Says whether there is a table of executions: with a single turn there is none."""
    return bool(table_iterations(store.url, run, "executions"))
