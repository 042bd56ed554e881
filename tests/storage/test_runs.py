import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from places import on_both
from processes import heard

from schemas.errors import StoreError
from storage import RunParent, RunRecord, Store

Start = Callable[..., subprocess.Popen[str]]

HOLDER = """
import sys
from storage import Store
with Store.open(sys.argv[1]).lock_run("demo"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


def record(name: str = "demo", **parts: object) -> RunRecord:
    now = datetime.now(UTC)
    known = {"config": {"seed": 0}, "config_digest": "d", "status": "finished"}
    return RunRecord.model_validate(
        {"name": name, "created_at": now, "updated_at": now, **known, **parts}
    )


@on_both
def test_runs_returns_saved_records_by_name(store: Store) -> None:
    parent = RunParent(run="a", iteration=2, stage="advantages", overrides=["advantages.gamma=1"])
    saved = [store.save_run(record("b", parent=parent)), store.save_run(record("a"))]
    assert store.runs() == saved[::-1]


@on_both
def test_save_run_replaces_and_notes_the_time(store: Store) -> None:
    first = store.save_run(record(iterations_done=1))
    second = store.save_run(first.model_copy(update={"iterations_done": 2}))
    assert store.run_record("demo") == second
    assert second.updated_at > first.updated_at


@on_both
def test_run_record_names_the_known_runs(store: Store) -> None:
    store.save_run(record("a"))
    with pytest.raises(StoreError, match=r"run demo is not in .*; known runs: a"):
        store.run_record("demo")


def test_run_record_tells_a_damaged_file(store: Store) -> None:
    store.save_run(record())
    store.layout.run_file("demo").write_text("{")
    with pytest.raises(StoreError, match=r"damaged run record .*run\.json"):
        store.run_record("demo")


def test_runs_goes_on_where_a_record_is_damaged(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.save_run(record(name))
    store.layout.run_file("b").write_text("{")
    assert [run.name for run in store.runs()] == ["a", "c"]
    assert list(store.damaged_runs()) == ["b"]
    assert "damaged run record" in store.damaged_runs()["b"]
    assert store.run_names() == ["a", "b", "c"]
    assert [store.has_run(name) for name in ("b", "d")] == [True, False]


@on_both
def test_a_run_is_known_by_its_record(store: Store, put: Callable[..., object]) -> None:
    put()
    assert (store.run_names(), store.has_run("demo")) == ([], False)


def test_save_run_notes_a_later_time_after_the_clock_was_set_back(store: Store) -> None:
    ahead = datetime.now(UTC) + timedelta(days=3)
    saved = store.save_run(record("a"))
    content = saved.model_copy(update={"updated_at": ahead}).model_dump_json()
    store.layout.run_file("a").write_text(content)  # as the clock was then
    newer = store.save_run(record("b"))
    assert max(store.runs(), key=lambda run: run.updated_at) == newer
    assert store.save_run(record("a")).updated_at > newer.updated_at


@on_both
def test_lock_run_refuses_a_second_process_by_pid(store: Store, start: Start) -> None:
    holder = start(HOLDER, store.url)
    assert heard(holder) == "held"
    message = rf"run demo is being trained by another process \(pid {holder.pid}\)"
    with pytest.raises(StoreError, match=message), store.lock_run("demo"):
        pass


@on_both
def test_lock_run_does_not_hold_other_runs(store: Store, start: Start) -> None:
    assert heard(start(HOLDER, store.url)) == "held"
    with store.lock_run("other"):
        pass


@on_both
def test_lock_run_ends_with_a_killed_process(store: Store, start: Start) -> None:
    holder = start(HOLDER, store.url)
    assert heard(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with store.lock_run("demo"):
        pass


@on_both
def test_lock_run_can_be_taken_again_after_release(store: Store) -> None:
    for _ in range(2):
        with store.lock_run("demo"):
            pass


@on_both
def test_running_run_of_a_killed_process_is_interrupted(store: Store, start: Start) -> None:
    store.save_run(record(status="running"))
    holder = start(HOLDER, store.url)
    assert heard(holder) == "held"
    assert [run.status for run in store.runs()] == ["running"]
    holder.kill()
    holder.wait()
    assert [run.status for run in store.runs()] == ["interrupted"]


def test_looking_at_runs_does_not_keep_a_trainer_out(store: Store, start: Start) -> None:
    store.save_run(record(status="running"))
    watcher = start(
        "import sys\nfrom storage import Store\nstore = Store.open(sys.argv[1])\n"
        "print('watching', flush=True)\nwhile True: store.runs()\n",
        store.root,
    )
    assert heard(watcher) == "watching"
    for _ in range(50):
        with store.lock_run("demo"):
            pass
