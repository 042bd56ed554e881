"""Files that an older version of a schema wrote, read as the newest one."""

from collections.abc import Callable

import dataframely as dy
import polars as pl
import pytest
from places import resealed, spoil_manifest
from polars.testing import assert_frame_equal
from storage_builders import fingerprint, slot

import storage
from schemas.errors import StoreError
from schemas.refs import StageOutput, TableRef
from schemas.tables import TABLES, Table
from schemas.upgrades import UPGRADES
from storage import Store
from storage.digests import folder_digest

Put = Callable[..., StageOutput]
Read = Callable[[Store, TableRef], pl.DataFrame]


ONE = pl.Schema(TABLES["updates"].schema)


def updates(rows: int = 2, loss: float = 0.5) -> pl.DataFrame:
    row = {name: 2 for name in ONE} | {"loss": loss}
    return pl.DataFrame([{**row, "step": step} for step in range(rows)], schema=ONE)


class UpdatesTwo(dy.Schema):
    """A table `updates` with a renamed, a retyped, an added and no other column."""

    step = dy.Int64(primary_key=True)
    objective = dy.Float64()
    per_token = dy.Float64()


class UpdatesThree(UpdatesTwo):
    """One more column."""

    note = dy.String(nullable=True)


def one_to_two(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.select(
        per_token=pl.col("loss") / pl.col("tokens"),
        objective=pl.col("loss"),
        step=pl.col("step").cast(pl.Int64),
    )


def two_to_three(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.with_columns(note=pl.lit(None, dtype=pl.String))


def as_two(frame: pl.DataFrame) -> pl.DataFrame:
    """What a stage of version 2 would have made of the rows of `updates`."""
    columns = {"step": frame["step"].cast(pl.Int64), "objective": frame["loss"]}
    return pl.DataFrame({**columns, "per_token": frame["loss"] / frame["tokens"]})


@pytest.fixture(autouse=True)
def _begins_with_the_first_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is of version 1, whatever `updates` has come to."""
    monkeypatch.setitem(TABLES, "updates", Table(schema=TABLES["updates"].schema, version=1))
    monkeypatch.setitem(UPGRADES, "updates", {})


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Installs a version of the package in which `updates` has that version."""

    def release(version: int) -> None:
        schema = {2: UpdatesTwo, 3: UpdatesThree}[version]
        steps = {1: one_to_two, 2: two_to_three}
        monkeypatch.setitem(TABLES, "updates", Table(schema=schema, version=version))
        monkeypatch.setitem(UPGRADES, "updates", {n: steps[n] for n in range(1, version)})

    return release


def by_read(store: Store, ref: TableRef) -> pl.DataFrame:
    return store.read(ref)


def by_scan(store: Store, ref: TableRef) -> pl.DataFrame:
    return store.scan(ref).collect()


def by_open_table(store: Store, ref: TableRef) -> pl.DataFrame:
    return storage.open_table(store.url, "demo", ref.name).drop("run", "iteration").collect()


every_reader = pytest.mark.parametrize("reader", [by_read, by_scan, by_open_table])


@every_reader
def test_an_older_file_is_read_as_the_newest_schema(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    old = put(frame=updates(rows=3, loss=0.25)).tables["updates"]
    release(2)
    assert_frame_equal(reader(store, old), as_two(updates(rows=3, loss=0.25)))


@every_reader
def test_upgrades_are_chained(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    old = put(frame=updates()).tables["updates"]
    release(3)
    expected = as_two(updates()).with_columns(note=pl.lit(None, dtype=pl.String))
    assert_frame_equal(reader(store, old), expected)


@every_reader
def test_reading_an_older_file_writes_nothing(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    old = put(frame=updates()).tables["updates"]
    before = folder_digest(store.root)
    release(2)
    reader(store, old)
    assert folder_digest(store.root) == before


@every_reader
def test_an_empty_older_file_is_read(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    old = put(frame=updates(rows=0)).tables["updates"]
    release(2)
    assert_frame_equal(reader(store, old), as_two(updates(rows=0)))


def test_files_of_several_versions_are_one_table(
    store: Store, put: Put, release: Callable[[int], None]
) -> None:
    losses = {(0, 0): 0.1, (0, 1): 0.2, (0, 2): 0.3, (1, 0): 0.4}
    for version in (1, 2):
        if version == 2:
            release(2)
        for number, ((iteration, shard), loss) in enumerate(losses.items()):
            if (number % 2 == 0) == (version == 1):
                frame = updates(loss=loss)
                put(
                    slot(iteration=iteration, shard=shard),
                    fingerprint(seed=number),
                    frame=frame if version == 1 else as_two(frame),
                )
    frame = storage.open_table(store.url, "demo", "updates").collect()
    assert frame.columns == ["run", "iteration", "step", "objective", "per_token"]
    expected = [(iteration, loss) for (iteration, _), loss in losses.items() for _ in range(2)]
    assert frame.select("iteration", "objective").rows() == expected


def test_a_filter_reaches_through_an_upgrade(
    store: Store, put: Put, release: Callable[[int], None]
) -> None:
    put(frame=updates(rows=5))
    release(2)
    opened = storage.open_table(store.url, "demo", "updates")
    assert opened.filter(pl.col("step") == 3).select("objective").collect().rows() == [(0.5,)]


@every_reader
def test_a_missing_step_is_one_clear_error(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    old = put(frame=updates()).tables["updates"]
    release(3)
    del UPGRADES["updates"][2]
    told = r"^table updates of schema 1 cannot be read as schema 3: .* no step from 2 to 3$"
    with pytest.raises(StoreError, match=told):
        reader(store, old)


@every_reader
def test_steps_that_do_not_end_at_the_schema_are_one_clear_error(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    old = put(frame=updates()).tables["updates"]
    release(2)
    UPGRADES["updates"][1] = lambda frame: one_to_two(frame).drop("per_token")
    told = "^table updates of schema 1 was not made schema 2 .*: column per_token is missing, not"
    with pytest.raises(StoreError, match=told):
        reader(store, old)


@every_reader
def test_a_file_without_the_columns_of_its_version_is_one_clear_error(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    release(2)
    ref = put(frame=as_two(updates())).tables["updates"].model_copy(update={"schema_version": 1})
    spoil_manifest(
        store, resealed(lambda m: m.replace('"schema_version": 2', '"schema_version": 1'))
    )
    told = r"updates.parquet does not have the columns of table updates, schema 1: run its stage"
    with pytest.raises(StoreError, match=told):
        reader(store, ref)


@every_reader
def test_a_file_of_a_newer_version_is_refused(
    store: Store, put: Put, release: Callable[[int], None], reader: Read
) -> None:
    with pytest.MonkeyPatch.context() as newer:
        newer.setitem(TABLES, "updates", Table(schema=UpdatesTwo, version=2))
        ref = put(frame=as_two(updates())).tables["updates"]
    told = r"newer version \(schema 2, this one reads up to 1\): upgrade turnledger$"
    with pytest.raises(StoreError, match=told):
        reader(store, ref)
