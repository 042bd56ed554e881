"""Where time went: the rollout of an iteration as lanes, and the seconds of all stages."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from flows.page.charts import round_numbers
from flows.page.reading import Reader, in_order
from flows.work_times import prefix_cache_share, utilisation, work_times
from schemas.errors import StoreError

WIDTH, LANE, LEFT, TOP = 900, 30, 70, 8


@dataclass(frozen=True, slots=True)
class Bar:
    """One piece of work in its lane."""

    x: float
    y: float
    width: float
    work: str
    turn: int
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How much of the rollout one kind of work was going on."""

    work: str
    busy_s: float
    share: float
    turns: int
    tokens: int
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingView:
    """Where the time of an iteration went."""

    run: str
    iteration: int
    split: str
    splits: Sequence[str]
    """Parts of the run: `train`, `evaluation`, then benchmarks."""
    iterations: Sequence[int]
    seconds: float
    """Of the rollout."""
    lanes: Sequence[tuple[str, float]]
    """Name and y of each."""
    bars: Sequence[Bar]
    shares: Sequence[Share]
    cached: float | None
    """Share of the context tokens found in the prefix cache."""
    stages: Sequence[tuple[str, int, float]]
    """Stage, its stage runs, and their seconds added up."""
    ticks: Sequence[tuple[float, str]]
    note: str
    """Why there are no lanes; empty where there are."""

    @property
    def height(self) -> int:
        """Height of the drawing."""
        return TOP + LANE * len(self.lanes) + 30


def timing_view(reader: Reader, run: str, iteration: int | None, split: str) -> TimingView:
    """Returns where the time of an iteration went.

    Args:
        reader: The store.
        run: Name of the run.
        iteration: Which; null for the last.
        split: `train`, `evaluation` or a benchmark.

    Raises:
        NotFoundError: If there is no such run.
    """
    reader.record(run)
    parts = reader.parts(run)
    known = sorted({number for number, _ in parts})
    chosen = max(known, default=0) if iteration is None else iteration
    try:
        times, note = work_times(reader.store.url, run, iteration=chosen, split=split), ""
    except StoreError as error:
        times, note = None, str(error)
    seconds = 0.0 if times is None else float(times.select(pl.max("end_s")).item())
    lanes = [] if times is None else times["shard"].unique().sort().to_list()
    return TimingView(
        run=run,
        iteration=chosen,
        split=split,
        splits=in_order({part for _, part in parts}),
        iterations=known,
        seconds=seconds,
        lanes=[(f"shard {shard}", TOP + LANE * n) for n, shard in enumerate(lanes)],
        bars=[] if times is None else _bars(times, lanes, seconds),
        shares=[] if times is None else [Share(**row) for row in utilisation(times).to_dicts()],
        cached=None if times is None else prefix_cache_share(times),
        stages=_stages(reader, run, chosen, split),
        ticks=_ticks(seconds),
        note=note,
    )


def _bars(times: pl.DataFrame, lanes: Sequence[int], seconds: float) -> list[Bar]:
    scale = (WIDTH - LEFT) / max(seconds, 1e-9)
    columns = ("shard", "work", "turn_index", "begin_s", "end_s", "turns")
    return [
        Bar(
            x=round(LEFT + begin * scale, 1),
            y=TOP + LANE * lanes.index(shard) + 4,
            width=round(max((end - begin) * scale, 0.8), 1),
            work=work,
            turn=turn,
            says=f"shard {shard}, {work} of turn {turn}: {turns} turns, {begin:.2f} to {end:.2f} s",
        )
        for shard, work, turn, begin, end, turns in times.select(columns).iter_rows()
    ]


def _ticks(seconds: float) -> list[tuple[float, str]]:
    """Returns round times and where they stand; what would be cut at the right end is left out."""
    times = [time for time in round_numbers(0.0, seconds, 5) if time <= 0.97 * seconds]
    scale = (WIDTH - LEFT) / max(seconds, 1e-9)
    return [(round(LEFT + time * scale, 1), f"{time:g}") for time in times if time >= 0]


def _stages(reader: Reader, run: str, iteration: int, split: str) -> list[tuple[str, int, float]]:
    rows = [
        (manifest.slot.stage, manifest.seconds)
        for _, manifest in reader.store.results(run, iteration)
        if manifest.slot.split == split
    ]
    frame = pl.DataFrame(rows, schema={"stage": pl.String, "s": pl.Float64}, orient="row")
    by_stage = frame.group_by("stage").agg(runs=pl.len(), s=pl.sum("s"))
    return by_stage.sort("s", "stage", descending=[True, False]).rows()
