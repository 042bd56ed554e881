"""Runs come out of a store and into another one whole, verified, or not at all."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from places import FAULTS, Fault, objects_of, on_both, spoil, state_of
from processes import heard, say
from run_builders import put_result, put_run, record, state_of_run, verify
from storage_builders import fingerprint, slot, updates

from schemas.errors import ConfigError, StoreError
from storage import RunParent, Store
from storage.digests import folder_digest
from storage.garbage import drop_run, find_garbage, remove_garbage
from storage.transfer import export_run, import_runs

Start = Callable[..., subprocess.Popen[str]]


def silent(done: int, of: int) -> None:
    """Shows no progress."""


def exported(store: Store, run: str, folder: Path) -> Store:
    export_run(store, run, folder, silent)
    return Store.open(folder)


def content_of(store: Store, run: str) -> dict[str, object]:
    """Returns what the results of a run are, wherever they lie."""
    return {
        uri.partition("/")[2]: (m.fingerprint, m.files, m.tables, m.policy_version, m.created_at)
        for uri, m in store.results(run)
    }


@on_both
def test_an_exported_folder_holds_the_run_alone(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0, 1: 1})
    put_run(store, "b", {0: 2})
    copy = exported(store, "a", tmp_path / "out")
    assert (verify(copy, "a"), copy.run_names()) == (2, ["a"])
    assert content_of(copy, "a") == content_of(store, "a")
    assert copy.run_record("a") == store.run_record("a")
    assert find_garbage(copy).items == []
    assert sorted(path.name for path in copy.root.iterdir()) == ["index", "run=a", "store.json"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_an_exported_folder_shares_no_file(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    copy = exported(store, "a", tmp_path / "out")
    assert {p.stat().st_nlink for p in copy.root.rglob("*") if p.is_file()} == {1}


@on_both
def test_an_export_changes_nothing(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    before = state_of(store)
    exported(store, "a", tmp_path / "out")
    assert state_of(store) == before


def test_a_manifest_says_where_its_result_came_from(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    place = slot(run="a", iteration=0)
    copy = exported(store, "a", tmp_path / "out")
    target = Store.open(tmp_path / "target", create=True)
    import_runs(copy, target, "b", silent)
    manifests = [copy.manifest(place), target.manifest(slot(run="b", iteration=0))]
    assert [m and m.adopted_from for m in manifests] == [place.uri, place.uri]


def test_an_export_into_an_empty_folder_takes_it(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    (tmp_path / "out").mkdir()
    assert verify(exported(store, "a", tmp_path / "out"), "a") == 1


def test_an_export_refuses_a_folder_with_something_in_it(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    with pytest.raises(StoreError, match=r"out is there and not empty: name another folder$"):
        export_run(store, "a", tmp_path / "out", silent)
    with pytest.raises(StoreError, match=r"notes is there and not empty: name another folder$"):
        export_run(store, "a", tmp_path / "out" / "notes", silent)
    with pytest.raises(StoreError, match=r"cannot hold a store: .* run=1 for a partition$"):
        export_run(store, "a", tmp_path / "run=1" / "x", silent)


@pytest.mark.parametrize("address", ["s3://bucket/x", "S3://bucket/x", "gs://bucket/x"])
def test_an_export_refuses_a_bucket(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    put_run(store, "a", {0: 0})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match=r"is no folder: export to a folder, then import"):
        export_run(store, "a", Path(address), silent)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("fault", "told"), FAULTS)
@on_both
def test_a_damaged_result_stops_the_export(
    store: Store, tmp_path: Path, fault: Fault, told: str
) -> None:
    put_run(store, "a", {0: 0})
    spoil(store, put_result(store, slot(run="a", iteration=1), 1).tables["updates"], fault)
    place = store.backend.address(slot(run="a", iteration=1).uri)
    with pytest.raises(StoreError, match=f"^{told} file updates.parquet in {place}: run its stage"):
        export_run(store, "a", tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


@pytest.mark.parametrize("name", ["updates.parquet", "policy/deep/weights"])
@pytest.mark.parametrize(
    ("leads_to", "reason"),
    [("/proc/self/mem", "Input/output error"), ("/proc/self", "Is a directory")],
)
def test_a_file_that_cannot_be_read_stops_the_export_by_its_name(
    store: Store, tmp_path: Path, name: str, leads_to: str, reason: str
) -> None:
    """Its disk fails, before or amid its bytes; root may read whatever its rights are."""
    put_run(store, "a", {0: 0})
    folder = store.root / slot(run="a", iteration=0).uri
    (folder / name).unlink()
    (folder / name).symlink_to(leads_to)
    told = f"^unreadable file {name}: {reason} in {folder}: run its stage again, then export$"
    with pytest.raises(StoreError, match=told):
        export_run(store, "a", tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fault", "told"), FAULTS)
def test_a_damaged_manifest_stops_the_export(
    store: Store, tmp_path: Path, fault: Fault, told: str
) -> None:
    put_run(store, "a", {0: 0})
    path = store.root / slot(run="a", iteration=0).uri / "manifest.json"
    if (content := fault(path.read_bytes()[:-1])) is None:
        path.unlink()
    else:
        path.write_bytes(content.replace(b'"slot"', b'"sl'))
    with pytest.raises(StoreError, match=rf"^{told} file manifest.json in {path.parent}: run its"):
        export_run(store, "a", tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_a_policy_with_a_foreign_file_stops_the_export(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    (store.root / slot(run="a", iteration=0).uri / "policy" / "extra").touch()
    with pytest.raises(StoreError, match=r"^unexpected file policy/extra in "):
        export_run(store, "a", tmp_path / "out", silent)


HOLDER = """
import sys
from storage import Store
store = Store.open(sys.argv[1])
with store.lock_run("a"):
    store.save_run(store.run_record("a").model_copy(update={"status": "running"}))
    print("held", flush=True)
    sys.stdin.readline()
"""


@on_both
def test_a_run_that_is_trained_is_not_exported(store: Store, start: Start, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    assert heard(start(HOLDER, store.url)) == "held"
    with pytest.raises(StoreError, match=r"^run a is being trained: wait for it, or stop it$"):
        export_run(store, "a", tmp_path / "out", silent)


@on_both
def test_a_run_that_changes_meanwhile_is_not_exported(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0, 1: 1})

    def train_on(done: int, of: int) -> None:
        put_result(store, slot(run="a", iteration=0), 7)

    with pytest.raises(StoreError, match=r"^run a was changed by another process meanwhile"):
        export_run(store, "a", tmp_path / "out", train_on)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", ["b", "dropped"])
def test_an_unknown_run_is_not_exported(store: Store, tmp_path: Path, run: str) -> None:
    put_run(store, "a", {0: 0})
    put_run(store, "dropped", {0: 0})
    drop_run(store, "dropped")
    with pytest.raises(StoreError, match=rf"run {run} is not in .*; known runs: a$"):
        export_run(store, run, tmp_path / "out", silent)


@on_both
def test_an_imported_run_is_the_one_that_was_exported(store: Store, tmp_path: Path) -> None:
    """Imports into the store, from a folder that another one exported."""
    origin = Store.open(tmp_path / "origin", create=True)
    parent = RunParent(run="p", iteration=1, stage="advantages", overrides=["gamma=1"])
    put_run(origin, "a", {0: 0, 1: 1}, iterations_done=2, parent=parent)
    copy = exported(origin, "a", tmp_path / "out")
    before = folder_digest(copy.root)
    assert import_runs(copy, store, None, silent) == ["a"]
    assert import_runs(copy, store, "b", silent) == ["b"]
    for run in "ab":
        assert verify(store, run) == 2
        assert content_of(store, run) == content_of(origin, "a")
        expected = origin.run_record("a").model_copy(update={"name": run})
        saved = store.run_record(run)
        assert saved.model_copy(update={"updated_at": expected.updated_at}) == expected
    assert folder_digest(copy.root) == before


@on_both
def test_imported_results_are_found_by_their_fingerprints(store: Store, tmp_path: Path) -> None:
    origin = Store.open(tmp_path / "origin", create=True)
    put_run(origin, "a", {0: 0})
    import_runs(exported(origin, "a", tmp_path / "out"), store, "b", silent)
    assert store.find(slot(run="b", iteration=0), fingerprint(seed=0)).reason == "unchanged"
    assert store.find(slot(run="c"), fingerprint(seed=0)).is_hit
    ref = store.find(slot(run="c"), fingerprint(seed=0)).output
    assert ref is not None
    assert store.read(ref.tables["updates"]).equals(updates(rows=3, loss=0))


def test_a_store_with_several_runs_is_imported_as_a_whole(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    put_run(store, "b", {0: 1})
    target = Store.open(tmp_path / "target", create=True)
    with pytest.raises(ConfigError, match=r"holds several runs \(a, b\): leave out --as$"):
        import_runs(store, target, "c", silent)
    assert import_runs(store, target, None, silent) == ["a", "b"]
    assert [verify(target, run) for run in "ab"] == [1, 1]


@on_both
def test_an_import_refuses_a_name_that_is_taken(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    copy = exported(store, "a", tmp_path / "out")
    before = state_of_run(store, "a")
    with pytest.raises(StoreError, match=r"run a is in .* already: take another name with --as$"):
        import_runs(copy, store, None, silent)
    assert state_of_run(store, "a") == before
    drop_run(store, "a")
    with pytest.raises(StoreError, match=r"run a of .* was dropped and is still there: "):
        import_runs(copy, store, None, silent)
    remove_garbage(store, find_garbage(store))
    assert import_runs(copy, store, None, silent) == ["a"]


def test_an_import_refuses_what_is_left_of_another_run(store: Store, tmp_path: Path) -> None:
    origin = Store.open(tmp_path / "origin", create=True)
    put_run(origin, "a", {0: 0})
    put_result(store, slot(run="a", iteration=5), 1)
    with pytest.raises(StoreError, match=r"iteration=0005.* is left of another run a: "):
        import_runs(origin, store, None, silent)
    assert not store.has_run("a")


def test_an_import_replaces_what_is_left_in_its_slots(store: Store, tmp_path: Path) -> None:
    origin = Store.open(tmp_path / "origin", create=True)
    put_run(origin, "a", {0: 0, 1: 1, 2: 2})
    spoil(store, put_result(store, slot(run="a", iteration=0), 0).tables["updates"])
    put_result(store, slot(run="a", iteration=1), 9)
    store.write(
        slot(run="a", iteration=2), fingerprint(seed=2), tables={"updates": updates()}, seconds=0,
        parents=[],
    )  # fmt: skip
    import_runs(origin, store, None, silent)
    assert verify(store, "a") == 3
    assert content_of(store, "a") == content_of(origin, "a")


@pytest.mark.parametrize(("fault", "told"), FAULTS)
@on_both
def test_a_damaged_result_leaves_no_imported_run(
    store: Store, tmp_path: Path, fault: Fault, told: str
) -> None:
    origin = Store.open(tmp_path / "origin", create=True)
    put_run(origin, "a", {0: 0, 1: 1})
    whole = exported(origin, "a", tmp_path / "out")
    broken = exported(origin, "a", tmp_path / "broken")
    output = dict(broken.results())[slot(run="a", iteration=1).uri].output("")
    spoil(broken, output.tables["updates"].model_copy(
        update={"uri": f"{slot(run='a', iteration=1).uri}/updates.parquet"}
    ), fault)  # fmt: skip
    with pytest.raises(StoreError, match=rf"^{told} file .*: export its run again$"):
        import_runs(broken, store, None, silent)
    assert store.run_names() == []
    import_runs(whole, store, None, silent)
    assert verify(store, "a") == 2


def test_a_manifest_that_names_files_elsewhere_is_refused(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0})
    copy = exported(store, "a", tmp_path / "out")
    path = copy.root / slot(run="a", iteration=0).uri / "manifest.json"
    path.write_text(path.read_text().replace("policy/config.json", "../../../../../x"))
    with pytest.raises(StoreError, match=r"^damaged file manifest.json in "):
        import_runs(copy, Store.open(tmp_path / "target", create=True), None, silent)
    assert not list(tmp_path.rglob("x"))


def test_a_manifest_of_another_slot_is_refused(store: Store, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0, 1: 1})
    copy = exported(store, "a", tmp_path / "out")
    first, second = (copy.root / slot(run="a", iteration=i).uri / "manifest.json" for i in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(StoreError, match=r"^manifest of another slot in .*iteration=0001"):
        import_runs(copy, Store.open(tmp_path / "target", create=True), None, silent)


def test_a_store_without_runs_cannot_be_imported(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^no run in .*: `turnledger export` makes a folder"):
        import_runs(Store.open(tmp_path / "empty", create=True), store, None, silent)


KILLED_AT_STEPS = """
import os, signal, sys
from pathlib import Path
from storage import Store
from storage.transfer import export_run, import_runs

def kill_before(step):
    left = [step]
    def counting(call):
        def counted(*args, **more):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*args, **more)
        return counted
    for name in ("rename", "replace", "mkdir", "unlink", "fsync"):
        setattr(os, name, counting(getattr(os, name)))

# One process imports, and a fork of it dies at each step: nothing ran threads before the fork.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        kill_before(int(line))
        if sys.argv[1] == "export":
            export_run(Store.open(sys.argv[2]), "a", Path(sys.argv[3]), lambda *_: None)
        else:
            target = Store.open(sys.argv[3], create=True)
            import_runs(Store.open(sys.argv[2]), target, None, lambda *_: None)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_killed_export_leaves_no_folder(store: Store, start: Start, tmp_path: Path) -> None:
    put_run(store, "a", {0: 0, 1: 1})
    killer = start(KILLED_AT_STEPS, "export", store.root, tmp_path / "out")
    for step in range(0, 300, 3):
        say(killer, str(step))
        was_killed = heard(killer) == str(-signal.SIGKILL)
        if (tmp_path / "out").exists():
            break
        assert was_killed
    assert step > 10
    assert verify(Store.open(tmp_path / "out"), "a") == 2
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".out.")]
    assert len(left) <= 1  # a later export of the name removes what a killed one left


def test_importing_again_finishes_a_killed_import(
    store: Store, start: Start, tmp_path: Path
) -> None:
    put_run(store, "a", {0: 0, 1: 1})
    killer = start(KILLED_AT_STEPS, "import", store.root, tmp_path / "target")
    for step in range(0, 300, 3):
        say(killer, str(step))
        was_killed = heard(killer) == str(-signal.SIGKILL)
        target = Store.open(tmp_path / "target", create=True)
        if target.has_run("a"):
            break
        assert was_killed
        assert not target.has_run("a")
    assert step > 10
    assert verify(target, "a") == 2
    assert content_of(target, "a") == content_of(store, "a")


def test_a_killed_import_is_garbage(store: Store, tmp_path: Path) -> None:
    origin = Store.open(tmp_path / "origin", create=True)
    put_run(origin, "a", {0: 0, 1: 1})

    def killed(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_runs(origin, store, None, killed)
    assert store.backend.runs() == ["a"]
    remove_garbage(store, find_garbage(store))
    assert store.backend.runs() == []


def test_an_import_into_a_bucket_uploads_equal_bytes_once(bucket: Store, tmp_path: Path) -> None:
    origin = Store.open(tmp_path / "origin", create=True)
    put_run(origin, "a", {0: 0})
    import_runs(origin, bucket, "a", silent)
    blobs = set(objects_of(bucket, "blobs/"))
    import_runs(origin, bucket, "b", silent)
    assert set(objects_of(bucket, "blobs/")) == blobs
    assert bucket.run_record("b").status == record().status
