"""Holds on runs in a bucket, by processes that live, die, stall and sit on other machines."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from places import client_of, place_of
from processes import heard
from storage_builders import fingerprint, slot, updates
from test_runs import HOLDER, record

from schemas.errors import StoreError
from storage import Store, lease
from storage.lease import Lease

Start = Callable[..., subprocess.Popen[str]]

KEY = "run=demo/lease.json"


def leave(bucket: Store, left: Lease, key: str = KEY) -> None:
    client_of(bucket).put_object(**place_of(bucket, key), Body=left.content())


def present(bucket: Store) -> Lease:
    body = client_of(bucket).get_object(**place_of(bucket, KEY))["Body"].read()
    return Lease.model_validate_json(body)


def elsewhere() -> Lease:
    return Lease(holder="theirs", host="another", pid=1, started=1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.1)
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)


@pytest.fixture
def renewing(bucket: Store) -> Iterator[None]:
    """Renews the lease of another machine, every 0.1 s."""
    stop = threading.Event()

    def renew() -> None:
        count = 0
        while not stop.wait(0.1):
            count += 1
            leave(bucket, elsewhere().model_copy(update={"renewals": count}))

    leave(bucket, elsewhere())
    thread = threading.Thread(target=renew)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("renewing")
def test_a_lease_that_is_renewed_on_another_machine_is_respected(bucket: Store) -> None:
    message = r"run demo is being trained by another process \(pid 1 on another machine\)"
    with pytest.raises(StoreError, match=message), bucket.lock_run("demo"):
        pass


@pytest.mark.usefixtures("short")
def test_a_lease_that_stands_still_on_another_machine_is_taken_after_its_length(
    bucket: Store,
) -> None:
    leave(bucket, elsewhere())
    started = time.monotonic()
    with bucket.lock_run("demo"):
        assert time.monotonic() - started > lease.LEASE_S
        assert present(bucket).holder != "theirs"


def test_a_lease_of_a_reused_process_id_is_taken_at_once(bucket: Store) -> None:
    """The process 1 of this machine lives, but it is not the one that held the lease."""
    leave(bucket, Lease.mine().model_copy(update={"pid": 1, "started": 1}))
    started = time.monotonic()
    with bucket.lock_run("demo"):
        assert time.monotonic() - started < lease.LEASE_S / 2


def test_something_else_in_its_place_is_taken_at_once(bucket: Store) -> None:
    client_of(bucket).put_object(**place_of(bucket, KEY), Body=b"{}")
    with bucket.lock_run("demo"):
        assert present(bucket).pid > 0


@pytest.mark.usefixtures("short")
def test_a_lease_is_renewed_while_it_is_held(bucket: Store) -> None:
    with bucket.lock_run("demo"):
        deadline = time.monotonic() + 10
        while present(bucket).renewals < 3:
            assert time.monotonic() < deadline
    assert present(bucket).released


@pytest.mark.usefixtures("short")
def test_who_lost_the_run_can_change_its_record_no_more(bucket: Store) -> None:
    theirs = elsewhere()
    with bucket.lock_run("demo"):
        saved = bucket.save_run(record())
        leave(bucket, theirs)
        time.sleep(2)  # a renewal is due every 0.1 s
        with pytest.raises(StoreError, match="run demo was taken over by another process"):
            bucket.save_run(saved)
    assert present(bucket) == theirs


@pytest.mark.usefixtures("short")
def test_no_run_can_be_held_while_garbage_is_removed(bucket: Store) -> None:
    other = Store.open(bucket.url)
    with bucket.backend.collecting():
        message = r"garbage of s3://.* is being removed \(pid \d+\)"
        with pytest.raises(StoreError, match=message), other.lock_run("demo"):
            pass
        with bucket.lock_run("demo"):
            pass
    with other.lock_run("demo"):
        pass


@pytest.mark.usefixtures("short")
def test_a_collection_that_died_on_another_machine_keeps_nobody_out(bucket: Store) -> None:
    leave(bucket, elsewhere(), "collection.json")
    started = time.monotonic()
    with bucket.lock_run("demo"):
        assert time.monotonic() - started > lease.LEASE_S


def test_one_of_two_that_start_at_once_gets_the_run(bucket: Store, start: Start) -> None:
    quiet = HOLDER.replace("    print", "    sys.stderr = None; print")
    rivals = [start(quiet, bucket.url) for _ in range(2)]
    assert sorted(heard(rival) for rival in rivals) == ["", "held"]


@pytest.mark.usefixtures("short")
def test_who_watches_learns_that_a_holder_on_another_machine_has_died(bucket: Store) -> None:
    leave(bucket, elsewhere())
    is_held = bucket.watch_lock("demo")
    assert is_held()
    time.sleep(lease.LEASE_S + 0.1)
    assert not is_held()
    assert present(bucket) == elsewhere(), "a watch writes nothing"


def test_who_watches_sees_a_holder_on_another_machine_live(bucket: Store) -> None:
    now = 0.0
    watched = lease.Watched(bucket.backend._objects, KEY, clock=lambda: now)
    for renewals in range(5):
        leave(bucket, elsewhere().model_copy(update={"renewals": renewals}))
        assert watched.is_held()
        now += 0.9 * lease.LEASE_S
        assert watched.is_held()
    now += 0.2 * lease.LEASE_S
    assert not watched.is_held()


def test_a_bucket_tells_what_came_since_the_last_look(bucket: Store) -> None:
    seen: dict[str, str] = {}
    assert not list(bucket.changes("demo", seen))
    for seed in (1, 2):  # the second result replaces the first
        bucket.write(
            slot(),
            fingerprint(seed=seed),
            tables={"updates": updates()},
            seconds=0.0,
            parents=[],
        )
        assert [uri for uri, _ in bucket.changes("demo", seen)] == [slot().uri]
        assert not list(bucket.changes("demo", seen))
