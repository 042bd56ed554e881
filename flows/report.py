"""What a finished run looks like: accuracy by iteration as a table and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table

from stages.evaluation import summarise
from storage import open_table


def accuracy_by_iteration(store: str | Path, run: str) -> pl.DataFrame:
    """Summarises the evaluations of a run, one row an iteration and benchmark.

    Returns:
        `iteration` and the columns of `stages.evaluation.summarise`.
    """
    evaluations = open_table(store, run, "evaluations", split="evaluation").collect()
    return pl.concat(
        summarise(part.drop("run", "iteration")).select(
            pl.lit(iteration, pl.Int32).alias("iteration"), pl.all()
        )
        for (iteration,), part in evaluations.sort("iteration").group_by(
            "iteration", maintain_order=True
        )
    )


def accuracy_table(accuracy: pl.DataFrame) -> Table:
    """Lays accuracy out for the terminal."""
    k = _most_samples(accuracy)
    table = Table(title="Held-out accuracy by iteration", title_justify="left", box=None)
    for name in (
        "iteration",
        f"avg@{k}",
        "95 %",
        f"pass@{k}",
        "turns",
        "calls",
        "failed",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in accuracy.iter_rows(named=True):
        table.add_row(
            str(row["iteration"]),
            _number(row["avg_at_k"]),
            f"{_number(row['low'])}-{_number(row['high'])}",
            _number(row["pass_at_k"]),
            _number(row["turns"]),
            _number(row["tool_calls"]),
            _number(row["failed_tool_call_share"]),
            "█" * round(20 * (row["avg_at_k"] or 0)),
        )
    return table


def accuracy_line(store: str, run: str) -> str:
    """Says in one line what the last evaluation of a run found."""
    row = accuracy_by_iteration(store, run).row(-1, named=True)
    return (
        f"run {run}, iteration {row['iteration']}: avg@{row['samples']} "
        f"{_number(row['avg_at_k'])} ({_number(row['low'])} to {_number(row['high'])}) "
        f"on {row['problems']} held-out problems"
    )


def draw_accuracy(accuracy: pl.DataFrame, title: str, path: Path) -> None:
    """Draws accuracy by iteration with its intervals into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    iterations = accuracy["iteration"].to_numpy()
    k = _most_samples(accuracy)
    shown = accuracy.drop_nulls("avg_at_k")
    axes.fill_between(shown["iteration"], shown["low"], shown["high"], alpha=0.2, linewidth=0)
    axes.plot(shown["iteration"], shown["avg_at_k"], marker="o", label=f"avg@{k}, 95 % interval")
    axes.plot(shown["iteration"], shown["pass_at_k"], marker=".", linestyle="--", label=f"pass@{k}")
    axes.set(
        title=title,
        xlabel="iteration (0 is the cold start)",
        ylabel="held-out accuracy",
        ylim=(0, 1),
        xticks=iterations,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def changes_line(summary: Mapping[str, Any], iteration: int) -> str:
    """Says in one line how the advantages of an iteration differ between two runs.

    Args:
        summary: The row of all turns of `flows.compare.Diff.summary`.
        iteration: Iteration that was compared.
    """
    return (
        f"advantages of iteration {iteration}: {summary['turns']} turns, "
        f"{summary['changed']} changed, {summary['flips']} changed sign"
    )


def _most_samples(accuracy: pl.DataFrame) -> int:
    """Returns k of avg@k."""
    return max(accuracy["samples"].to_list(), default=0)


def _number(value: Any) -> str:
    """Writes a number with two decimals; nothing known is a dash."""
    return "-" if value is None else f"{value:.2f}"
