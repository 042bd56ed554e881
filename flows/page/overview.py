"""The list of runs, and one run: settings, origin, and its figures by iteration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import polars as pl

from flows.evaluations import EvaluationDone, found_in
from flows.page.charts import Chart, line_chart, series_of
from flows.page.reading import Reader, Tables
from schemas.config import RunConfig
from storage import RunRecord, scan_errors
from storage.layout import SPLITS

Z_95 = 1.959964
"""Of the normal distribution: 95 % lie within so many standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A run as a list shows it."""

    name: str
    status: str
    done: int
    planned: str
    """Iterations that its settings ask for."""
    changed: str
    parent: str | None
    origin: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """All runs of a store."""

    store: str
    runs: Sequence[RunLine]
    damaged: dict[str, str]
    """Run whose record cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a run."""

    key: str
    value: str
    is_default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationLine:
    """Figures of one iteration; null where the table that tells it is not there.

    An interval is one of 95 %: over groups by the normal distribution, of the held-out accuracy by
    the bootstrap of `stages.evaluation`.
    """

    iteration: int
    avg_at_k: float | None
    avg_at_k_low: float | None
    avg_at_k_high: float | None
    pass_at_k: float | None
    right: float | None
    right_low: float | None
    right_high: float | None
    reward: float | None
    """Of a trajectory, the sum over its turns; mean over groups."""
    reward_low: float | None
    reward_high: float | None
    trajectories: int | None
    turns: float | None
    """Of a trajectory, mean."""
    penalised: float | None
    """Share of turns with a penalty of form."""
    failed_calls: float | None
    """Share of executions that did not end well."""
    timeouts: int | None
    credited: float | None
    """Share of turns with an advantage."""
    loss: float | None
    entropy: float | None
    kl: float | None
    clip_low: float | None
    clip_high: float | None
    gradient_norm: float | None
    policy: str
    """`kept`, `released` or `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run."""

    record: RunRecord
    settings: Sequence[Setting]
    branches: Sequence[str]
    samples: int | None
    """k of avg@k; null without an evaluation."""
    iterations: Sequence[IterationLine]
    benchmarks: Sequence[EvaluationDone]
    """Policies of the run on benchmarks."""
    charts: Sequence[Chart]
    notes: Sequence[str]
    """What is missing, and why."""

    @property
    def changed_settings(self) -> list[Setting]:
        """Settings that differ from the defaults."""
        return [setting for setting in self.settings if not setting.is_default]


def run_list(reader: Reader) -> RunList:
    """Returns all runs, those changed last first."""
    records = sorted(reader.store.runs(), key=lambda record: record.updated_at, reverse=True)
    return RunList(
        store=reader.store.url,
        runs=[_line(record) for record in records],
        damaged=reader.store.damaged_runs(),
    )


def run_view(reader: Reader, run: str) -> RunView:
    """Returns what the page of a run shows.

    Raises:
        NotFoundError: If there is no such run.
        StoreError: If a table of it cannot be read.
    """
    record = reader.record(run)
    tables = reader.tables(run)
    accuracy = accuracy_by_iteration(tables)
    frame = figures_by_iteration(tables, accuracy)
    lines = [
        IterationLine(**row, policy=reader.policy_state(run, row["iteration"]))
        for row in frame.iter_rows(named=True)
    ]
    return RunView(
        record=record,
        settings=list(_settings(record.config)),
        branches=[r.name for r in reader.store.runs() if r.parent and r.parent.run == run],
        samples=accuracy["samples"].max() if len(accuracy) else None,  # type: ignore[arg-type]
        iterations=lines,
        benchmarks=[
            found
            for split in tables.splits
            if split not in SPLITS
            for found in _found(tables, split)
        ],
        charts=run_charts({"": frame}),
        notes=list(_notes(record, frame, accuracy)),
    )


def accuracy_by_iteration(tables: Tables) -> pl.DataFrame:
    """Returns held-out accuracy with its interval, one row an evaluation.

    Returns:
        `iteration`, `samples`, `avg_at_k`, `avg_at_k_low`, `avg_at_k_high`, `pass_at_k`; of several
        benchmarks the first.
    """
    found = _found(tables, "evaluation")
    floats = ("avg_at_k", "low", "high", "pass_at_k")
    schema = {"iteration": pl.Int32, "samples": pl.Int64, **dict.fromkeys(floats, pl.Float64)}
    told = pl.DataFrame([{n: getattr(one, n) for n in schema} for one in found], schema=schema)
    return told.rename({"low": "avg_at_k_low", "high": "avg_at_k_high"}).sort("iteration")


def _found(tables: Tables, split: str) -> Iterator[EvaluationDone]:
    """Yields what each iteration's evaluation found; of several benchmarks the first."""
    columns = ("benchmark", "task_id", "correct", "tool_calls", "failed_tool_calls", "turns")
    opened = tables.open("evaluations", split=split)
    with scan_errors(f"evaluations of {tables.run}"):
        samples = opened.select("iteration", *columns).collect().sort("iteration")
    for iteration in samples["iteration"].unique(maintain_order=True):
        yield next(found_in(iteration, samples.filter(iteration=iteration).drop("iteration")))


def figures_by_iteration(tables: Tables, accuracy: pl.DataFrame) -> pl.DataFrame:
    """Returns the columns of `IterationLine` without `policy`, one row an iteration.

    Each table is reduced to a row an iteration while it is read; no key but the task is.
    """
    rewards = tables.open("turn_rewards")
    credit = tables.open("advantages").group_by("iteration")
    queries = (
        _group_means(rewards),
        _turn_counts(rewards),
        _call_counts(tables.open("executions")),
        credit.agg(credited=pl.col("advantage").is_not_null().mean()),
        _step_means(tables.open("updates")),
    )
    with scan_errors(f"tables of {tables.run}"):
        # One after the other: hundreds of files each, and polars opens all of a query at once.
        parts = [query.collect() for query in queries]
    frame = accuracy.drop("samples")
    for part in parts:
        frame = frame.join(part, on="iteration", how="full", coalesce=True)
    known = pl.DataFrame({"iteration": tables.iterations}, schema={"iteration": pl.Int32})
    frame = known.join(frame, on="iteration", how="left").sort("iteration")
    return frame.select(f.name for f in fields(IterationLine) if f.name != "policy")


CURVES: tuple[tuple[str, tuple[tuple[str, str], ...], bool, tuple[float, float] | None], ...] = (
    ("held-out accuracy", (("avg_at_k", "avg@k"), ("pass_at_k", "pass@k")), True, (0.0, 1.0)),
    ("right in training", (("right", "right"),), True, (0.0, 1.0)),
    ("reward of a trajectory", (("reward", "reward"),), True, None),
    ("turns of a trajectory", (("turns", "turns"),), False, None),
    (
        "share of turns, and of calls",
        (("penalised", "penalised turns"), ("failed_calls", "failed calls")),
        False,
        None,
    ),
    ("entropy, nats", (("entropy", "entropy"),), False, None),
    ("clipped tokens", (("clip_low", "at the low end"), ("clip_high", "at the high end")), False,
     None),
    ("KL to the sampling policy", (("kl", "KL"),), False, None),
    ("gradient norm", (("gradient_norm", "norm"),), False, None),
)  # fmt: skip
"""Title, lines (column and name), whether with intervals, and range of each chart of a run."""


def run_charts(frames: dict[str, pl.DataFrame]) -> list[Chart]:
    """Returns the charts of one run, or of several in the same charts.

    Args:
        frames: Name of the run, empty where it need not be told, to its figures.
    """
    charts = []
    for title, lines, interval, y_range in CURVES:
        # Of several runs only the first line, or nobody could tell them apart.
        chosen = lines[:1] if len(frames) > 1 else lines
        series = [
            series_of(
                frame,
                column,
                " ".join(part for part in (run, name) if part),
                interval=interval and column not in ("pass_at_k",),
            )
            for column, name in chosen
            for run, frame in frames.items()
        ]
        charts.append(line_chart(title, series, y_range=y_range))
    return [chart for chart in charts if chart is not None]


def _group_means(rewards: pl.LazyFrame) -> pl.LazyFrame:
    by_group = (
        rewards.filter(pl.col("excluded").is_null())
        .group_by("iteration", "task_id")
        .agg(
            right=pl.col("outcome").filter(pl.col("is_last")).mean(),
            reward=pl.col("total").sum() / pl.col("is_last").sum(),
        )
    )
    means = by_group.group_by("iteration").agg(
        pl.col("right", "reward").mean(),
        (pl.col("right", "reward").std() / pl.len().sqrt() * Z_95).name.suffix("_half"),
    )
    return means.with_columns(
        *((pl.col(n) - pl.col(f"{n}_half")).alias(f"{n}_low") for n in ("right", "reward")),
        *((pl.col(n) + pl.col(f"{n}_half")).alias(f"{n}_high") for n in ("right", "reward")),
    ).with_columns(
        pl.col("right_low").clip(lower_bound=0.0), pl.col("right_high").clip(upper_bound=1.0)
    )


def _turn_counts(rewards: pl.LazyFrame) -> pl.LazyFrame:
    return rewards.group_by("iteration").agg(
        trajectories=pl.col("is_last").sum(),
        turns=pl.len() / pl.col("is_last").sum(),
        penalised=(pl.col("format") < 0).mean(),
    )


def _call_counts(executions: pl.LazyFrame) -> pl.LazyFrame:
    return executions.group_by("iteration").agg(
        failed_calls=(pl.col("status") != "ok").mean(),
        timeouts=(pl.col("status") == "timeout").sum(),
    )


def _step_means(updates: pl.LazyFrame) -> pl.LazyFrame:
    return updates.group_by("iteration").agg(
        pl.col("loss", "entropy", "kl", "gradient_norm").mean(),
        clip_low=pl.col("clip_fraction_low").mean(),
        clip_high=pl.col("clip_fraction_high").mean(),
    )


def _line(record: RunRecord) -> RunLine:
    parent = record.parent
    origin = f"imported from {record.imported_from}" if record.imported_from else ""
    if parent is not None:
        overrides = ", ".join(parent.overrides) or "nothing changed"
        origin = f"at iteration {parent.iteration}, {parent.stage}: {overrides}"
    return RunLine(
        name=record.name,
        status=record.status,
        done=record.iterations_done,
        planned=str(record.config.get("iterations", "?")),
        changed=f"{record.updated_at:%Y-%m-%d %H:%M}",
        parent=None if parent is None else parent.run,
        origin=origin,
        message=record.message or "",
    )


def _settings(config: dict[str, Any]) -> Iterator[Setting]:
    defaults = dict(_flat(RunConfig().model_dump(mode="json")))
    for key, value in _flat(config):
        yield Setting(key, _shown(value), key in defaults and defaults[key] == value)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _notes(record: RunRecord, frame: pl.DataFrame, accuracy: pl.DataFrame) -> Iterator[str]:
    if frame.is_empty():
        yield "Nothing is stored of this run yet."
        return
    if record.status == "running":
        yield "The run is in progress: load the page again to see what is new."
    if record.status in ("failed", "interrupted"):
        yield (
            f"The run {'failed' if record.status == 'failed' else 'was interrupted'}; what was "
            "stored before is shown."
        )
    if record.imported_from is not None:
        yield "The trajectories were imported: they have no tokens, log-probabilities or policy."
    if accuracy.is_empty():
        yield "No policy of it was evaluated."
    if frame["right"].null_count() == len(frame):
        yield "No trajectory is scored: the command turnledger rerun turn_rewards does that."
    if frame["entropy"].null_count() == len(frame):
        yield "No policy was updated."
