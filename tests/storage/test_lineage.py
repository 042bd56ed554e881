from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from storage_builders import fingerprint, slot, updates

from schemas.errors import StoreError
from schemas.refs import Ref, StageOutput
from storage import RunRecord, Slot, Store
from storage.lineage import Lineage, find_table, slot_of, trace

Make = Callable[..., Ref]


@pytest.fixture
def make(store: Store) -> Make:
    """Stores a result with the given parents; returns the reference of its table."""

    def make(stage: str, *parents: Ref, run: str = "demo", loss: float = 0.5) -> Ref:
        output: StageOutput = store.write(
            slot(stage, run=run),
            fingerprint(stage=stage, inputs={str(n): p.content for n, p in enumerate(parents)}),
            tables={"updates": updates(loss=loss)},
            seconds=1.0,
            parents=parents,
            replace=True,
        )
        return output.tables["updates"]

    return make


@pytest.fixture
def trained_run(store: Store, make: Make) -> str:
    make("optimisation")
    now = datetime.now(UTC)
    record = RunRecord(
        name="demo", config={}, config_digest="", created_at=now, updated_at=now, status="finished"
    )
    return store.save_run(record).name


def uris(lineage: Lineage, state: str = "stored") -> set[str]:
    return {node.ref.uri for node in lineage.nodes.values() if node.state == state}


FILE = Ref(uri="problems.jsonl", name="foreign", digest="f", content="f")


def test_parents_are_followed_to_what_came_from_outside(store: Store, make: Make) -> None:
    first = make("prompts", FILE, loss=1)
    second = make("rollout", first, loss=2)
    last = make("advantages", first, second, loss=3)
    traced = trace(store, [last])
    assert uris(traced) == {first.uri, second.uri, last.uri}
    assert uris(traced, "outside") == {"problems.jsonl"}


def test_an_input_that_was_replaced_since_is_told_as_gone(store: Store, make: Make) -> None:
    first = make("prompts", loss=1)
    last = make("advantages", first, loss=3)
    make("prompts", FILE, loss=2)
    traced = trace(store, [last])
    assert uris(traced, "gone") == {first.uri}


def test_equal_tables_of_different_slots_are_told_apart(store: Store, make: Make) -> None:
    empty, same = make("prompts", loss=1), make("rollout", loss=1)
    assert empty.content == same.content
    traced = trace(store, [make("advantages", empty, same, loss=2)])
    assert {empty.uri, same.uri} <= uris(traced)


def test_what_a_branch_took_over_is_found_in_the_branch_when_its_origin_is_gone(
    store: Store, make: Make
) -> None:
    prompts = make("prompts", run="origin", loss=1)
    make("rollout", prompts, run="origin", loss=2)
    for stage in ("prompts", "rollout"):
        assert store.adopt(slot(stage, run="origin"), slot(stage, run="branch"))
    for manifest in store.root.glob("run=origin/**/manifest.json"):
        manifest.unlink()
    own = slot("rollout", run="branch")
    manifest = store.manifest(own)
    assert manifest is not None
    traced = trace(store, [manifest.output(own.uri).tables["updates"]])
    places = {n.slot.run for n in traced.nodes.values() if n.slot and n.state == "stored"}
    assert places == {"branch"}
    assert not uris(traced, "gone")


def test_an_adopted_result_names_the_inputs_of_its_own_run(store: Store, make: Make) -> None:
    prompts = make("prompts", run="origin", loss=1)
    make("rollout", prompts, run="origin", loss=2)
    own = make("prompts", run="twin", loss=1)
    wanted = fingerprint(stage="rollout", inputs={"0": own.content})
    assert store.find(slot("rollout", run="twin"), wanted, [own]).is_hit
    manifest = store.manifest(slot("rollout", run="twin"))
    assert manifest is not None
    assert [parent.uri for parent in manifest.parents] == [own.uri]


def test_the_frame_has_a_row_an_input(store: Store, make: Make) -> None:
    first = make("prompts", FILE, loss=1)
    frame = trace(store, [make("advantages", first, loss=3)]).frame()
    assert frame.select("parent", "parent_state").rows() == [
        (first.uri, "stored"),
        ("problems.jsonl", "outside"),
    ]


def test_a_table_that_no_iteration_has_is_refused(trained_run: str, store: Store) -> None:
    with pytest.raises(StoreError, match="run demo has no advantages, train"):
        find_table(store, trained_run, "advantages")
    with pytest.raises(StoreError, match="run demo has no updates of iteration 9, train"):
        find_table(store, trained_run, "updates", iteration=9)


def test_a_table_is_found_in_the_last_iteration_that_has_it(trained_run: str, store: Store) -> None:
    (found,) = find_table(store, trained_run, "updates")
    assert "iteration=0003" in found.uri


@pytest.mark.parametrize("uri", ["problems.jsonl", "some/where=else/policy", str(Path.cwd())])
def test_a_place_outside_is_no_slot(uri: str) -> None:
    assert slot_of(uri) is None


def test_the_slot_of_a_reference_is_that_of_its_folder() -> None:
    place: Slot = slot("rollout", shard=1, turn=12)
    assert slot_of(f"{place.uri}/turns.parquet") == place


@pytest.mark.parametrize(
    "uri",
    [
        "/elsewhere/store/run=demo/iteration=0003/split=train/stage=optimisation/policy",
        "run=demo/iteration=0003/split=train/stage=optimisation/policy",
        "/exp=1/store/run=demo/iteration=0003/split=train/stage=optimisation/policy",
    ],
)
def test_what_comes_from_outside_may_lie_in_a_slot(store: Store, make: Make, uri: str) -> None:
    """A stored policy is a model folder like any other, and may be given as one."""
    given = Ref(uri=uri, name="foreign", digest="p", content="p")
    traced = trace(store, [make("cold_start", given)])
    assert uris(traced, "outside") == {uri}
    assert uris(traced, "gone") == set()


@pytest.mark.parametrize("uri", ["exp=1/run=demo/iteration=0003/split=train/stage=rollout", "a"])
def test_a_place_that_is_no_slot_has_none(uri: str) -> None:
    assert slot_of(uri) is None
