"""Questions about a store that change nothing in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from places import deleted, on_both, spoil, state_of
from storage_builders import fingerprint, slot, updates

from schemas.errors import StoreError
from schemas.refs import StageOutput
from storage import Store

Put = Callable[..., StageOutput]


def empty(store: Store, put: Put) -> None:
    pass


def unchanged(store: Store, put: Put) -> None:
    put()


def changed(store: Store, put: Put) -> None:
    put(of=fingerprint(config={"gamma": 1}))


def elsewhere(store: Store, put: Put) -> None:
    put(slot(run="other"))


def replaced(store: Store, put: Put) -> None:
    put()
    put(of=fingerprint(seed=1))


def damaged(store: Store, put: Put) -> None:
    spoil(store, put().tables["updates"])


def damaged_elsewhere(store: Store, put: Put) -> None:
    spoil(store, put(slot(run="other")).tables["updates"])


STATES = [empty, unchanged, changed, elsewhere, replaced, damaged, damaged_elsewhere]


@pytest.mark.parametrize("state", STATES)
@on_both
def test_look_changes_nothing(store: Store, put: Put, state: Callable[..., None]) -> None:
    state(store, put)
    before = state_of(store)
    store.look(slot(), fingerprint())
    assert state_of(store) == before


@pytest.mark.parametrize("state", STATES)
@on_both
def test_look_tells_what_find_does(store: Store, put: Put, state: Callable[..., None]) -> None:
    state(store, put)
    assert store.look(slot(), fingerprint()) == store.find(slot(), fingerprint())


@on_both
def test_look_tells_damage_from_change(store: Store, put: Put) -> None:
    output = put()
    assert store.look(slot(), fingerprint(seed=1)).expected is None
    spoil(store, output.tables["updates"], deleted)
    found = store.look(slot(), fingerprint())
    assert (found.output, found.expected) == (None, output)


@on_both
def test_results_gives_every_result_with_its_slot(store: Store, put: Put) -> None:
    slots = [slot(run=run, shard=shard) for run in ("a", "b") for shard in range(2)]
    for number, place in enumerate(slots):
        put(place, fingerprint(seed=number))
    assert [(uri, m.fingerprint.seed) for uri, m in store.results()] == [
        (place.uri, number) for number, place in enumerate(slots)
    ]
    assert [uri for uri, _ in store.results("b")] == [place.uri for place in slots[2:]]


def test_results_leaves_out_a_damaged_manifest(store: Store, put: Put) -> None:
    put(slot(run="a"))
    put(slot(run="b"), fingerprint(seed=1))
    (store.root / slot(run="a").uri / "manifest.json").write_text("{")
    assert [uri for uri, _ in store.results()] == [slot(run="b").uri]


@on_both
def test_has_results_asks_for_one_run(store: Store, put: Put) -> None:
    put()
    assert [store.has_results(run) for run in ("demo", "other")] == [True, False]


@pytest.mark.parametrize("question", [Store.has_run, Store.has_results])
@on_both
def test_questions_refuse_names_that_no_run_has(
    store: Store, question: Callable[[Store, str], bool]
) -> None:
    with pytest.raises(StoreError, match=r"run name '\.\./x' cannot be used"):
        question(store, "../x")


def test_url_opens_the_same_store(store: Store, put: Put, tmp_path: Path) -> None:
    output = put(frame=updates(rows=3))
    assert store.url == str(tmp_path / "store")
    assert Store.open(store.url).read(output.tables["updates"]).height == 3
