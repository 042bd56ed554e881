"""When rollouts had the engine and when they ran code: measured, read back, drawn."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import dataframely as dy
import polars as pl

from schemas.errors import StoreError
from schemas.tables import WorkTimes
from storage import MissingTableError, open_table

WORK = ("generation", "execution")


class WorkTimer:
    """Measures one piece of work, as a context."""

    def __enter__(self) -> "WorkTimer":
        self._began_at = datetime.now(UTC)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended_at = datetime.now(UTC)

    def row(self, shard: int, turn_index: int, token_ids: pl.Series) -> dy.DataFrame[WorkTimes]:
        """Returns the row of a stage run; none where there was nothing to do.

        Stage runs without turns are alike, whatever shard they are of, and share a result.

        Args:
            shard: Its shard.
            turn_index: Its turn.
            token_ids: Tokens of each turn that it made or executed.
        """
        frame = pl.DataFrame(
            {
                "shard": [shard],
                "turn_index": [turn_index],
                "began_at": [self._began_at],
                "ended_at": [self._ended_at],
                "turns": [len(token_ids)],
                "tokens": [int(token_ids.list.len().sum())],
            }
        )
        return WorkTimes.validate(frame.filter(pl.col("turns") > 0), cast=True)


def work_times(
    store: str | Path, run: str, *, iteration: int, split: str = "train"
) -> pl.DataFrame:
    """Returns what a rollout did when.

    Args:
        store: The store.
        run: Name of the run.
        iteration: Whose rollout.
        split: `train` or `evaluation`.

    Returns:
        The columns of `GenerationTimes`, with `work`, `generation` or `execution`; `begin_s` and
        `end_s`, seconds since the rollout began; in the order of their beginnings.

    Raises:
        StoreError: If the run has no such rollout, or an older version made it, which measured
            nothing.
    """
    parts = []
    for work in WORK:
        with suppress(MissingTableError):
            rows = open_table(store, run, f"{work}_times", split=split, iteration=iteration)
            parts.append(rows.with_columns(work=pl.lit(work)).collect())
    if not any(len(part) for part in parts):
        raise StoreError(f"run {run} has no times of a rollout of iteration {iteration}")
    times = pl.concat(parts, how="diagonal").sort("began_at")
    first = times["began_at"].min()
    return times.with_columns(
        begin_s=(pl.col("began_at") - first).dt.total_microseconds() / 1e6,
        end_s=(pl.col("ended_at") - first).dt.total_microseconds() / 1e6,
    )


def utilisation(times: pl.DataFrame) -> pl.DataFrame:
    """Returns how much of a rollout each kind of work was going on.

    Args:
        times: As `work_times` returns them.

    Returns:
        `work`; `busy_s`, seconds in which at least one piece of it was going on; `share` of the
        whole rollout; `turns` and `tokens`; `tokens_per_s` while busy.
    """
    wall_s = times["end_s"].max()
    earlier = pl.col("end_s").cum_max().shift(1).over("work")
    new_s = pl.col("end_s") - pl.max_horizontal("begin_s", earlier.fill_null(0.0))
    return (
        times.sort("begin_s")
        .with_columns(new_s=new_s.clip(lower_bound=0))
        .group_by("work", maintain_order=True)
        .agg(
            busy_s=pl.col("new_s").sum(), turns=pl.col("turns").sum(), tokens=pl.col("tokens").sum()
        )
        .with_columns(
            share=pl.col("busy_s") / wall_s,
            tokens_per_s=pl.col("tokens") / pl.col("busy_s"),
        )
        .select("work", "busy_s", "share", "turns", "tokens", "tokens_per_s")
    )


def prefix_cache_share(times: pl.DataFrame) -> float | None:
    """Returns the share of all context tokens that the engine found in its prefix cache.

    Args:
        times: As `work_times` returns them.

    Returns:
        From 0 to 1, of the stage runs whose engine tells; null if none does.
    """
    told = times.filter(pl.col("cached_tokens").is_not_null(), pl.col("prompt_tokens") > 0)
    if told.is_empty():
        return None
    share: float = told.select(pl.sum("cached_tokens") / pl.sum("prompt_tokens")).item()
    return share


def draw_timeline(times: pl.DataFrame, title: str, path: Path) -> None:
    """Draws a lane for every shard, with what it did when, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shards = times["shard"].unique().sort().to_list()
    colours = {"generation": "C0", "execution": "C1"}
    figure = Figure(figsize=(11, 1.5 + 0.6 * len(shards)), layout="constrained")
    axes = figure.subplots()
    for shard, work, turn, begin, end in times.select(
        "shard", "work", "turn_index", "begin_s", "end_s"
    ).iter_rows():
        lane = shards.index(shard)
        axes.broken_barh(
            [(begin, end - begin)], (lane - 0.35, 0.7), color=colours[work], alpha=0.85
        )
        axes.text((begin + end) / 2, lane, str(turn), ha="center", va="center", fontsize=7)
    told = utilisation(times)
    shares = {work: share for work, share in told.select("work", "share").iter_rows()}
    axes.set(
        title=title,
        xlabel="seconds since the rollout began; the number is the turn",
        yticks=range(len(shards)),
        ylim=(len(shards) - 0.4, -0.6),
    )
    axes.set_yticklabels([f"shard {shard}" for shard in shards])
    axes.legend(
        handles=[
            Patch(color=colour, label=f"{work}, {shares.get(work, 0):.0%} of the time")
            for work, colour in colours.items()
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.25),
        ncols=2,
        frameon=False,
    )
    figure.savefig(path, dpi=110)
