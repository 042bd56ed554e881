"""When rollouts worked: intervals added up, and the timeline of a real run."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import Cli

from flows.metered_engine import MeteredEngine
from flows.work_times import WorkTimer, prefix_cache_share, utilisation, work_times
from schemas.tables import TABLES, WorkTimes
from stages.rollout.engine import Capabilities, Generations, Requests
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
    assert TABLES["execution_times"].measured == ["began_at", "ended_at"]
    assert TABLES["generation_times"].measured == ["began_at", "ended_at", "cached_tokens"]


def test_tokens_of_contexts_are_counted_and_the_embedded_engine_tells_of_no_cache(
    trained: Path,
) -> None:
    times = work_times(trained, "small", iteration=1)
    prompts = open_table(trained, "small", "prompts").filter(iteration=1).collect()
    turns = open_table(trained, "small", "turns").filter(iteration=1, turn_index=0).collect()
    asked = turns.join(prompts, on="task_id")["prompt_token_ids"].list.len().sum()
    first = times.filter(work="generation", turn_index=0)
    assert first["prompt_tokens"].sum() == asked > 0
    assert times["cached_tokens"].null_count() == len(times)
    assert prefix_cache_share(times) is None


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([(100, 80), (50, 10)], 0.6),
        ([(100, 80), (900, None)], 0.8),
        ([(0, 0), (None, None)], None),
    ],
)
def test_the_share_of_the_prefix_cache_is_that_of_stage_runs_that_tell(
    rows: list[tuple[int | None, int | None]], share: float | None
) -> None:
    columns = {"prompt_tokens": pl.Int64, "cached_tokens": pl.Int64}
    assert prefix_cache_share(pl.DataFrame(rows, schema=columns, orient="row")) == share


class CachingEngine:
    """Answers at once; says that it knew all of a context but its last token, or says nothing."""

    capabilities = Capabilities(live_weights=False, prefix_cache=True)
    policy_version = 0
    max_context_tokens = 100

    def __init__(self, *, tells: bool) -> None:
        self.tells = tells

    def generate(self, requests: Requests) -> Generations:
        cached = [len(context) - 1 for context in requests.contexts]
        return Generations(
            token_ids=[[1]] * len(cached),
            logprobs=[[-0.5]] * len(cached),
            stopped=[True] * len(cached),
            policy_version=0,
            cached_tokens=cached if self.tells else None,
        )

    def update_weights(self, folder: str, policy_version: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(("tells", "cached"), [(True, 3), (False, None)])
def test_a_metered_engine_notes_what_was_found(tells: bool, cached: int | None) -> None:
    engine = MeteredEngine(CachingEngine(tells=tells))
    contexts = [[1, 2, 3], [4, 5]]
    two = np.zeros(2, dtype=np.int64)
    engine.generate(Requests(contexts=contexts, seeds=two, max_new_tokens=two + 1, stop_ids=()))
    with WorkTimer() as timer:
        pass
    row = engine.with_prompts(timer.row(0, 0, pl.Series([[5], [6]], dtype=pl.List(pl.Int32))))
    assert row.select("prompt_tokens", "cached_tokens").rows() == [(5, cached)]


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
