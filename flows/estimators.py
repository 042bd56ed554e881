"""The estimators side by side on a stored run: read lazily, computed in memory, drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import polars as pl

from flows.sessions import stored_config
from schemas.errors import StoreError
from schemas.tables import ShapedRewards
from stages.advantages import ESTIMATORS
from stages.estimators_compared import (
    REFERENCE,
    agreement,
    biases,
    credit_by_estimator,
    estimators_side_by_side,
    mean_credit,
)
from storage import Store, open_table, scan_errors, table_iterations


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """What every estimator would have credited the turns of a run."""

    run: str
    iterations: Sequence[int]
    names: Sequence[str]
    """Estimators, each a column of `credit`."""
    left_out: dict[str, str]
    """Estimators that these rewards do not do for, and why."""
    credit: pl.DataFrame
    """One row a turn; see `stages.estimators_compared.credit_by_estimator`."""

    @property
    def summary(self) -> pl.DataFrame:
        """Biases of each estimator, with its agreement with the reference."""
        told = biases(self.credit, self.names)
        others = [name for name in self.names if name != REFERENCE]
        pairs = agreement(self.credit, [(REFERENCE, name) for name in others])
        return told.join(
            pairs.select("b", "correlation", "same_sign"),
            left_on="estimator",
            right_on="b",
            how="left",
            maintain_order="left",
        )

    def group(self, task_id: str) -> pl.DataFrame:
        """Returns the credit of one group, the largest iteration that has it.

        Raises:
            StoreError: If no iteration has it.
        """
        rows = self.credit.filter(pl.col("task_id") == task_id)
        if rows.is_empty():
            some = self.credit["task_id"].unique(maintain_order=True).head(3).to_list()
            raise StoreError(
                f"run {self.run} has no group {task_id} in these iterations; it has "
                f"{', '.join(some)} and others"
            )
        return rows.filter(pl.col("iteration") == pl.col("iteration").max())


def estimators_of(store: str | Path, run: str, *, iteration: int | None = None) -> SideBySide:
    """Credits a run's stored rewards by every estimator.

    Args:
        store: The store.
        run: Name of the run.
        iteration: The only iteration; null for all. Each is a batch of its own.

    Raises:
        StoreError: If the run has no shaped rewards, or none of this iteration.
    """
    stored = table_iterations(store, run, "shaped_rewards")
    chosen = sorted(stored if iteration is None else stored & {iteration})
    if not chosen:
        at = "" if iteration is None else f" of iteration {iteration}"
        raise StoreError(f"run {run} has no shaped_rewards{at}")
    config = stored_config(Store.open(store).run_record(run))
    settings = estimators_side_by_side(config.advantages)
    rows = open_table(store, run, "shaped_rewards", iteration=iteration, verify=True)
    with scan_errors(f"shaped_rewards of {run}"):
        stored_rows = rows.filter(pl.col("iteration").is_in(chosen)).collect()
    left_out = {}
    if stored_rows["state"].null_count():
        by_state = [n for n, c in settings.items() if "state" in ESTIMATORS[c.estimator].needs]
        left_out = dict.fromkeys(by_state, "these rewards have no states: rerun turn_rewards")
        settings = {n: c for n, c in settings.items() if n not in left_out}
    batches = []
    for (number,), batch in stored_rows.group_by("iteration", maintain_order=True):
        shaped = ShapedRewards.validate(batch.select(ShapedRewards.column_names()), cast=True)
        credit = credit_by_estimator(shaped, settings)
        batches.append(credit.select(pl.lit(number, pl.Int32).alias("iteration"), pl.all()))
    return SideBySide(
        run=run,
        iterations=chosen,
        names=list(settings),
        left_out=left_out,
        credit=pl.concat(batches).sort("iteration", maintain_order=True),
    )


def draw_estimators(compared: SideBySide, path: Path) -> None:
    """Draws mean advantages by turn index and by length, and who agrees with whom, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    means = mean_credit(compared.credit, compared.names)
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplot_mosaic(
        [["right turn_index", "right turns", "same"], ["wrong turn_index", "wrong turns", "same"]],
        width_ratios=[1, 1, 1.1],
    )
    labels = {"turn_index": "turn", "turns": "turns of the trajectory"}
    for outcome in ("right", "wrong"):
        for by, label in labels.items():
            place = axes[f"{outcome} {by}"]
            for number, name in enumerate(compared.names):
                line = means.filter(estimator=name, outcome=outcome, by=by).drop_nulls()
                style = "-" if name.startswith(REFERENCE) else "--"
                place.plot(line["value"], line["advantage"], style, marker=".", label=name,
                           color=f"C{number % 10}", alpha=0.9)  # fmt: skip
            place.set(title=f"{outcome} trajectories", xlabel=label, ylabel="mean advantage")
            place.axhline(0, color="grey", linewidth=0.6)
            place.grid(alpha=0.3)
            place.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, labels_shown = axes["right turn_index"].get_legend_handles_labels()
    figure.legend(handles, labels_shown, loc="outside lower center", ncols=6, fontsize=8)
    pairs = agreement(compared.credit, combinations(compared.names, 2))
    share = {(a, b): s for a, b, s in pairs.select("a", "b", "same_sign").iter_rows()}
    grid = [
        [1.0 if a == b else share.get((a, b), share.get((b, a))) or 0.0 for b in compared.names]
        for a in compared.names
    ]
    image = axes["same"].imshow(grid, vmin=0.5, vmax=1.0, cmap="viridis")
    ticks = range(len(compared.names))
    axes["same"].set(title="share of turns with the same sign", xticks=ticks, yticks=ticks)
    axes["same"].set_xticklabels(compared.names, rotation=90, fontsize=8)
    axes["same"].set_yticklabels(compared.names, fontsize=8)
    figure.colorbar(image, ax=axes["same"], shrink=0.5)
    figure.savefig(path, dpi=110)
