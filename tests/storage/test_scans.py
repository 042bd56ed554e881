import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from places import (
    Fault,
    bit_flipped,
    deleted,
    on_both,
    resealed,
    spoil,
    spoil_manifest,
    truncated,
)
from polars.testing import assert_frame_equal
from storage_builders import fingerprint, slot, turns, updates

import storage
from schemas.errors import StoreError
from schemas.refs import StageOutput
from schemas.tables import TABLES
from storage import MissingTableError, Store

Put = Callable[..., StageOutput]


def put_run(store: Store, run: str = "demo") -> None:
    """Two iterations of two shards and two turns, and one evaluation."""
    for iteration in range(2):
        for shard in range(2):
            for turn in range(2):
                place = slot("rollout", run=run, iteration=iteration, shard=shard, turn=turn)
                frame = turns((f"task{shard}", 0, turn))
                key = fingerprint(config={"place": place.uri})
                store.write(place, key, tables={"turns": frame}, seconds=0, parents=[])
        key = fingerprint(config={"iteration": iteration, "run": run})
        place = slot(run=run, iteration=iteration)
        store.write(place, key, tables={"updates": updates()}, seconds=0, parents=[])
    place = slot("rollout", run=run, split="evaluation", iteration=0, shard=0, turn=0)
    key = fingerprint(config={"place": place.uri})
    store.write(place, key, tables={"turns": turns(("held_out", 0, 0))}, seconds=0, parents=[])


def test_hive_scan_reads_a_whole_run(store: Store) -> None:
    put_run(store)
    pattern = f"{store.root}/run=demo/iteration=*/split=train/stage=rollout/**/turns.parquet"
    frame = pl.scan_parquet(pattern, hive_partitioning=True).collect()
    keys = frame.select("iteration", "shard", "turn", "task_id").rows()
    assert keys == [(i, s, t, f"task{s}") for i in range(2) for s in range(2) for t in range(2)]


@on_both
def test_open_table_gives_run_iteration_and_the_schema(store: Store) -> None:
    put_run(store, "7")
    put_run(store, "other")
    frame = storage.open_table(store.url, "7", "turns").collect()
    expected = {"run": pl.String, "iteration": pl.Int32, **pl.Schema(TABLES["turns"].schema)}
    assert dict(frame.schema) == expected
    assert frame.select("run", "iteration", "task_id", "turn_index").rows() == [
        ("7", i, f"task{s}", t) for i in range(2) for s in range(2) for t in range(2)
    ]


@on_both
def test_open_table_reads_an_evaluation(store: Store) -> None:
    put_run(store)
    frame = storage.open_table(store.url, "demo", "turns", split="evaluation").collect()
    assert frame["task_id"].to_list() == ["held_out"]


def test_open_table_works_below_folders_that_look_like_globs_and_partitions(
    tmp_path: Path,
) -> None:
    store = Store.open(tmp_path / "env=[prod]*" / "store", create=True)
    put_run(store)
    assert storage.open_table(store.root, "demo", "updates").collect().height == 4


@on_both
def test_open_table_puts_tables_of_different_depth_together(store: Store, put: Put) -> None:
    put(slot(iteration=0, shard=1), fingerprint(seed=1))
    put(slot(iteration=1), fingerprint(seed=2))
    frame = storage.open_table(store.url, "demo", "updates").collect()
    assert sorted(frame["iteration"].unique()) == [0, 1]


@on_both
def test_open_table_names_the_known_runs(store: Store) -> None:
    put_run(store)
    with pytest.raises(StoreError, match=r"run other is not in .*; known runs: demo"):
        storage.open_table(store.url, "other", "turns")


@on_both
def test_open_table_names_the_known_tables(store: Store) -> None:
    put_run(store)
    with pytest.raises(StoreError, match=r"table turn is unknown; known tables: .*turns"):
        storage.open_table(store.url, "demo", "turn")


@on_both
def test_open_table_tells_that_there_is_nothing_yet(store: Store) -> None:
    put_run(store)
    with pytest.raises(StoreError, match="run demo has no table advantages of split train yet"):
        storage.open_table(store.url, "demo", "advantages")


@on_both
def test_open_table_refuses_an_unknown_split(store: Store) -> None:
    put_run(store)
    with pytest.raises(StoreError, match="split test is unknown; known splits: train, evaluation"):
        storage.open_table(store.url, "demo", "turns", split="test")


@on_both
def test_open_table_asks_which_of_two_stages(store: Store, put: Put) -> None:
    put()
    put(slot("cold_start"), fingerprint(seed=1), frame=updates(rows=5))
    with pytest.raises(StoreError, match="stages cold_start, optimisation: name one"):
        storage.open_table(store.url, "demo", "updates")
    one = storage.open_table(store.url, "demo", "updates", stage="cold_start")
    assert one.collect().height == 5


def test_open_table_refuses_a_newer_schema(store: Store, put: Put) -> None:
    put()
    spoil_manifest(
        store, resealed(lambda m: re.sub(r'"schema_version": \d+', '"schema_version": 99', m))
    )
    with pytest.raises(StoreError, match=r"newer version .*: upgrade turnledger"):
        storage.open_table(store.root, "demo", "updates")


@on_both
@pytest.mark.parametrize(("fault", "told"), [(deleted, "missing"), (truncated, "damaged")])
def test_a_file_that_was_lost_or_cut_is_told_and_not_left_out(
    store: Store, fault: Fault, told: str
) -> None:
    put_run(store)
    place = slot("rollout", run="demo", iteration=1, shard=1, turn=0)
    manifest = store.manifest(place)
    assert manifest is not None
    spoil(store, manifest.output(place.uri).tables["turns"], fault)
    with pytest.raises(StoreError, match=rf"^{told} file .*turns\.parquet: run its"):
        storage.open_table(store.url, "demo", "turns")


@on_both
def test_verified_rows_are_the_same(store: Store) -> None:
    put_run(store)
    plain, verified = (
        storage.open_table(store.url, "demo", "turns", verify=verify).collect()
        for verify in (False, True)
    )
    assert_frame_equal(plain, verified)
    assert plain.height == 8


@on_both
def test_a_flipped_bit_is_told_where_that_is_asked_for(store: Store) -> None:
    put_run(store)
    place = slot("rollout", run="demo", iteration=1, shard=1, turn=0)
    manifest = store.manifest(place)
    assert manifest is not None
    spoil(store, manifest.output(place.uri).tables["turns"], bit_flipped)
    with pytest.raises(StoreError, match=r"^damaged file .*turns"):
        storage.open_table(store.url, "demo", "turns", verify=True)


@on_both
@pytest.mark.parametrize("fault", [deleted, truncated, lambda _: b"junk"])
def test_a_file_lost_after_it_was_opened_is_one_line(store: Store, fault: Fault) -> None:
    put_run(store)
    frame = storage.open_table(store.url, "demo", "turns")
    place = slot("rollout", run="demo", iteration=1, shard=1, turn=0)
    manifest = store.manifest(place)
    assert manifest is not None
    spoil(store, manifest.output(place.uri).tables["turns"], fault)
    told = r"^cannot read turns of demo: [^\n]+; it may have been replaced meanwhile: do the same"
    with pytest.raises(StoreError, match=told), storage.scan_errors("turns of demo"):
        frame.collect()


def test_an_empty_table_has_its_iteration(store: Store) -> None:
    put_run(store)
    place = slot("rollout", run="demo", iteration=7, shard=0, turn=0)
    store.write(
        place,
        fingerprint(seed=9),
        tables={"turns": turns(("x", 0, 0)).clear()},
        seconds=0,
        parents=[],
    )
    assert storage.table_iterations(store.url, "demo", "turns") == {0, 1, 7}


@on_both
def test_open_table_of_an_iteration_has_its_rows_alone(store: Store) -> None:
    put_run(store)
    whole = storage.open_table(store.url, "demo", "turns").collect()
    for iteration in range(2):
        part = storage.open_table(store.url, "demo", "turns", iteration=iteration).collect()
        assert_frame_equal(part, whole.filter(iteration=iteration))


@on_both
def test_damage_of_another_iteration_does_not_matter(store: Store) -> None:
    put_run(store)
    spoil_manifest(store, bit_flipped, slot("rollout", iteration=0, shard=0, turn=0))
    opened = storage.open_table(store.url, "demo", "turns", iteration=1)
    assert opened.collect().height == 4
    with pytest.raises(StoreError, match="no usable manifest"):
        storage.open_table(store.url, "demo", "turns")


@on_both
def test_open_table_names_the_iteration_without_a_table(store: Store) -> None:
    put_run(store)
    with pytest.raises(MissingTableError, match="run demo has no table turns of iteration 7 of"):
        storage.open_table(store.url, "demo", "turns", iteration=7)


@on_both
def test_tables_from_one_look_are_those_opened_alone(store: Store) -> None:
    put_run(store)
    tables = storage.RunTables.of(store.url, "demo")
    for table, split in (("turns", "train"), ("updates", "train"), ("turns", "evaluation")):
        alone = storage.open_table(store.url, "demo", table, split=split)
        assert_frame_equal(tables.open(table, split=split).collect(), alone.collect())
        assert tables.iterations(table, split=split) == storage.table_iterations(
            store.url, "demo", table, split=split
        )


@on_both
def test_results_of_an_iteration_are_a_part_of_all(store: Store) -> None:
    put_run(store)
    whole = {uri for uri, _ in store.results("demo")}
    parts = [{uri for uri, _ in store.results("demo", iteration)} for iteration in range(2)]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
