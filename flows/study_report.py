"""The report of a study: tables and figures as files, and the same words for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from tabulate import tabulate

from flows.estimators import estimators_of
from flows.study import Training, arms_of, curves_of
from schemas.errors import StoreError
from schemas.study import Piece, StudyConfig
from stages.gradient_noise import noise_scale, summarise_noise
from stages.study import compare_arms, summarise_trainings
from stages.study.curves import METRICS
from stages.study.differences import POOLED, TESTED, typical_curve
from storage import Store, open_table

REPORT = "results.md"
SIGNIFICANT = 0.05
"""Corrected p-value below which a difference is called one."""


def write_study(
    store: Store,
    study: StudyConfig,
    tuned: pl.DataFrame,
    trained: Mapping[str, Sequence[Training]],
    folder: Path | None,
) -> str:
    """Reads the trainings of some pieces, writes their report, and returns its text.

    Args:
        store: Where the trainings are.
        study: What was asked.
        tuned: As `flows.study.tuned_rates` returns it.
        trained: Piece to its trainings.
        folder: Where `results.md`, its figures and its tables go; null for nowhere.

    Raises:
        StoreError: If a training is missing or damaged, or the folder cannot be written.
    """
    parts = [f"# {study.title}", "", *_expected(study), "## Learning rates", ""]
    parts += [_table(_tuned_table(tuned)), ""]
    files: dict[str, pl.DataFrame] = {"tuning": tuned}
    for name, trainings in trained.items():
        piece = study.pieces[name]
        curves = curves_of(store, trainings)
        figures = summarise_trainings(curves, study.thresholds)
        compared = compare_arms(figures, piece.reference, arms_of(piece), piece.tasks)
        steps = optimiser_steps(store, trainings)
        noise = gradient_noise(store, trainings)
        files |= {
            f"{name}-curves": curves,
            f"{name}-gradients": noise,
            f"{name}-trainings": figures.join(steps, on=["task", "arm", "seed"]),
            f"{name}-differences": compared,
        }
        parts += _piece_text(name, piece, figures, compared, folder)
        parts += _update_text(store, piece, steps, noise, trainings)
        if folder is not None:
            with _writing(folder):
                draw_curves(typical_curve(curves), piece, folder / f"{name}.png")
    text = "\n".join(parts).rstrip() + "\n"
    if folder is not None:
        with _writing(folder):
            (folder / REPORT).write_text(text)
            for name, frame in files.items():
                frame.write_parquet(folder / f"{name}.parquet")
    return text


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes the folder of a report, and tells in one line why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from error


def _expected(study: StudyConfig) -> list[str]:
    if not study.hypotheses:
        return []
    lines = [f"{number}. {text}" for number, text in enumerate(study.hypotheses, 1)]
    return ["## Expected before", "", *lines, ""]


def _piece_text(
    name: str, piece: Piece, figures: pl.DataFrame, compared: pl.DataFrame, folder: Path | None
) -> list[str]:
    """Says how well each arm came out."""
    parts = [f"## {name}", "", *([piece.about, ""] if piece.about else [])]
    parts += [f"{len(piece.seeds)} seeds, paired; compared with {piece.reference}.", ""]
    parts += [f"- {line}" for line in verdicts(compared)] + [""]
    if folder is not None:
        parts += [f"![Learning curves of {name}]({name}.png)", ""]
    for metric, meaning in METRICS.items():
        rows = compared.filter(metric=metric)
        if len(rows):
            parts += [f"### {metric}: {meaning}", "", _table(_compared_table(rows, metric)), ""]
    means = figures.group_by("task", "arm", maintain_order=True).agg(
        pl.col("budget").first(), pl.col("final", "area", "failed_calls", "turns").mean()
    )
    return [*parts, "### Every arm", "", _table(means.with_columns(_rounded(3))), ""]


def _update_text(
    store: Store,
    piece: Piece,
    steps: pl.DataFrame,
    noise: pl.DataFrame,
    trainings: Sequence[Training],
) -> list[str]:
    """Says what the updates of each arm were like."""
    by_arm = steps.group_by("task", "arm", maintain_order=True).agg(pl.selectors.float().mean())
    parts = ["### Optimiser steps", "", _table(by_arm.with_columns(_rounded(4))), ""]
    parts += ["### Gradient noise of the first and the last update", ""]
    parts += [_table(typical_noise(noise)), ""]
    reference = [one for one in trainings if one.arm == piece.reference]
    parts += [f"### What each estimator pays for, on the rollouts of {piece.reference}", ""]
    return [*parts, _table(length_bias(store, reference)), ""]


def verdicts(compared: pl.DataFrame) -> list[str]:
    """Says in words what the tested differences are, over all tasks where there are several."""
    pooled = compared.filter(task=POOLED)
    told = pooled if len(pooled) else compared
    lines = []
    for row in told.filter(pl.col("metric").is_in(TESTED)).iter_rows(named=True):
        where = "over all tasks" if row["task"] == POOLED else f"on {row['task']}"
        span = (
            f"{100 * row['difference']:+.1f} points of {row['metric']} {where} "
            f"({100 * row['low']:+.1f} to {100 * row['high']:+.1f} with {row['coverage']:.0%} "
            f"confidence, corrected p = {row['p_corrected']:.3f})"
        )
        found = row["p_corrected"] < SIGNIFICANT
        word = "no difference is shown" if not found else "a difference is shown"
        lines.append(f"{row['arm']}: {span}: {word}.")
    return lines


def optimiser_steps(store: Store, trainings: Sequence[Training]) -> pl.DataFrame:
    """Returns what the updates of each training were like, one row a training.

    Returns:
        `task`, `arm`, `seed`, and over its optimiser steps: `gradient_norm`, its mean;
        `norm_variation`, its standard deviation divided by the mean; means of `kl`, `entropy` and
        `clipped`, the share of clipped tokens.
    """
    clipped = pl.col("clip_fraction_low") + pl.col("clip_fraction_high")
    parts = [
        open_table(store.url, one.run, "updates")
        .select(
            task=pl.lit(one.task),
            arm=pl.lit(one.arm),
            seed=pl.lit(one.seed, pl.Int64),
            gradient_norm=pl.col("gradient_norm").mean(),
            norm_variation=pl.col("gradient_norm").std() / pl.col("gradient_norm").mean(),
            kl=pl.col("kl").mean(),
            entropy=pl.col("entropy").mean(),
            clipped=clipped.mean(),
        )
        .collect()
        for one in trainings
    ]
    return pl.concat(parts)


def gradient_noise(store: Store, trainings: Sequence[Training]) -> pl.DataFrame:
    """Returns the gradient noise of the updates that were measured, one row each.

    Returns:
        `task`, `arm`, `seed`, `iteration`, and the columns of
        `stages.gradient_noise.summarise_noise`.
    """
    by = ["task", "arm", "seed", "iteration"]
    parts = [
        open_table(store.url, one.run, "gradient_noise")
        .with_columns(task=pl.lit(one.task), arm=pl.lit(one.arm), seed=pl.lit(one.seed, pl.Int64))
        .collect()
        for one in trainings
    ]
    return summarise_noise(pl.concat(parts), by)


def typical_noise(noise: pl.DataFrame) -> pl.DataFrame:
    """Returns the gradient noise by task, arm and update.

    The noise scale is the ratio of means over the seeds: single signals may be below 0. Updates of
    fewer than two groups have no row, so a seed may be without its first or its last.
    """
    return (
        noise.with_columns(
            update=pl.when(pl.col("iteration") == 1).then(pl.lit("first")).otherwise(pl.lit("last"))
        )
        .group_by("task", "update", "arm", maintain_order=True)
        .agg(
            seeds=pl.len(),
            groups=pl.col("groups").mean(),
            signal=pl.col("signal").mean(),
            noise=pl.col("noise").mean(),
        )
        .with_columns(noise_scale=noise_scale())
        .sort("task", "update", maintain_order=True)
        .with_columns(pl.col("groups", "noise_scale").round(1), pl.col("signal", "noise").round(4))
    )


def length_bias(store: Store, trainings: Sequence[Training]) -> pl.DataFrame:
    """Returns what every estimator pays for a longer trajectory and a later turn.

    Args:
        store: Where the trainings are.
        trainings: Whose rollouts are credited by all estimators.

    Returns:
        One row an estimator; means over the trainings of `credited`, `turn_count_bias` and
        `turn_index_bias` as in `stages.estimators_compared.biases`.
    """
    parts = [estimators_of(store.url, one.run).summary for one in trainings]
    return (
        pl.concat(parts)
        .group_by("estimator", maintain_order=True)
        .agg(pl.col("credited", "turn_count_bias", "turn_index_bias").mean().round(3))
    )


def draw_curves(curves: pl.DataFrame, piece: Piece, path: Path) -> None:
    """Draws the mean learning curve of every arm with its interval, a panel a task, as PNG.

    Args:
        curves: As `stages.study.differences.typical_curve` returns them.
        piece: What is compared.
        path: File of the picture.
    """
    from matplotlib.figure import Figure

    tasks = piece.tasks
    figure = Figure(figsize=(4.6 * len(tasks) + 0.6, 4.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for number, arm in enumerate(arms_of(piece)):
            line = curves.filter(task=task, arm=arm)
            thousands = line["tokens"] / 1000
            panel.plot(thousands, line["accuracy"], color=f"C{number % 10}", label=arm)
            panel.fill_between(
                thousands, line["low"], line["high"], color=f"C{number % 10}", alpha=0.12, lw=0
            )
        panel.set(title=task, xlabel="sampled tokens, thousands", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out avg@k")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9)
    figure.savefig(path, dpi=110)


def _tuned_table(tuned: pl.DataFrame) -> pl.DataFrame:
    return tuned.select(
        "arm",
        "learning_rate",
        "seeds",
        pl.col("area", "final").round(3),
        chosen=pl.when("chosen").then(pl.lit("yes")).otherwise(pl.lit("")),
    )


def _compared_table(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    digits = 0 if metric == "tokens_to_threshold" else 3
    values = [pl.col(name).round(digits) for name in ("reference", "mean", "difference")]
    return rows.select(
        "task",
        "arm",
        "seeds",
        *values,
        pl.format("{} to {}", pl.col("low").round(digits), pl.col("high").round(digits)).alias(
            "interval"
        ),
        pl.format("{} %", (pl.col("coverage") * 100).round(1)).alias("covers"),
        *([pl.col("p_value", "p_corrected").round(4)] if metric in TESTED else []),
    )


def _table(frame: pl.DataFrame) -> str:
    rows = [["-" if value is None else value for value in row] for row in frame.iter_rows()]
    return str(tabulate(rows, headers=frame.columns, tablefmt="github", disable_numparse=True))


def _rounded(digits: int) -> pl.Expr:
    return pl.selectors.float().round(digits)
