"""What benchmarks say of a policy: figures as frames, and as text for terminal, Markdown, LaTeX."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from tabulate import tabulate

from flows.benchmarks import Graded
from schemas.errors import StoreError
from stages.contamination import find_contamination
from stages.evaluation import summarise
from stages.evaluation.answer_classes import answer_classes
from stages.evaluation.at_k import accuracy_at_k
from stages.evaluation.breakdown import accuracy_by, use_of_samples
from stages.evaluation.paired import compare_policies
from storage import MissingTableError, Store, open_table

FORMATS = {".md": "github", ".tex": "latex_booktabs"}
"""Ending of a report's file to the format of its tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPolicy:
    """Results of a policy to compare with."""

    title: str
    evaluations: pl.DataFrame
    """Rows of `schemas.tables.Evaluations`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReport:
    """Figures of one policy."""

    title: str
    summary: pl.DataFrame
    """One row a benchmark; columns of `stages.evaluation.summary`, and maj@k with its interval."""
    at_k: pl.DataFrame
    """One row a benchmark and k; see `stages.evaluation.at_k`."""
    use: pl.DataFrame
    """One row a benchmark; see `stages.evaluation.breakdown.use_of_samples`, and `generation_s`,
    the seconds in which its turns were generated; shards that ran together add up."""
    by_level: pl.DataFrame
    by_turns: pl.DataFrame
    contamination: pl.DataFrame
    """One row a benchmark problem that training asked too; see `stages.contamination`."""
    compared: pl.DataFrame | None = None
    """Against another policy; see `stages.evaluation.paired`."""
    against: str | None = None
    """That policy."""


def benchmark_report(
    store: Store,
    run: str,
    iteration: int,
    graded: Sequence[Graded],
    *,
    grading_time_s: float,
    other: OtherPolicy | None = None,
) -> BenchmarkReport:
    """Reads the results of benchmarks and summarises them.

    Args:
        store: The store.
        run: Run that holds the results.
        iteration: Iteration of the policy.
        graded: What the flow left.
        grading_time_s: Most seconds of one comparison of two answers.
        other: Another policy to compare with, on the same benchmarks.

    Raises:
        StoreError: If results are missing or damaged.
        TurnledgerError: If the two policies have no problem in common.
    """
    evaluations = pl.concat(store.read(ref) for one in graded for ref in one.evaluations)
    seconds = pl.DataFrame(
        {
            "benchmark": [one.name for one in graded],
            "generation_s": [_generation_s(store, one) for one in graded],
        }
    )
    at_k = accuracy_at_k(answer_classes(evaluations, time_s=grading_time_s))
    most = at_k.group_by("benchmark", maintain_order=True).last()
    votes = most.select("benchmark", "maj_at_k", "maj_low", "maj_high")
    asked = pl.concat(
        store.read(one.prompts).select(pl.lit(one.name).alias("benchmark"), "task_id", "problem")
        for one in graded
    )
    return BenchmarkReport(
        title=f"{run}, iteration {iteration}",
        summary=summarise(evaluations).join(votes, on="benchmark", how="left"),
        at_k=at_k,
        use=use_of_samples(evaluations).join(seconds, on="benchmark"),
        by_level=accuracy_by(evaluations, "level"),
        by_turns=accuracy_by(evaluations, "turns"),
        contamination=find_contamination(asked, training_problems(store, run, iteration)),
        compared=None if other is None else compare_policies(other.evaluations, evaluations),
        against=None if other is None else other.title,
    )


def training_problems(store: Store, run: str, iteration: int) -> pl.DataFrame:
    """Returns `task_id` and `problem` of all prompts that a policy was trained on.

    Args:
        store: The store.
        run: Run that holds the policy.
        iteration: Iteration that made it; prompts of later ones do not count.
    """
    parts = [pl.DataFrame(schema={"task_id": pl.String, "problem": pl.String})]
    name: str | None = run
    while name is not None and store.has_run(name):
        try:
            prompts = open_table(store.url, name, "prompts").filter(
                pl.col("iteration") <= iteration
            )
            parts.append(prompts.select("task_id", "problem").collect())
        except MissingTableError:
            pass  # of a branch that holds no prompts of its own
        parent = store.run_record(name).parent
        if parent is not None:
            name, iteration = parent.run, min(iteration, parent.iteration)
        else:
            name = None
    return pl.concat(parts).unique(maintain_order=True)


def _generation_s(store: Store, graded: Graded) -> float:
    times = pl.concat(store.read(ref) for ref in graded.generation_times)
    spent = (times["ended_at"] - times["began_at"]).dt.total_microseconds().sum()
    return float(spent) / 1e6


def other_policy(store: Store, run: str, iteration: int, names: Iterable[str]) -> OtherPolicy:
    """Reads the stored results of a policy on benchmarks.

    Raises:
        StoreError: If there are none on one of them, with the command that makes them.
    """
    parts = []
    for name in names:
        try:
            stored = open_table(store.url, run, "evaluations", split=name)
        except StoreError as error:
            raise StoreError(
                f"{error}; `turnledger benchmark --run {run} --iteration {iteration} --on {name}` "
                "makes it"
            ) from error
        part = stored.filter(pl.col("iteration") == iteration).drop("run", "iteration").collect()
        if part.is_empty():
            raise StoreError(
                f"run {run} has no results of iteration {iteration} on {name}: `turnledger "
                f"benchmark --run {run} --iteration {iteration} --on {name}` makes them"
            )
        parts.append(part)
    return OtherPolicy(title=f"{run}, iteration {iteration}", evaluations=pl.concat(parts))


def notes(report: BenchmarkReport) -> list[str]:
    """Says in words what the figures alone may hide, one line each."""
    lines = []
    for row in report.summary.iter_rows(named=True):
        name, problems = row["benchmark"], row["problems"]
        if row["avg_at_k"] == 0:
            # All outcomes are equal, so resampling them cannot give an interval.
            bound = 1 - 0.05 ** (1 / problems)
            lines.append(
                f"{name}: no sample is right. With {problems} problems, the share of problems "
                f"that such samples solve is below {bound:.1%} with 95 % confidence."
            )
        if row["left_out"]:
            lines.append(
                f"{name}: {row['left_out']} samples have no outcome, as the machine failed them; "
                "they count neither as right nor as wrong."
            )
    for (name, kind), found in report.contamination.group_by(
        "benchmark", "kind", maintain_order=True
    ):
        word = "are" if kind == "exact" else "resemble"
        lines.append(
            f"{name}: {len(found)} problems {word} training problems, first {found['task_id'][0]}."
        )
    if report.contamination.is_empty():
        lines.append("No benchmark problem is, or resembles, a training problem.")
    return lines


def summary_table(report: BenchmarkReport) -> pl.DataFrame:
    """Returns the main table as texts, one row a benchmark."""
    return report.summary.join(report.use.drop("turns", "tool_calls"), on="benchmark").select(
        "benchmark",
        "problems",
        k=pl.col("samples"),
        **{
            "avg@k": _with_interval("avg_at_k", "low", "high"),
            "pass@k": _percent(pl.col("pass_at_k")),
            "maj@k": _with_interval("maj_at_k", "maj_low", "maj_high"),
            "turns": pl.col("turns").round(2),
            "calls": pl.col("tool_calls").round(2),
            "failed": _percent(pl.col("failed_tool_call_share")),
            "no answer": _percent(pl.col("no_answer_share")),
            "tokens": pl.col("tokens").round(0).cast(pl.Int64),
            "generation": pl.format("{} s", pl.col("generation_s").round(1)),
        },
    )


def short_table(report: BenchmarkReport) -> pl.DataFrame:
    """Returns the main figures, in percent where they are shares, in the width of a terminal."""
    return report.summary.select(
        "benchmark",
        "problems",
        k=pl.col("samples"),
        **{
            "avg@k": _points("avg_at_k"),
            "95 %": pl.format("{}-{}", _points("low"), _points("high")),
            "pass@k": _points("pass_at_k"),
            "maj@k": _points("maj_at_k"),
            "turns": pl.col("turns").round(2),
            "calls": pl.col("tool_calls").round(2),
            "failed": _points("failed_tool_call_share"),
        },
    )


def compared_table(compared: pl.DataFrame) -> pl.DataFrame:
    """Returns a comparison of two policies as texts, one row a benchmark; points are percent."""
    return compared.select(
        "benchmark",
        "problems",
        before=_percent(pl.col("before")),
        after=_percent(pl.col("after")),
        difference=_with_interval("difference", "low", "high"),
        p=pl.col("p_value").round(4),
        **{"p, corrected": pl.col("p_corrected").round(4)},
    )


def sections(report: BenchmarkReport) -> list[tuple[str, pl.DataFrame]]:
    """Returns the tables of a report with their titles, without empty ones."""
    at_k = report.at_k.select(
        "benchmark",
        "k",
        "problems",
        **{
            "pass@k": _with_interval("pass_at_k", "pass_low", "pass_high"),
            "maj@k": _with_interval("maj_at_k", "maj_low", "maj_high"),
        },
    )
    parts = [("Benchmarks", summary_table(report)), ("By number of samples", at_k)]
    if report.compared is not None:
        parts.append((f"Against {report.against}", compared_table(report.compared)))
    for title, frame in (("By level", report.by_level), ("By turns", report.by_turns)):
        parts.append((title, frame.with_columns(accuracy=_percent(pl.col("accuracy")))))
    found = report.contamination.select(
        "benchmark", "task_id", "kind", pl.col("overlap").round(2), "training_task_id"
    )
    parts.append(("Problems that training asked too", found))
    return [(title, frame) for title, frame in parts if not frame.is_empty()]


def as_text(report: BenchmarkReport, ending: str) -> str:
    """Writes a report in Markdown or LaTeX.

    Args:
        report: The report.
        ending: `.md` or `.tex`.
    """
    is_latex = ending == ".tex"
    heads = ("\\section*{{{}}}", "\\subsection*{{{}}}") if is_latex else ("# {}", "## {}")
    lines = [heads[0].format(_escaped(report.title, is_latex)), ""]
    for title, frame in sections(report):
        table = tabulate(
            [[_cell(value) for value in row] for row in frame.iter_rows()],
            headers=frame.columns,
            tablefmt=FORMATS[ending],
            disable_numparse=True,
        )
        lines += [heads[1].format(_escaped(title, is_latex)), "", table, ""]
    lines += [f"{_escaped(note, is_latex)}\n" for note in notes(report)]
    return "\n".join(lines).rstrip() + "\n"


def write_report(report: BenchmarkReport, path: Path) -> None:
    """Writes a report into a file; its ending says in which format.

    Raises:
        StoreError: If it cannot be written.
    """
    try:
        path.write_text(as_text(report, path.suffix))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def _cell(value: Any) -> str:
    # A bar would end the cell of a Markdown table.
    return "-" if value is None else str(value).replace("|", "\\|")


def _escaped(text: str, is_latex: bool) -> str:
    if not is_latex:
        return text
    for special in "&%$#_{}":
        text = text.replace(special, f"\\{special}")
    return text


def _points(name: str) -> pl.Expr:
    return (pl.col(name) * 100).round(1)


def _percent(share: pl.Expr) -> pl.Expr:
    return pl.format("{} %", (share * 100).round(1))


def _with_interval(value: str, low: str, high: str) -> pl.Expr:
    points = (pl.col(value), pl.col(low), pl.col(high))
    return pl.format("{} % ({} to {})", *((point * 100).round(1) for point in points))
