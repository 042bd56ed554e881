"""Figures of a run by iteration, against plain loops over its tables."""

from pathlib import Path
from statistics import mean, stdev

import polars as pl
import pytest
from page_runs import BENCHMARK, BRANCH, EMPTY, FAILED, IMPORTED, RUN, make_store

from flows.page.conversation import Key, conversation
from flows.page.overview import RunView, run_list, run_view
from flows.page.reading import Reader
from storage import Slot, Store, open_table


@pytest.fixture(scope="module")
def view(reader: Reader) -> RunView:
    return run_view(reader, RUN)


def test_every_iteration_with_a_result_has_a_line(view: RunView) -> None:
    assert [line.iteration for line in view.iterations] == [0, 1, 2]
    assert [line.policy for line in view.iterations] == ["kept", "none", "none"]


def test_means_and_intervals_are_over_groups(view: RunView, store: Store) -> None:
    rewards = open_table(store.root, RUN, "turn_rewards", iteration=1).collect()
    counted = rewards.filter(pl.col("excluded").is_null())
    by_group = []
    for task in counted["task_id"].unique():
        group = counted.filter(task_id=task)
        by_group.append(group["total"].sum() / group["is_last"].sum())
    line = view.iterations[1]
    half = 1.959964 * stdev(by_group) / len(by_group) ** 0.5
    assert line.reward == pytest.approx(mean(by_group))
    assert (line.reward_low, line.reward_high) == pytest.approx(
        (mean(by_group) - half, mean(by_group) + half)
    )


def test_counts_are_those_of_the_tables(view: RunView, store: Store) -> None:
    turns = open_table(store.root, RUN, "turns", iteration=1).collect()
    credit = open_table(store.root, RUN, "advantages", iteration=1).collect()
    line = view.iterations[1]
    trajectories = turns.n_unique(["task_id", "sample_index"])
    assert line.trajectories == trajectories
    assert line.turns == pytest.approx(len(turns) / trajectories)
    assert line.timeouts == 1
    assert line.credited == pytest.approx(credit["advantage"].count() / len(credit))
    assert line.entropy == 0.5


def test_held_out_accuracy_has_its_interval(view: RunView) -> None:
    told = [line.avg_at_k for line in view.iterations]
    assert told == [0.5, None, 0.5]
    assert view.samples == 2


def test_a_benchmark_has_a_line_for_each_policy(view: RunView, reader: Reader) -> None:
    told = [(b.benchmark, b.iteration, b.problems, b.samples, b.avg_at_k) for b in view.benchmarks]
    assert told == [(BENCHMARK, 2, 1, 2, 0.5)]
    assert not run_view(reader, BRANCH).benchmarks


def test_settings_that_differ_are_told_apart(reader: Reader) -> None:
    changed = {setting.key: setting.value for setting in run_view(reader, BRANCH).changed_settings}
    assert changed == {"advantages.gamma": "0.5"}


def test_branches_are_told_with_their_parent(view: RunView, reader: Reader) -> None:
    assert view.branches == [BRANCH]
    lines = {line.name: line for line in run_list(reader).runs}
    assert lines[BRANCH].parent == RUN
    assert lines[BRANCH].origin == "at iteration 1, advantages: advantages.gamma=0.5"


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (EMPTY, "Nothing is stored of this run yet."),
        (FAILED, "Nothing is stored of this run yet."),
        (IMPORTED, "The trajectories were imported"),
        (IMPORTED, "No trajectory is scored"),
        (IMPORTED, "No policy was updated."),
    ],
)
def test_what_is_missing_is_told(reader: Reader, run: str, says: str) -> None:
    assert any(note.startswith(says) for note in run_view(reader, run).notes)


def test_a_run_in_progress_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    record = store.run_record(RUN).model_copy(update={"status": "running", "iterations_done": 1})
    store.save_run(record)
    with store.lock_run(RUN):
        view = run_view(Reader(store), RUN)
    assert view.record.status == "running"
    assert any(note.startswith("The run is in progress") for note in view.notes)
    assert len(view.iterations) == 3


def test_a_released_policy_is_told_and_its_trajectories_are_shown(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    reader = Reader(store)
    store.release_policy(Slot(run=RUN, iteration=0, split="train", stage="cold_start"))
    assert run_view(reader, RUN).iterations[0].policy == "released"
    shown = conversation(reader, Key(RUN, 1, "train", "sum", 0))
    assert shown.turns[0].tokens[0].text == "[0]"
