"""Time left and tokens a second: counted against a real run, computed from times made by hand."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.events import StageEvent
from flows.pace import Kind, Pace, Span, busy_s, expected_work
from flows.sessions import stored_config
from flows.watching import event_of
from schemas.config_text import parse_config
from storage import Slot, Store

START = datetime(2026, 1, 1, tzinfo=UTC)
ROLLOUT = Kind("train", "rollout", 0)
SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted), max_size=10)


def done(shard: int, ended_s: float, seconds: float, stage: str = "rollout") -> StageEvent:
    turn = 0 if stage == "rollout" else None
    slot = Slot(run="r", iteration=1, split="train", stage=stage, shard=shard, turn=turn)
    at = START + timedelta(seconds=ended_s)
    return StageEvent(slot=slot, kind="computed", seconds=seconds, computed_s=seconds, at=at)


def test_expected_work_is_what_a_training_does(trained: Path) -> None:
    store = Store.open(trained)
    config = stored_config(store.run_record("small"))
    stored = Counter(Kind.of(manifest.slot) for _, manifest in store.results("small"))
    del stored[Kind("train", "cold_start", None)]
    assert expected_work(config, 0) == stored


def test_a_branch_is_expected_to_do_what_follows_its_iteration() -> None:
    config = parse_config(overrides=["iterations=3", "evaluation.every=2"])
    work = expected_work(config, 1)
    assert work[Kind("train", "optimisation", None)] == 2
    assert work[Kind("evaluation", "evaluation", None)] == 2


def test_further_rounds_are_expected() -> None:
    config = parse_config(overrides=["iterations=1", "rollout.resample_rounds=2"])
    work = expected_work(config, 0)
    assert work[Kind("train", "prompts", None)] == 3
    assert work[Kind("train", "turn_rewards", None)] == 3 * config.rollout.shards


@given(SPANS)
def test_time_is_busy_once_however_much_goes_on(spans: list[Span]) -> None:
    assert busy_s(spans) == len({second for begin, end in spans for second in range(begin, end)})


def test_a_training_that_is_done_has_no_time_left(trained: Path) -> None:
    store = Store.open(trained)
    config = stored_config(store.run_record("small"))
    pace = Pace(expected_work(config, 0))
    for uri, manifest in store.results("small"):
        pace.note(event_of(uri, manifest))
    assert pace.left_s() == 0
    assert pace.share_done == 1
    speed = pace.tokens_per_s(store)
    assert speed is not None
    assert speed > 0


def test_time_left_is_that_of_the_stage_runs_to_come() -> None:
    pace = Pace(Counter({ROLLOUT: 4}))
    pace.note(done(0, ended_s=10, seconds=10))
    at = START + timedelta(seconds=10)
    assert pace.left_s(at) == pytest.approx(30)
    assert pace.left_s(at + timedelta(seconds=4)) == pytest.approx(26)
    assert pace.left_s(at + timedelta(hours=1)) == 0


def test_what_goes_on_beside_each_other_takes_less() -> None:
    pace = Pace(Counter({ROLLOUT: 4}))
    for shard in (0, 1):
        pace.note(done(shard, ended_s=10, seconds=10))
    assert pace.left_s(START + timedelta(seconds=10)) == pytest.approx(10)


def test_time_left_is_not_told_before_every_kind_was_seen() -> None:
    pace = Pace(Counter({ROLLOUT: 1, Kind("train", "optimisation", None): 1}))
    pace.note(done(0, ended_s=10, seconds=10))
    assert pace.left_s() is None


def test_a_result_that_is_found_again_counts_as_done_and_tells_its_time() -> None:
    pace = Pace(Counter({ROLLOUT: 3}))
    pace.note(done(0, ended_s=10, seconds=10))
    slot = done(1, 0, 0).slot
    pace.note(StageEvent(slot=slot, kind="reused", seconds=0.1, computed_s=20.0, at=START))
    assert pace.share_done == pytest.approx(2 / 3)
    assert pace.left_s(START + timedelta(seconds=10)) == pytest.approx(15)


def test_a_rerun_has_no_known_end() -> None:
    pace = Pace(Counter())
    pace.note(done(0, ended_s=10, seconds=10))
    assert pace.left_s() is None
    assert pace.share_done is None
