"""The name of a run that was dropped is not taken while its results are there."""

from pathlib import Path

import pytest
from handmade_runs import put_run

from flows.sessions import branch_name, refuse_left_over, session
from schemas.config import RunConfig
from schemas.errors import StoreError
from storage import RunParent, Store
from storage.garbage import drop_run, find_garbage, remove_garbage

PARENT = RunParent(run="base", iteration=1, stage="advantages", overrides=["gamma=1.0"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def make_run(store: Store, run: str, parent: RunParent | None = None) -> None:
    with session(store, run, RunConfig(), parent=parent):
        put_run(store, run)


def test_a_dropped_run_keeps_its_name_until_it_is_collected(store: Store) -> None:
    make_run(store, "mine")
    drop_run(store, "mine")
    with (
        pytest.raises(StoreError, match=r"`turnledger gc` frees the name.*drop mine --undo"),
        session(store, "mine", RunConfig(iterations=1)),
    ):
        pass
    assert not store.has_run("mine")
    remove_garbage(store, find_garbage(store))
    with session(store, "mine", RunConfig(iterations=1)):
        assert not store.has_results("mine")


def test_results_without_a_record_are_not_taken_for_those_of_a_new_run(store: Store) -> None:
    put_run(store, "mine")
    with (
        pytest.raises(StoreError, match="run=mine holds results of a run without a record"),
        session(store, "mine", RunConfig()),
    ):
        pass
    assert not store.has_run("mine")


def test_a_branch_skips_the_name_of_a_dropped_one(store: Store) -> None:
    make_run(store, "base.1", PARENT)
    assert branch_name(store, "base", PARENT, RunConfig()) == "base.1"
    drop_run(store, "base.1")
    assert branch_name(store, "base", PARENT, RunConfig()) == "base.2"
    refuse_left_over(store, "base.2")


def test_a_branch_skips_a_name_with_results_of_nobody(store: Store) -> None:
    put_run(store, "base.1")
    assert branch_name(store, "base", PARENT, RunConfig()) == "base.2"
