"""Policies that are not kept: their bytes go, and nothing that was made from them is doubted."""

from datetime import timedelta
from pathlib import Path

import pytest
from places import objects_of, on_both
from run_builders import POLICY_BYTES, put_policy, record
from storage_builders import fingerprint, slot

from schemas.errors import StoreError
from storage import Store, bucket_garbage
from storage.garbage import find_garbage, remove_garbage
from storage.transfer import export_run, import_runs


def silent(*_: object) -> None:
    pass


@on_both
def test_the_result_stays_found_with_the_same_digests(store: Store) -> None:
    policy = put_policy(store)
    before = store.find(slot(), fingerprint())
    store.release_policy(slot())
    after = store.find(slot(), fingerprint())
    assert (after.output, after.reason) == (before.output, "unchanged")
    assert after.output is not None
    assert after.output.checkpoint == policy
    assert store.verified(slot()) is not None
    assert len(store.read(after.output.tables["updates"])) == 2


@on_both
def test_using_it_is_refused_in_one_line(store: Store) -> None:
    policy = put_policy(store)
    assert store.path(policy).is_dir()
    store.release_policy(slot())
    with pytest.raises(StoreError, match=r"policy of iteration 3 of demo is not kept any more"):
        store.path(policy)


def test_its_files_go_from_a_folder(store: Store) -> None:
    folder = store.path(put_policy(store))
    store.release_policy(slot())
    assert not folder.exists()
    assert sum(path.stat().st_size for path in store.root.rglob("*")) < POLICY_BYTES


def test_a_release_that_was_killed_is_no_damage_and_the_next_ends_it(store: Store) -> None:
    folder = store.path(put_policy(store))
    store.release_policy(slot())
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert store.verified(slot()) is not None
    store.release_policy(slot())
    assert not folder.exists()


def test_gc_frees_its_bytes_in_a_bucket(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_garbage, "YOUNG", timedelta(seconds=-60))
    put_policy(bucket)
    bucket.save_run(record("demo"))
    assert find_garbage(bucket).bytes < POLICY_BYTES
    bucket.release_policy(slot())
    assert find_garbage(bucket).bytes > POLICY_BYTES
    remove_garbage(bucket, find_garbage(bucket))
    assert sum(map(len, objects_of(bucket).values())) < POLICY_BYTES
    assert bucket.verified(slot()) is not None


@on_both
def test_what_another_run_shares_stays(store: Store) -> None:
    put_policy(store)
    shared = store.adopt(slot(), slot(run="other"))
    assert shared is not None
    assert shared.checkpoint is not None
    store.release_policy(slot())
    assert store.path(shared.checkpoint).is_dir()


@on_both
def test_another_run_does_not_take_it_for_a_result(store: Store) -> None:
    put_policy(store)
    store.release_policy(slot())
    found = store.find(slot(run="other"), fingerprint())
    assert found.output is None


@on_both
def test_made_again_it_is_there_again(store: Store) -> None:
    put_policy(store)
    store.release_policy(slot())
    again = put_policy(store, replace=True)
    assert store.path(again).is_dir()


@on_both
def test_a_result_without_a_policy_is_left_as_it_is(store: Store) -> None:
    store.release_policy(slot())
    assert store.manifest(slot()) is None


@on_both
def test_a_run_goes_to_another_store_without_it(store: Store, tmp_path: Path) -> None:
    policy = put_policy(store)
    store.save_run(record("demo"))
    store.release_policy(slot())
    export_run(store, "demo", tmp_path / "sent", silent)
    other = Store.open(tmp_path / "other", create=True)
    import_runs(Store.open(tmp_path / "sent"), other, None, silent)
    there = other.verified(slot())
    assert there is not None
    assert there.output(slot().uri).checkpoint == policy
    with pytest.raises(StoreError, match="not kept any more"):
        other.path(policy)
