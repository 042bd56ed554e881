"""Two runs, or two estimators on one run, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from flows.compare import Diff, diff
from flows.estimators import estimators_of
from flows.page.charts import Chart, Series, line_chart
from flows.page.overview import accuracy_by_iteration, figures_by_iteration, run_charts
from flows.page.reading import NotFoundError, Reader
from flows.sessions import stored_config
from schemas.config_text import changed_keys
from schemas.errors import ConfigError, StoreError
from stages.comparison import KEY
from stages.estimators_compared import agreement, mean_credit

LISTED = 50
"""Most turns in a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedTurn:
    """A turn that two results credit differently."""

    iteration: int
    task: str
    sample: int
    turn: int
    a: float | None
    b: float | None
    flipped: bool
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How many turns changed: of all, of one turn index, or of one outcome."""

    name: str
    turns: int
    changed: int
    flips: int
    correlation: float | None
    mean_a: float | None
    mean_b: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How the advantages of an iteration differ."""

    parts: Sequence[Part]
    flipped: int
    """Turns that changed sign."""
    flips: Sequence[ChangedTurn]
    """Of these the largest changes."""
    largest: Sequence[ChangedTurn]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsCompared:
    """Two runs side by side."""

    a: str
    b: str
    iteration: int | None
    common: Sequence[int]
    """Iterations that both have."""
    settings: Sequence[tuple[str, str, str]]
    """Key, value in a and value in b, where they differ."""
    charts: Sequence[Chart]
    changes: Changes | None
    note: str
    """Why the advantages are not compared; empty if they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorsCompared:
    """Two estimators on the rewards of one iteration."""

    run: str
    iteration: int
    a: str
    b: str
    names: Sequence[str]
    left_out: Mapping[str, str]
    summary: Sequence[Mapping[str, Any]]
    """Credited share, biases and agreement of every estimator."""
    charts: Sequence[Chart]
    same_sign: float | None
    """Share of the turns with the same sign by both; null if they are one."""
    flipped: int
    flips: Sequence[ChangedTurn]


def compared_runs(reader: Reader, a: str, b: str, iteration: int | None) -> RunsCompared:
    """Compares the curves of two runs, and the advantages of one iteration.

    Args:
        reader: The store.
        a: Run before.
        b: Run after.
        iteration: Whose advantages; null for the last that both have.

    Raises:
        NotFoundError: If a run is not there.
        StoreError: If a table cannot be read.
    """
    records = [reader.record(run) for run in (a, b)]
    tables = {run: reader.tables(run) for run in (a, b)}
    frames = {
        run: figures_by_iteration(opened, accuracy_by_iteration(opened))
        for run, opened in tables.items()
    }
    credited = [
        set(frame.drop_nulls("credited")["iteration"].to_list()) for frame in frames.values()
    ]
    common = sorted(set.intersection(*credited))
    chosen = iteration if iteration is not None else (common[-1] if common else None)
    changes, note = None, ""
    if chosen is None:
        note = "No iteration with advantages is in both runs."
    elif chosen not in common:
        note = f"Iteration {chosen} does not have advantages in both runs."
    else:
        changes = _changes(diff(reader.store.url, a, b, iteration=chosen, largest=0))
    try:
        configs = [stored_config(record) for record in records]
        settings = [(key, str(old), str(new)) for key, (old, new) in changed_keys(*configs).items()]
    except ConfigError as error:
        settings, note = [], note or str(error)
    return RunsCompared(
        a=a,
        b=b,
        iteration=chosen,
        common=common,
        settings=settings,
        charts=run_charts(frames) if a != b else run_charts({a: frames[a]}),
        changes=changes,
        note=note,
    )


def compared_estimators(
    reader: Reader, run: str, iteration: int, a: str, b: str
) -> EstimatorsCompared:
    """Credits the rewards of an iteration by every estimator, and compares two of them.

    Raises:
        NotFoundError: If the run, rewards of the iteration, or an estimator are not there.
    """
    reader.record(run)
    try:
        compared = estimators_of(reader.store.url, run, iteration=iteration)
    except StoreError as error:
        raise NotFoundError(str(error)) from error
    for name in (a, b):
        if name not in compared.names:
            raise NotFoundError(
                f"there is no estimator {name} for this run; there are {', '.join(compared.names)}"
            )
    pair = compared.credit.with_columns(
        a=pl.col(a),
        b=pl.col(b),
        flipped=(pl.col(a).sign() * pl.col(b).sign() < 0).fill_null(False),
        outcome_a=pl.col("outcome"),
        outcome_b=pl.col("outcome"),
    )
    flips = pair.filter("flipped").sort(
        (pl.col("a") - pl.col("b")).abs(), *_key(pair), descending=[True, *([False] * 4)]
    )
    return EstimatorsCompared(
        run=run,
        iteration=iteration,
        a=a,
        b=b,
        names=compared.names,
        left_out=compared.left_out,
        summary=compared.summary.to_dicts(),
        charts=_credit_charts(compared.credit, [a] if a == b else [a, b]),
        same_sign=None if a == b else agreement(compared.credit, [(a, b)])["same_sign"][0],
        flipped=len(flips),
        flips=_turns(flips.head(LISTED)),
    )


def _credit_charts(credit: pl.DataFrame, names: Sequence[str]) -> list[Chart]:
    means = mean_credit(credit, names).drop_nulls()
    charts = []
    for outcome in ("right", "wrong"):
        for by, label, told in (
            ("turn_index", "turn", "by turn"),
            ("turns", "turns of the trajectory", "by length"),
        ):
            lines = [
                Series(
                    name=name,
                    points=means.filter(estimator=name, outcome=outcome, by=by)
                    .select("value", "advantage")
                    .rows(),
                )
                for name in names
            ]
            title = f"mean advantage {told}, {outcome} trajectories"
            charts.append(line_chart(title, lines, x_label=label))
    return [chart for chart in charts if chart is not None]


def _changes(changes: Diff) -> Changes:
    key = _key(changes.rows)
    changed = changes.rows.filter("changed").sort(
        pl.col("difference").abs(),
        *key,
        descending=[True, *([False] * len(key))],
        nulls_last=True,
    )
    flips = changed.filter("flipped")
    return Changes(
        parts=[_part(row) for row in changes.summary.iter_rows(named=True)],
        flipped=len(flips),
        flips=_turns(flips.head(LISTED)),
        largest=_turns(changed.head(LISTED)),
    )


def _key(frame: pl.DataFrame) -> list[str]:
    return [name for name in KEY if name in frame.columns]


def _turns(rows: pl.DataFrame) -> list[ChangedTurn]:
    return [
        ChangedTurn(
            iteration=row["iteration"],
            task=row["task_id"],
            sample=row["sample_index"],
            turn=row["turn_index"],
            a=row["a"],
            b=row["b"],
            flipped=row["flipped"],
            outcome=" → ".join(
                dict.fromkeys(o for o in (row["outcome_a"], row["outcome_b"]) if o is not None)
            ),
        )
        for row in rows.iter_rows(named=True)
    ]


def _part(row: Mapping[str, Any]) -> Part:
    name = "all turns"
    if row["part"] == "turn_index":
        name = f"turn {row['turn_index']}"
    elif row["part"] == "outcome":
        name = f"{row['outcome']} trajectories"
    figures = ("turns", "changed", "flips", "correlation", "mean_a", "mean_b")
    return Part(name=name, **{figure: row[figure] for figure in figures})
