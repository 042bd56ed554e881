"""Following a run that another process works on, by the store alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import SMALL, Cli, sets

from flows.events import StageEvent
from flows.watching import follow, last_evaluation, wait_for_run
from schemas.config import RunConfig
from schemas.errors import StoreError
from storage import RunRecord, Store

HOLDS = """
import sys
from schemas.config import RunConfig
from storage import RunRecord, Store
store = Store.open(sys.argv[1])
with store.lock_run("held"):
    store.save_run(RunRecord.new("held", RunConfig(), status="running"))
    print("held", flush=True)
    sys.stdin.read()
"""


def record(status: str, message: str | None = None) -> RunRecord:
    return RunRecord.new("held", RunConfig(), status=status, message=message)


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def hold(store: Store) -> subprocess.Popen[str]:
    """Starts a process that holds the run `held`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, store.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def at_look(number: int, act: Callable[[], object]) -> Callable[[float], None]:
    """Returns what waits not at all, and acts at a look; fails after far too many."""
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 1000
        if len(looks) == number:
            act()

    return sleep


def ignore(event: StageEvent) -> None:
    """Takes an event in."""


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_a_run_that_is_over_ends_at_once(empty: Store, status: str) -> None:
    empty.save_run(record(status))

    def never(seconds: float) -> None:
        raise AssertionError

    assert follow(empty, "held", ignore, sleep=never).status == status


def test_a_run_is_followed_while_it_is_held_and_interrupted_if_its_process_dies(
    empty: Store,
) -> None:
    process = hold(empty)

    def kill() -> None:
        process.kill()
        process.wait()

    assert follow(empty, "held", ignore, sleep=at_look(3, kill)).status == "interrupted"


def test_a_run_that_is_continued_is_followed_although_its_record_is_of_its_last_end(
    empty: Store,
) -> None:
    process = hold(empty)
    empty.save_run(record("finished"))

    def end() -> None:
        empty.save_run(record("failed", "a full disk"))
        process.communicate()

    assert follow(empty, "held", ignore, sleep=at_look(2, end)).message == "a full disk"


def test_nobody_is_kept_from_the_run_by_a_watch(empty: Store) -> None:
    process = hold(empty)

    def take_over() -> None:
        process.communicate()
        with empty.lock_run("held"):
            empty.save_run(record("finished"))

    assert follow(empty, "held", ignore, sleep=at_look(2, take_over)).status == "finished"


def test_a_run_that_is_not_there_yet_is_waited_for(empty: Store) -> None:
    found = wait_for_run(
        empty, "held", sleep=at_look(3, lambda: empty.save_run(record("finished")))
    )
    assert found.status == "finished"


def test_a_run_that_vanishes_is_told(empty: Store) -> None:
    process = hold(empty)
    drop = at_look(2, (Path(empty.url) / "run=held" / "run.json").unlink)
    with pytest.raises(StoreError, match="run held is not in"):
        follow(empty, "held", ignore, sleep=drop)
    process.communicate()


def test_every_result_of_a_run_is_told_once_in_order(trained: Path) -> None:
    store, events = Store.open(trained), list[StageEvent]()
    follow(store, "small", events.append)
    assert {e.slot.uri for e in events} == {uri for uri, _ in store.results("small")}
    assert len(events) == len({e.slot.uri for e in events})
    iterations = [event.slot.iteration for event in events]
    assert iterations == sorted(iterations)
    stages = [e.slot.stage for e in events if e.slot.iteration == 1 and e.slot.split == "train"]
    assert stages[0] == "prompts"
    assert stages[-1] == "optimisation"


def test_a_result_that_replaces_another_is_a_change(trained: Path, tmp_path: Path) -> None:
    store, seen = Store.open(trained), dict[str, str]()
    count = len(list(store.changes("small", seen)))
    assert count == len(seen) > 0
    assert not list(store.changes("small", seen))
    first = next(iter(seen))
    seen[first] = "another result"
    assert [uri for uri, _ in store.changes("small", seen)] == [first]


def test_a_training_of_another_process_is_followed_from_before_it_begins(
    cli: Cli, tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "store", create=True)
    watcher = cli.start("watch", "small", "--store", store.url, "--json")
    trainer = cli.start("train", "--store", store.url, "--run", "small", *sets(*SMALL))
    said, complaints = watcher.communicate(timeout=280)
    assert watcher.returncode == 0, complaints
    assert trainer.wait(timeout=60) == 0
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    told = [(line["event"], line.get("iteration")) for line in lines if line["event"] != "stage"]
    assert ("iteration", 1) in told
    assert told[-2:] == [("evaluation", 2), ("end", None)]
    assert lines[-1]["computed"] + lines[-1]["reused"] == sum(1 for _ in store.results("small"))


def test_a_training_that_is_killed_ends_its_watch_with_130(cli: Cli, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    trainer = cli.start("train", "--store", store.url, "--run", "small", *sets(*SMALL))
    watcher = cli.start("watch", "small", "--store", store.url)
    deadline = time.monotonic() + 200
    while not (store.has_run("small") and store.has_results("small")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    _, complaints = watcher.communicate(timeout=100)
    assert watcher.returncode == 130
    assert "small was interrupted" in complaints


def test_a_run_that_failed_ends_its_watch_with_1(cli: Cli, empty: Store) -> None:
    empty.save_run(record("failed", "a full disk"))
    done = cli.run("watch", "held", "--store", empty.url)
    assert (done.returncode, done.stderr) == (1, "error: run held failed: a full disk\n")


def test_a_list_of_runs_tells_the_last_accuracy(cli: Cli, trained: Path) -> None:
    found = last_evaluation(Store.open(trained), "small")
    assert found is not None
    assert found.iteration == 2
    done = cli.run("runs", "--store", str(trained), "--json")
    small = next(run for run in map(json.loads, done.stdout.splitlines()) if run["run"] == "small")
    assert small["avg_at_k"] == found.avg_at_k
    assert small["status"] == "finished"


def test_a_list_of_runs_tells_who_is_held_and_who_is_interrupted(cli: Cli, empty: Store) -> None:
    process = hold(empty)
    assert "running" in cli.run("runs", "--store", empty.url).stdout
    process.kill()
    process.wait()
    assert "interrupted" in cli.run("runs", "--store", empty.url).stdout
