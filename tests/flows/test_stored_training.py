"""A training of which everything is stored needs no Prefect, and one that is not does."""

import shutil
from pathlib import Path

import polars as pl
from small_runs import Cli, kept

from flows.binding import Place
from flows.events import StageEvent, listening
from flows.plan import plan_training
from flows.sessions import stored_config
from flows.stored_training import go_through_stored
from schemas.config import RunConfig
from storage import Store


def without_server(cli: Cli, home: Path) -> Cli:
    environment = {k: v for k, v in cli.environment.items() if k != "PREFECT_API_URL"}
    return Cli({**environment, "PREFECT_HOME": str(home)})


def place_and_config(store: Path, run: str = "small") -> tuple[Place, RunConfig]:
    opened = Store.open(store)
    place = Place(store=opened.url, run=run, iteration=0)
    return place, stored_config(opened.run_record("small"))


def copied(trained: Path, store: Path) -> Path:
    """Copies the run `small` alone into a store of its own."""
    store.mkdir()
    shutil.copy(trained / "store.json", store)
    shutil.copytree(trained / "run=small", store / "run=small")
    return store


def test_a_finished_training_starts_no_server_and_tells_the_same(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    with_server = cli.train(trained)
    home = tmp_path / "prefect"
    alone = without_server(cli, home).train(trained)
    assert alone == with_server
    assert "0 stage runs computed" in alone
    assert not (home / "prefect.db").exists()


def test_a_training_stored_under_another_name_is_taken_over_without_a_server(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    home = tmp_path / "prefect"
    told = without_server(cli, home).train(trained, run="again")
    assert "0 stage runs computed" in told
    assert not (home / "prefect.db").exists()
    store = Store.open(trained)
    record = store.run_record("again")
    assert (record.status, record.iterations_done) == ("finished", 2)
    assert len(list(store.results("again"))) == len(list(store.results("small")))


def test_every_stage_run_is_told(trained: Path) -> None:
    place, config = place_and_config(trained)
    events: list[StageEvent] = []
    with listening(events.append):
        assert go_through_stored(place, config)
    planned = plan_training(place, config)
    assert [event.slot.uri for event in events] == planned["slot"].to_list()
    assert {event.kind for event in events} == {"reused"}


def test_nothing_is_done_where_one_result_is_damaged(trained: Path, tmp_path: Path) -> None:
    store = copied(trained, tmp_path / "store")
    place, config = place_and_config(store)
    (table,) = store.glob("run=small/iteration=0002/split=train/stage=advantages/*.parquet")
    table.write_bytes(table.read_bytes()[:-1])
    events: list[StageEvent] = []
    with listening(events.append):
        assert not go_through_stored(place, config)
    assert events == []
    assert plan_training(place, config).filter(pl.col("action") == "run").height == 1


def test_nothing_is_done_where_more_iterations_are_asked_for(trained: Path) -> None:
    place, config = place_and_config(trained)
    # So many that no other run of the store has them.
    assert not go_through_stored(place, config.model_copy(update={"iterations": 40}))


def test_nothing_is_done_where_a_refresh_is_asked_for(trained: Path) -> None:
    place, config = place_and_config(trained)
    refreshed = place.model_copy(update={"refresh": ("advantages",)})
    assert not go_through_stored(refreshed, config)


def test_policies_that_shall_not_be_kept_any_more_are_freed(trained: Path, tmp_path: Path) -> None:
    store = copied(trained, tmp_path / "store")
    place, config = place_and_config(store)
    # Fewer than a user may keep, for the run is short.
    compute = config.compute.model_copy(update={"keep_policies": 1})
    assert go_through_stored(place, config.model_copy(update={"compute": compute}))
    assert kept(store) == [0, 2]
