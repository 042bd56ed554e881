"""Garbage collection frees what no run refers to, and never touches what one does."""

import contextlib
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import objects_of, on_both, spoil_object, state_of
from processes import heard, say
from run_builders import branch, put_result, put_run, record, state_of_run, verify
from storage_builders import fingerprint, slot

from schemas.errors import StoreError
from storage import Store, bucket_garbage
from storage.digests import files_below
from storage.garbage import Garbage, drop_run, find_garbage, remove_garbage, restore_run
from storage.layout import blob_uri
from storage.objects import Objects

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def _blobs_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_garbage, "YOUNG", timedelta(seconds=-60))


def collect(store: Store) -> list[str]:
    """Collects garbage; returns what went."""
    waste = find_garbage(store)
    remove_garbage(store, waste)
    return [f"{item.kind} {item.uri}" for item in waste.items]


def spoiled_store(store: Store) -> None:
    """Makes a store of a run, its branch, a replaced result and two runs without a record."""
    put_run(store, "a", {0: 0, 1: 1})
    branch(store, "a", "b", [0])
    put_result(store, slot(run="b", iteration=1), 2)
    put_result(store, slot(run="b", iteration=1), 3)  # replaces it
    put_run(store, "c", {0: 4})
    branch(store, "c", "d", [0])
    put_result(store, slot(run="c", iteration=1), 5)
    drop_run(store, "c")
    store.backend.mark_incomplete("killed")  # as an import that was killed leaves it
    put_result(store, slot(run="killed", iteration=0), 6)


@on_both
def test_what_runs_refer_to_stays_byte_for_byte(store: Store) -> None:
    spoiled_store(store)
    before = {run: state_of_run(store, run) for run in "abd"}
    gone = collect(store)
    assert {run: state_of_run(store, run) for run in "abd"} == before
    assert [verify(store, run) for run in "abd"] == [2, 2, 1]
    assert {"run run=c", "run run=killed"} < set(gone)
    assert [run for run in store.backend.runs() if run not in "abd"] == []


@on_both
def test_a_second_collection_finds_nothing(store: Store) -> None:
    spoiled_store(store)
    assert collect(store)
    assert collect(store) == []


@on_both
def test_a_listing_changes_nothing(store: Store) -> None:
    spoiled_store(store)
    before = state_of(store)
    assert find_garbage(store).items
    assert state_of(store) == before


def test_nothing_but_runs_is_left_in_a_folder(store: Store) -> None:
    spoiled_store(store)
    collect(store)
    kept = [n for n in files_below(store.root) if not n.startswith(("run=a", "run=b", "run=d"))]
    indexed = {
        f"index/{d[:2]}/{d}.json" for d in (fingerprint(seed=s).digest for s in (0, 1, 3, 4))
    }
    assert set(kept) == {"store.json", "tmp/publish.lock", *indexed}


def test_nothing_but_runs_is_left_in_a_bucket(bucket: Store) -> None:
    spoiled_store(bucket)
    collect(bucket)
    manifests = [m for run in "abd" for _, m in bucket.results(run)]
    blobs = {blob_uri(f.digest) for m in manifests for f in m.files.values()}
    blobs |= {blob_uri(m.output("").checkpoint.digest) for m in manifests}  # type: ignore[union-attr]
    assert set(objects_of(bucket, "blobs/")) == blobs
    names = {key.partition("/")[0] for key in objects_of(bucket)}
    known = {"store.json", "collection.json", "blobs", "index"}
    assert names == {*known, "run=a", "run=b", "run=d"}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 5)),
        st.tuples(st.just("adopt"), st.permutations("abc"), st.integers(0, 2)),
        st.tuples(st.just("record"), st.sampled_from("abc")),
        st.tuples(st.just("drop"), st.sampled_from("abc")),
        st.tuples(st.just("undo"), st.sampled_from("abc")),
        st.tuples(st.just("gc")),
    ),
    max_size=25,
)


def save_first(store: Store, run: str) -> None:
    """Makes the record that every run has before its results, but for one that was dropped."""
    if run not in store.backend.dropped_runs() and not store.has_run(run):
        store.save_run(record(run))


def do(store: Store, step: tuple[object, ...]) -> None:
    match step:
        case ("write", str(run), int(iteration), int(seed)):
            save_first(store, run)
            put_result(store, slot(run=run, iteration=iteration), seed)
        case ("adopt", [str(run), str(into), *_], int(iteration)):
            save_first(store, into)
            place = slot(run=run, iteration=iteration)
            store.adopt(place, place.model_copy(update={"run": into}))
        case ("record", str(run)):
            store.save_run(record(run))
        case ("drop", str(run)):
            with contextlib.suppress(StoreError):
                drop_run(store, run)
        case ("undo", str(run)):
            with contextlib.suppress(StoreError):
                restore_run(store, run)
        case _:
            collect(store)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(done=steps)
def test_whatever_was_done_runs_stay_whole_and_nothing_else_does(
    done: list[tuple[object, ...]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store", create=True)
        for step in done:
            do(store, step)
        names = store.run_names()
        before = {run: state_of_run(store, run) for run in names}
        collect(store)
        for run in names:
            before[run].pop("run.dropped.json", None)
            verify(store, run)
        assert {run: state_of_run(store, run) for run in names} == before
        assert store.backend.runs() == names
        assert list(store.root.glob("replaced/*")) == []
        noted = {path.stem for path in store.root.glob("index/*/*.json")}
        assert noted == {m.fingerprint_digest for _, m in store.results()}
        assert all(store.find(slot(run="new"), m.fingerprint).is_hit for _, m in store.results())


def disk_usage(store: Store) -> int:
    files = [path.stat() for path in store.root.rglob("*") if path.is_file()]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in files}.values())


def test_bytes_are_those_that_the_disk_gets_back(store: Store) -> None:
    spoiled_store(store)
    before, told = disk_usage(store), find_garbage(store).bytes
    collect(store)
    assert before - disk_usage(store) == told > 0


def test_a_dropped_run_frees_only_what_its_branch_does_not_share(store: Store) -> None:
    put_run(store, "a", {0: 0, 1: 1})
    branch(store, "a", "b", [0])
    before = state_of_run(store, "b")
    drop_run(store, "a")
    (item,) = (item for item in find_garbage(store).items if item.kind == "run")
    shared, alone = (store.root / slot(run="a", iteration=i).uri for i in (0, 1))
    expected = sum((alone / name).stat().st_size for name in files_below(alone))
    expected += (shared / "manifest.json").stat().st_size
    expected += (store.root / "run=a/run.dropped.json").stat().st_size
    assert item.bytes == expected
    collect(store)
    assert state_of_run(store, "b") == before
    assert not (store.root / "run=a").exists()


@on_both
def test_a_result_of_a_dropped_run_is_found_in_its_branch(store: Store) -> None:
    put_run(store, "a", {0: 0})
    branch(store, "a", "b", [0])
    drop_run(store, "a")
    collect(store)
    found = store.find(slot(run="c"), fingerprint(seed=0))
    assert found.reason == "reused from b"


def test_unknown_files_stay(store: Store) -> None:
    put_run(store, "a", {0: 0})
    put_result(store, slot(run="a", iteration=0), 1)  # replaces it
    drop_run(store, "a")
    shelf = next((store.root / "replaced").glob("*"))
    places = ["", "tmp", "tmp/mine", "index", "run=a", slot(run="a", iteration=0).uri]
    places += [slot(run="a", iteration=0).uri + "/policy", "run=empty-but-for-this", "replaced"]
    places += [str(shelf.relative_to(store.root)), f"{shelf.relative_to(store.root)}/0000"]
    for place in places:
        (store.root / place).mkdir(exist_ok=True)
        (store.root / place / "notes.txt").write_text("mine")
    collect(store)
    kept = {str(p.parent.relative_to(store.root)) for p in store.root.rglob("notes.txt")}
    assert kept == {place or "." for place in places}
    assert {p.name for p in (store.root / "run=a").rglob("*") if p.is_file()} == {"notes.txt"}
    assert collect(store) == []


def test_unknown_objects_stay(bucket: Store) -> None:
    from places import client_of, place_of

    put_run(bucket, "a", {0: 0})
    drop_run(bucket, "a")
    keys = ["notes", "run=a/notes", slot(run="a", iteration=0).uri + "/notes", "blobs/00/notes"]
    for key in keys:
        client_of(bucket).put_object(**place_of(bucket, key), Body=b"mine")
    collect(bucket)
    assert set(objects_of(bucket)) == {"store.json", "collection.json", *keys}


@on_both
def test_a_run_with_a_damaged_record_is_kept(store: Store) -> None:
    put_run(store, "a", {0: 0})
    if store.url.startswith("s3://"):
        spoil_object(store, "run=a/run.json", lambda _: b"{")
    else:
        store.layout.run_file("a").write_text("{")
    assert collect(store) == []
    assert verify(store, "a") == 1


HOLDER = """
import sys
from storage import Store
with Store.open(sys.argv[1]).lock_run(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("held", ["a", "killed", "new"])
@on_both
def test_a_collection_is_refused_while_a_run_is_trained(
    store: Store, start: Start, held: str
) -> None:
    spoiled_store(store)
    waste = find_garbage(store)
    assert heard(start(HOLDER, store.url, held)) == "held"
    before = state_of(store)
    with pytest.raises(StoreError, match=f"^run {held} is being trained by another process"):
        remove_garbage(store, waste)
    if not store.url.startswith("s3://"):
        assert state_of(store) == before


@on_both
def test_a_drop_is_refused_while_the_run_is_trained(store: Store, start: Start) -> None:
    put_run(store, "a", {0: 0})
    assert heard(start(HOLDER, store.url, "a")) == "held"
    with pytest.raises(StoreError, match=r"^run a is being trained by another process"):
        drop_run(store, "a")
    assert store.run_names() == ["a"]


@on_both
def test_an_unknown_run_cannot_be_dropped(store: Store) -> None:
    put_run(store, "a", {})
    before = state_of(store)
    with pytest.raises(StoreError, match=r"run b is not in .*; known runs: a$"):
        drop_run(store, "b")
    assert state_of(store) == before


@on_both
def test_a_drop_can_be_undone_until_it_is_collected(store: Store) -> None:
    put_run(store, "a", {0: 0})
    saved = store.run_record("a")
    drop_run(store, "a")
    assert store.run_names() == []
    restore_run(store, "a")
    assert store.run_record("a") == saved
    assert verify(store, "a") == 1
    drop_run(store, "a")
    collect(store)
    with pytest.raises(StoreError, match=r"run a cannot be brought back; dropped runs in .*: none"):
        restore_run(store, "a")


@on_both
def test_what_was_never_dropped_cannot_be_brought_back(store: Store) -> None:
    put_run(store, "a", {0: 0})
    put_run(store, "b", {0: 0})
    drop_run(store, "b")
    with pytest.raises(StoreError, match=r"run a is in .*: there is nothing to undo"):
        restore_run(store, "a")
    with pytest.raises(StoreError, match=r"run c cannot be brought back; dropped runs in .*: b"):
        restore_run(store, "c")


def lose_record(store: Store, run: str) -> None:
    if store.url.startswith("s3://"):
        spoil_object(store, f"run={run}/run.json", lambda _: None)
    else:
        (store.root / f"run={run}/run.json").unlink()


@on_both
def test_a_run_that_lost_its_record_is_kept_and_told(store: Store) -> None:
    put_run(store, "a", {0: 0})
    put_run(store, "b", {0: 1})
    results = [manifest for _, manifest in store.results("a")]
    lose_record(store, "a")
    (told,) = find_garbage(store).spared
    assert told.startswith("run a is kept, as nobody dropped it, but ")
    collect(store)
    assert [manifest for _, manifest in store.results("a")] == results
    assert verify(store, "a") == 1


@on_both
def test_a_run_under_the_name_of_a_failed_import_is_kept_like_others(store: Store) -> None:
    store.backend.mark_incomplete("a")
    put_run(store, "a", {0: 0})
    lose_record(store, "a")
    collect(store)
    assert verify(store, "a") == 1


@on_both
def test_a_run_brought_back_before_its_removal_began_is_kept_like_others(store: Store) -> None:
    put_run(store, "a", {0: 0})
    drop_run(store, "a")
    store.backend.mark_incomplete("a")
    restore_run(store, "a")
    lose_record(store, "a")
    collect(store)
    assert verify(store, "a") == 1


@on_both
def test_a_folder_that_cannot_be_a_run_is_in_nobodys_way(store: Store) -> None:
    put_run(store, "a", {0: 0})
    if store.url.startswith("s3://"):
        from places import client_of, place_of

        client_of(store).put_object(**place_of(store, "run=my notes/x"), Body=b"mine")
    else:
        (store.root / "run=my notes").mkdir()
    collect(store)
    assert store.backend.runs() == ["a"]
    with pytest.raises(StoreError, match=r"known runs: a$"):
        store.run_record("b")


@on_both
def test_a_run_that_came_back_since_the_listing_is_kept(store: Store) -> None:
    put_run(store, "a", {0: 0, 1: 1})
    drop_run(store, "a")
    waste = find_garbage(store)
    restore_run(store, "a")
    before = state_of_run(store, "a")
    remove_garbage(store, waste)
    assert state_of_run(store, "a") == before
    assert verify(store, "a") == 2


@on_both
def test_a_run_trained_again_since_its_drop_is_kept(store: Store) -> None:
    put_run(store, "a", {0: 0})
    drop_run(store, "a")
    store.save_run(record("a"))
    assert [kind.split()[0] for kind in collect(store)] == ["record"]
    assert verify(store, "a") == 1
    assert store.backend.dropped_runs() == []


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(
    store: Store, start: Start
) -> None:
    staging = """
import sys
from storage import Store
with Store.open(sys.argv[1]).backend.staging() as folder:
    (folder / "half").write_bytes(b"x" * 1000)
    print(folder.name, flush=True)
    sys.stdin.readline()
"""
    killed, living = start(staging, store.root), start(staging, store.root)
    gone, kept = heard(killed), heard(living)
    killed.kill()
    killed.wait()
    waste = find_garbage(store)
    assert [(item.uri, item.bytes) for item in waste.items] == [(f"tmp/{gone}", 1000)]
    remove_garbage(store, waste)
    assert [path.name for path in (store.root / "tmp").iterdir() if path.is_dir()] == [kept]


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from storage import Store
from storage.garbage import find_garbage, remove_garbage

def kill_before(step):
    left = [step]
    def counting(call):
        def counted(*args, **more):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*args, **more)
        return counted
    for name in ("rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counting(getattr(os, name)))

# One process imports, and a fork of it dies at each step: nothing ran threads before the fork.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        store = Store.open(sys.argv[1])
        waste = find_garbage(store)
        kill_before(int(line))
        remove_garbage(store, waste)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_second_collection_finishes_a_killed_one(tmp_path: Path, start: Start) -> None:
    """Kills collections before a step on the file system, every fifth from a random one on."""
    store = Store.open(tmp_path / "store", create=True)
    killer = start(KILLED_AT_EVERY_STEP, store.root)
    kills = 0
    for step in range(random.SystemRandom().randrange(5), 300, 5):
        spoiled_store(store)
        before = {run: state_of_run(store, run) for run in "abd"}
        say(killer, str(step))
        was_killed = heard(killer) == str(-signal.SIGKILL)
        assert {run: state_of_run(store, run) for run in "abd"} == before
        for manifest in [m for run in "abd" for _, m in store.results(run)]:
            assert store.look(slot(run="new"), manifest.fingerprint).is_hit
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(StoreError):
            patch.setattr("storage.garbage.refuse_while_trained", lambda _: None)
            restore_run(store, "c")
        if store.has_run("c"):
            verify(store, "c")
            drop_run(store, "c")
        collect(store)
        assert {run: state_of_run(store, run) for run in "abd"} == before
        assert (collect(store), store.backend.runs()) == ([], ["a", "b", "d"])
        if not was_killed:
            break
        kills += 1
    assert not was_killed
    assert kills > 5


TRAINER = """
import sys
from run_builders import put_result, record
from storage import Store
from storage_builders import fingerprint, slot
store = Store.open(sys.argv[1])
print("ready", flush=True)
for round in range(12):
    with store.lock_run("trained"):
        store.save_run(record("trained", status="running"))
        for iteration in range(3):
            place = slot(run="trained", iteration=iteration)
            seed = (round + iteration) % 5
            output = store.find(place, fingerprint(seed=seed)).output
            output = output or put_result(store, place, seed)
            store.path(output.checkpoint)
            store.read(output.tables["updates"])
        store.save_run(record("trained"))
print("done", flush=True)
"""


def test_trainings_beside_collections_read_what_they_wrote(store: Store, start: Start) -> None:
    """The results of a run push each other out and are taken back, while others collect."""
    trainer = start(TRAINER, store.root)
    assert heard(trainer) == "ready"
    rounds = 0
    while trainer.poll() is None:
        with contextlib.suppress(StoreError), pytest.MonkeyPatch.context() as patch:
            # As if every training started right after the look for one.
            patch.setattr("storage.garbage.refuse_while_trained", lambda _: None)
            collect(store)
            rounds += 1
    assert heard(trainer) == "done"
    assert rounds > 3
    assert verify(store, "trained") == 3


ADOPTER = """
import sys
from run_builders import put_result, record
from schemas.errors import StoreError
from storage import Store
from storage_builders import fingerprint, slot
store = Store.open(sys.argv[1])
print("ready", flush=True)
for _ in sys.stdin:
    try:
        with store.lock_run("trained"):
            place = slot(run="trained")
            output = store.find(place, fingerprint(seed=0)).output or put_result(store, place, 0)
            store.save_run(record("trained"))
            print("took it", flush=True)
            sys.stdin.readline()
            store.path(output.checkpoint)
            store.read(output.tables["updates"])
            print("read it", flush=True)
    except StoreError as error:
        print(error, flush=True)
"""


def test_a_training_that_starts_amid_a_collection_in_a_bucket_takes_no_garbage(
    bucket: Store, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins after the collection has read what is kept, and before a blob goes."""
    put_run(bucket, "dropped", {0: 0})
    drop_run(bucket, "dropped")
    adopter = start(ADOPTER, bucket.url)
    assert heard(adopter) == "ready"
    told: list[str] = []
    remove = bucket_garbage.remove

    def remove_after_its_start(objects: Objects, garbage: Garbage, *rest: Any) -> None:
        if garbage.kind == "blobs":
            say(adopter)
            told.append(heard(adopter))
        remove(objects, garbage, *rest)

    monkeypatch.setattr(bucket_garbage, "remove", remove_after_its_start)
    waste = find_garbage(bucket)
    # As if it had looked at the manifest of the dropped run just before that went.
    blobs = [item for item in waste.items if item.kind == "blobs"]
    remove_garbage(bucket, replace(waste, items=blobs))
    say(adopter)
    if told == ["took it"]:
        pytest.fail(f"it took garbage over: {heard(adopter)}")
    assert "is being removed" in told[0]
    assert heard(adopter) == "took it"
    say(adopter)
    assert heard(adopter) == "read it"
    assert verify(bucket, "trained") == 1


def test_young_blobs_are_kept_and_told(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_garbage, "YOUNG", timedelta(hours=1))
    put_run(bucket, "a", {0: 0})
    drop_run(bucket, "a")
    blobs = objects_of(bucket, "blobs/")
    collect(bucket)
    assert objects_of(bucket, "blobs/") == blobs
    (told,) = find_garbage(bucket).spared
    assert told.startswith(
        f"{len(blobs)} blobs that nothing names are younger than an hour and kept"
    )


def test_a_blob_uploaded_again_since_the_listing_is_kept(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_run(bucket, "a", {0: 0})
    drop_run(bucket, "a")
    waste = find_garbage(bucket)
    monkeypatch.setattr(bucket_garbage, "YOUNG", timedelta(hours=1))
    blobs = objects_of(bucket, "blobs/")
    remove_garbage(bucket, waste)
    assert objects_of(bucket, "blobs/") == blobs


def test_no_blob_goes_while_a_manifest_cannot_be_read(bucket: Store) -> None:
    put_run(bucket, "a", {0: 0})
    put_run(bucket, "b", {1: 1})
    drop_run(bucket, "a")
    damaged = slot(run="b", iteration=1).uri
    spoil_object(bucket, f"{damaged}/manifest.json", lambda _: b"{")
    blobs = objects_of(bucket, "blobs/")
    (told,) = find_garbage(bucket).spared
    assert f"{damaged} has no usable manifest" in told
    collect(bucket)
    assert objects_of(bucket, "blobs/") == blobs


def test_a_folder_that_may_not_be_written_is_one_line(store: Store, start: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes another user than the owner")
    put_run(store, "a", {0: 0})
    put_result(store, slot(run="a", iteration=0), 1)
    for folder in [store.root, *store.root.parents]:
        if folder.is_relative_to(tempfile.gettempdir() + "/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    reader = start(
        """
import os, sys
from schemas.errors import StoreError
from storage import Store
from storage.garbage import find_garbage, remove_garbage
os.setgid(65534)
os.setuid(65534)
store = Store.open(sys.argv[1])
try:
    remove_garbage(store, find_garbage(store))
except StoreError as error:
    print(error, flush=True)
""",
        store.root,
    )
    assert heard(reader) == f"cannot clean {store.root}: Permission denied"
