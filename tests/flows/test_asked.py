"""Two flows at once may find the same free name: each ends in a branch of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from handmade_runs import put_run

from flows.asked import AskedRerun, holding
from flows.sessions import session
from schemas.config import RunConfig
from schemas.errors import StoreError
from storage import RunParent, Store

OTHER = RunParent(run="base", iteration=1, stage="evaluation", overrides=["samples=3"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(tmp_path / "store", create=True)
    with session(made, "base", RunConfig()):
        put_run(made, "base")
    return made


def asked_of(store: Store, into: str | None = None) -> AskedRerun:
    return AskedRerun.of(
        store, "base", stage="advantages", iteration=1, into=into, overrides=["gamma=0.5"]
    )


@contextmanager
def other_flow(store: Store, run: str) -> Iterator[None]:
    """Another flow in that run, with results in it."""
    with session(Store.open(store.root), run, RunConfig(), parent=OTHER):
        put_run(store, run)
        yield


@pytest.mark.parametrize("is_over", [False, True], ids=["at work", "over"])
def test_a_name_that_another_flow_took_first_is_left_to_it(store: Store, is_over: bool) -> None:
    asked, names = asked_of(store), []

    def work(name: str) -> str:
        names.append(name)
        with holding(store, name, asked.config, asked.parent):
            return name

    def work_beside_another(name: str) -> str:
        if names:
            return work(name)
        with other_flow(store, name):
            if not is_over:
                return work(name)
        return work(name)

    assert asked.in_target(work_beside_another) == "base.2"
    assert names == ["base.1", "base.2"]
    assert [store.run_record(name).parent for name in names] == [OTHER, asked.parent]


@pytest.mark.parametrize("into", [None, "mine"])
def test_what_fails_in_a_run_of_its_own_is_not_tried_again(store: Store, into: str | None) -> None:
    asked, names = asked_of(store, into), []

    def work(name: str) -> None:
        names.append(name)
        with holding(store, name, asked.config, asked.parent):
            raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="the disk is full"):
        asked.in_target(work)
    assert names == [into or "base.1"]


def test_a_name_that_was_asked_for_is_not_replaced(store: Store) -> None:
    asked = asked_of(store, "mine")

    def work(name: str) -> None:
        with other_flow(store, name), holding(store, name, asked.config, asked.parent):
            pass

    with pytest.raises(StoreError, match="run mine is being trained by another process"):
        asked.in_target(work)
