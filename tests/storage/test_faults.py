"""Killed writers, full disks, missing rights and rivals, with real processes and file systems."""

import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent

import polars as pl
import pytest
from processes import WRITER, heard, say
from storage_builders import fingerprint, slot, updates

from schemas.errors import StoreError
from schemas.refs import StageOutput
from storage import RunRecord, Store
from storage.transfer import export_run

Put = Callable[..., StageOutput]
Start = Callable[..., subprocess.Popen[str]]

KILLED_AT_EVERY_STEP = """
import os, signal, sys
from storage import Store
from processes import WRITER, heard, say
from storage_builders import fingerprint, slot, updates

def kill_before(step):
    names = ("fsync", "rename", "replace", "mkdir", "unlink")
    left = [step]
    def counting(call):
        def counted(*args, **more):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*args, **more)
        return counted
    for name in names:
        setattr(os, name, counting(getattr(os, name)))

def write(root, step):
    store = Store.open(root)
    frame = updates()
    kill_before(step)
    store.write(slot(), fingerprint(seed=step), tables={"updates": frame},
        checkpoint_writer=lambda folder: (folder / "w").write_text("w") and None,
        policy_version=1, seconds=0, parents=[])

# One process imports, and a fork of it dies at each step: nothing ran threads before the fork.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write(sys.argv[1], int(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("before", ["empty", "older result"])
def test_slot_of_a_killed_writer_is_absent_or_whole(
    store: Store, put: Put, start: Start, before: str
) -> None:
    """Kills a writer before each of its steps on the file system, until one write ends."""
    older = fingerprint(seed=1000)
    killer = start(KILLED_AT_EVERY_STEP, store.root)
    outcomes = []
    for step in range(100):
        if before == "older result":
            put(of=older, replace=True)
        say(killer, str(step))
        was_killed = heard(killer) == str(-signal.SIGKILL)
        manifest = store.manifest(slot())
        if manifest is None:
            outcomes.append("absent")
        else:
            assert store.find(slot(), manifest.fingerprint).reason == "unchanged"
            outcomes.append("older" if manifest.fingerprint == older else "new")
        if before == "older result":
            assert store.find(slot(), older).is_hit
        if not was_killed:
            break
    assert outcomes[-1] == "new"
    assert len(outcomes) > 10
    assert set(outcomes) == ({"absent", "new"} | ({"older"} if before == "older result" else set()))


def test_writer_killed_before_the_rename_leaves_nothing(store: Store, start: Start) -> None:
    stop_halfway = """
    (folder / "half").write_bytes(b"x")
    print("half", flush=True)
    sys.stdin.readline()
"""
    code = WRITER.replace("(folder):\n", "(folder):" + stop_halfway, 1)
    writer = start(code, store.root, "0.5", 0)
    assert heard(writer) == "ready"
    say(writer)
    assert heard(writer) == "half"
    writer.kill()
    writer.wait()
    assert store.find(slot(), fingerprint()).reason == "first run"
    assert list(store.root.rglob("run=*")) == []


def test_older_result_survives_a_kill_between_the_two_renames(store: Store, put: Put) -> None:
    put()
    shelf = store.root / "replaced" / fingerprint().digest
    shelf.mkdir(parents=True)
    (store.root / slot().uri).rename(shelf / "0000")  # what a writer does first
    assert store.find(slot(), fingerprint()).is_hit


def test_two_writers_of_one_fingerprint_end_with_one_right_result(
    store: Store, start: Start
) -> None:
    for seed in range(3):
        rivals = [start(WRITER, store.root, loss, seed) for loss in ("0.1", "0.2")]
        assert [heard(rival) for rival in rivals] == ["ready", "ready"]
        for rival in rivals:
            say(rival)
        digests = {heard(rival) for rival in rivals}
        found = store.find(slot(), fingerprint(seed=seed)).output
        assert found is not None
        assert digests == {found.tables["updates"].digest}


def test_two_writers_of_one_slot_lose_nothing(store: Store, start: Start) -> None:
    rivals = [start(WRITER, store.root, "0.1", seed) for seed in (1, 2)]
    assert [heard(rival) for rival in rivals] == ["ready", "ready"]
    for rival in rivals:
        say(rival)
    assert all(heard(rival) for rival in rivals)
    assert all(store.find(slot(), fingerprint(seed=seed)).is_hit for seed in (1, 2))


def test_two_openers_make_one_store(tmp_path: Path, start: Start) -> None:
    openers = [start(WRITER, tmp_path / "new", "0.1", seed) for seed in (1, 2)]
    assert [heard(opener) for opener in openers] == ["ready", "ready"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def noise(rows: int) -> pl.DataFrame:
    drawn = random.Random(0)
    return updates(rows).with_columns(loss=pl.Series([drawn.random() for _ in range(rows)]))


def test_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    store = Store.open(small_disk / "store", create=True)
    with pytest.raises(StoreError, match=r"cannot write .*optimisation: No space left on device"):
        store.write(slot(), fingerprint(), tables={"updates": noise(50_000)}, seconds=0, parents=[])
    assert [p for p in (store.root / "tmp").iterdir() if p.is_dir()] == []
    assert not (store.root / slot().uri).exists()
    store.write(slot(), fingerprint(), tables={"updates": noise(10)}, seconds=0, parents=[])
    assert store.find(slot(), fingerprint()).is_hit


def test_full_disk_while_writing_a_checkpoint_is_one_line(small_disk: Path) -> None:
    store = Store.open(small_disk / "store", create=True)
    with pytest.raises(StoreError, match=r"cannot write .*optimisation: No space left on device"):
        store.write(
            slot(),
            fingerprint(),
            tables={},
            checkpoint_writer=lambda folder: (folder / "w").write_bytes(bytes(400_000)) and None,
            policy_version=1,
            seconds=0,
            parents=[],
        )
    assert not (store.root / slot().uri).exists()


def test_a_clock_set_forward_and_back_removes_nothing_that_is_being_written(
    store: Store, start: Start
) -> None:
    """To a process that opens the store, the folder of a living writer may look a year old."""
    stop_halfway = """
    (folder / "half").write_bytes(b"x")
    print("half", flush=True)
    sys.stdin.readline()
"""
    writer = start(
        WRITER.replace("(folder):\n", "(folder):" + stop_halfway, 1), store.root, "0.5", 0
    )
    assert heard(writer) == "ready"
    say(writer)
    assert heard(writer) == "half"
    (staged,) = (path for path in (store.root / "tmp").iterdir() if path.is_dir())
    os.utime(staged, (0, 0))
    Store.open(store.root)
    say(writer)
    assert heard(writer)
    assert store.find(slot(), fingerprint()).is_hit


def test_files_from_the_future_are_results_like_others(store: Store, put: Put) -> None:
    """The clock was set back after they were written."""
    put()
    for path in store.root.rglob("*"):
        os.utime(path, (2**32, 2**32))
    assert Store.open(store.root).find(slot(), fingerprint()).is_hit
    put(of=fingerprint(seed=1))
    assert all(store.find(slot(), fingerprint(seed=seed)).is_hit for seed in (0, 1))


AS_NOBODY = """
import os, sys
from schemas.errors import StoreError
from storage import Store
from processes import WRITER, heard, say
from storage_builders import fingerprint, slot, updates
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
store = Store.open(sys.argv[1])
print(store.find(slot(), fingerprint()).reason, flush=True)
try:
    store.write(slot(), fingerprint(seed=1), tables={"updates": updates()}, seconds=0, parents=[])
except StoreError as error:
    print(error, flush=True)
"""


@pytest.fixture
def read_only(store: Store, put: Put) -> Iterator[Store]:
    """A store with one result that others may read, and its owner too."""
    put()
    for folder in [store.root, *store.root.parents]:
        is_ours = folder.stat().st_uid == os.geteuid()
        if is_ours and folder.is_relative_to(tempfile.gettempdir() + "/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    (store.root / "tmp").chmod(0o555)
    yield store
    (store.root / "tmp").chmod(0o755)


def test_missing_rights_are_one_line(read_only: Store, start: Start) -> None:
    reader = start(AS_NOBODY, read_only.root)
    assert heard(reader) == "unchanged"
    assert heard(reader) == f"cannot write {read_only.root / slot().uri}: Permission denied"


def test_files_that_may_not_be_read_are_told_by_name(read_only: Store, start: Start) -> None:
    now = datetime.now(UTC)
    values = {"config": {}, "config_digest": "d", "status": "finished"}
    read_only.save_run(RunRecord(name="demo", created_at=now, updated_at=now, **values))
    for uri in (f"{slot().uri}/updates.parquet", "run=demo/run.json"):
        (read_only.root / uri).chmod(0)
    reader = start(
        AS_NOBODY.replace("try:", "print(*store.damaged_runs().values(), flush=True)\ntry:"),
        read_only.root,
    )
    assert heard(reader) == "unreadable file updates.parquet: Permission denied"
    record = read_only.root / "run=demo" / "run.json"
    assert heard(reader) == f"cannot read {record}: Permission denied"


def test_a_folder_that_may_not_be_listed_is_told_and_not_left_out(
    read_only: Store, start: Start
) -> None:
    (read_only.root / slot().uri).parent.chmod(0)
    asking = "import storage\nfrom schemas.errors import StoreError\n" + dedent(
        """
        import os, sys
        os.setgid(65534)
        os.setuid(65534)
        try:
            storage.open_table(sys.argv[1], "demo", "updates")
        except StoreError as error:
            print(error, flush=True)
        """
    )
    told = heard(start(asking, read_only.root))
    (read_only.root / slot().uri).parent.chmod(0o755)
    assert told == f"cannot read {read_only.root}/run=demo: Permission denied"


@contextmanager
def read_only_disk(folder: Path) -> Iterator[None]:
    mounted = subprocess.run(["mount", "--bind", folder, folder], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def save_running(store: Store) -> None:
    now = datetime.now(UTC)
    values = {"config": {}, "config_digest": "d", "status": "running"}
    store.save_run(RunRecord(name="demo", created_at=now, updated_at=now, **values))


def test_a_killed_run_on_a_read_only_disk_is_told_and_exported(
    store: Store, put: Put, tmp_path: Path
) -> None:
    put()
    with store.lock_run("demo"):
        save_running(store)
    with read_only_disk(store.root):
        seen = Store.open(store.root)
        assert [record.status for record in seen.runs()] == ["interrupted"]
        export_run(seen, "demo", tmp_path / "out", lambda *_: None)
    assert Store.open(tmp_path / "out").find(slot(), fingerprint()).is_hit


def test_a_run_on_a_read_only_disk_that_is_trained_is_told_so(store: Store) -> None:
    with store.lock_run("demo"):
        save_running(store)
        with read_only_disk(store.root):
            assert [record.status for record in Store.open(store.root).runs()] == ["running"]


def test_a_lost_store_file_is_told_as_such(store: Store, put: Put) -> None:
    put()
    (store.root / "store.json").unlink()
    for create in (False, True):
        with pytest.raises(StoreError, match=r"^missing file .*/store.json, but there are runs: "):
            Store.open(store.root, create=create)
    (store.root / "store.json").write_text('{"format": 2}')
    assert Store.open(store.root).find(slot(), fingerprint()).is_hit


def test_checkpoint_writer_that_fails_leaves_nothing(store: Store) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(
            slot(),
            fingerprint(),
            tables={},
            checkpoint_writer=fail,
            policy_version=1,
            seconds=0,
            parents=[],
        )
    assert list((store.root / "tmp").iterdir()) == []
