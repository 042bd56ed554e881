"""When rollouts worked: intervals added up, and the timeline of a real run."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import Cli

from flows.work_times import WorkTimer, utilisation, work_times
from schemas.tables import WorkTimes
from storage import open_table

MILLISECONDS = st.integers(0, 60)
INTERVALS = st.lists(
    st.tuples(st.sampled_from(["generation", "execution"]), MILLISECONDS, MILLISECONDS),
    min_size=1,
    max_size=12,
)


@given(INTERVALS)
def test_time_is_counted_once_however_much_goes_on(intervals: list[tuple[str, int, int]]) -> None:
    rows = [(work, min(a, b) / 1e3, (max(a, b) + 1) / 1e3) for work, a, b in intervals]
    times = pl.DataFrame(rows, schema=["work", "begin_s", "end_s"], orient="row").with_columns(
        turns=pl.lit(2), tokens=pl.lit(30)
    )
    told = {row["work"]: row for row in utilisation(times).iter_rows(named=True)}
    for work in {row[0] for row in rows}:
        ours = [row for row in rows if row[0] == work]
        busy = {ms for _, a, b in ours for ms in range(round(a * 1e3), round(b * 1e3))}
        assert told[work]["busy_s"] == pytest.approx(len(busy) / 1e3)
        assert told[work]["share"] == pytest.approx(len(busy) / 1e3 / max(r[2] for r in rows))
        assert told[work]["turns"] == 2 * len(ours)


def test_a_timer_notes_what_was_done_between() -> None:
    before = datetime.now(UTC)
    with WorkTimer() as timer:
        pass
    row = timer.row(1, 2, pl.Series([[5, 6], [7]], dtype=pl.List(pl.Int32)))
    assert row.select("shard", "turn_index", "turns", "tokens").rows() == [(1, 2, 2, 3)]
    assert timer.row(1, 2, pl.Series([], dtype=pl.List(pl.Int32))).is_empty()
    assert before <= row["began_at"][0] <= row["ended_at"][0] <= datetime.now(UTC)


def test_every_stage_run_of_a_rollout_has_its_times(trained: Path) -> None:
    times = work_times(trained, "small", iteration=1)
    turns = open_table(trained, "small", "turns").filter(iteration=1).collect()
    generated = times.filter(work="generation")
    assert generated["turns"].sum() == len(turns)
    assert generated["tokens"].sum() == turns["token_ids"].list.len().sum()
    assert times["begin_s"].min() == 0
    assert (times["begin_s"] <= times["end_s"]).all()
    # One engine serves one shard at a time.
    spans = generated.sort("begin_s")
    assert (spans["begin_s"][1:] >= spans["end_s"][:-1]).all()


def test_equal_results_have_equal_content_whenever_they_were_made() -> None:
    assert WorkTimes.column_names()[2:4] == ["began_at", "ended_at"]
    measured = [n for n, c in WorkTimes.columns().items() if (c.metadata or {}).get("measured")]
    assert measured == ["began_at", "ended_at"]


def test_the_command_shows_and_writes_a_timeline(cli: Cli, trained: Path, tmp_path: Path) -> None:
    rows, figure = tmp_path / "times.parquet", tmp_path / "timeline.png"
    done = cli.run(
        *("timeline", "--store", str(trained), "--run", "small", "--iteration", "1"),
        *("--to", str(rows), "--figure", str(figure)),
    )
    assert done.returncode == 0, done.stderr
    assert "rollout train 1" in done.stdout
    assert "generation" in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert pl.read_parquet(rows).equals(work_times(trained, "small", iteration=1))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--iteration", "9"], "run small has no times of a rollout of iteration 9"),
        (["--split", "nonsense"], "split nonsense is unknown"),
        (["--figure", "a.jpg"], "take a name that ends in .png"),
    ],
)
def test_what_has_no_timeline_is_one_line(
    cli: Cli, trained: Path, arguments: list[str], told: str
) -> None:
    done = cli.run("timeline", "--store", str(trained), "--run", "small", *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
