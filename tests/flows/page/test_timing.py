"""Where the time of an iteration went."""

import pytest
from page_runs import BENCHMARK, EMPTY, IMPORTED, RUN

from flows.page.reading import Reader
from flows.page.timing import LEFT, WIDTH, timing_view
from flows.work_times import work_times
from storage import Store


def test_bars_stand_for_their_seconds(reader: Reader, store: Store) -> None:
    view = timing_view(reader, RUN, 1, "train")
    times = work_times(store.root, RUN, iteration=1)
    seconds_a_unit = view.seconds / (WIDTH - LEFT)
    for bar, (begin, end) in zip(view.bars, times.select("begin_s", "end_s").rows(), strict=True):
        assert (bar.x - LEFT) * seconds_a_unit == pytest.approx(begin, abs=0.01)
        assert bar.width * seconds_a_unit == pytest.approx(end - begin, abs=0.01)
        assert LEFT <= bar.x <= bar.x + bar.width <= WIDTH + 0.1


def test_stages_are_told_with_their_seconds(reader: Reader) -> None:
    stages = {stage: (runs, seconds) for stage, runs, seconds in _stages(reader, 1, "train")}
    assert stages["rollout"] == (4, 6.0)
    assert stages["advantages"] == (1, 1.5)
    assert "evaluation" in {stage for stage, *_ in _stages(reader, 2, "evaluation")}


def _stages(reader: Reader, iteration: int, split: str) -> list[tuple[str, int, float]]:
    return list(timing_view(reader, RUN, iteration, split).stages)


def test_every_part_of_the_run_can_be_chosen(reader: Reader) -> None:
    view = timing_view(reader, RUN, 2, BENCHMARK)
    assert view.splits == ["train", "evaluation", BENCHMARK]
    assert ("rollout", 1, 1.5) in view.stages


def test_the_prefix_cache_is_told(reader: Reader) -> None:
    assert timing_view(reader, RUN, 1, "train").cached == 0.5


def test_the_last_iteration_is_taken_by_itself(reader: Reader) -> None:
    assert timing_view(reader, RUN, None, "train").iteration == 2


@pytest.mark.parametrize("run", [EMPTY, IMPORTED])
def test_a_run_without_times_says_so(reader: Reader, run: str) -> None:
    view = timing_view(reader, run, None, "train")
    assert not view.bars
    assert "has no times of a rollout" in view.note


def test_times_below_the_lanes_are_round(reader: Reader) -> None:
    view = timing_view(reader, RUN, 1, "train")
    labels = [label for _, label in view.ticks]
    assert labels[0] == "0"
    assert len(labels) >= 2
    assert all(len(label.replace(".", "").strip("0")) <= 2 for label in labels)
    for x, label in view.ticks:
        assert (x - LEFT) / (WIDTH - LEFT) * view.seconds == pytest.approx(float(label), abs=0.01)
