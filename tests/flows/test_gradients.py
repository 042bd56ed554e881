"""Gradient noise of stored updates: measured once, from what the ledger holds."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from flows.binding import Place
from flows.gradients import is_measured, measure_gradients
from schemas.errors import StoreError
from stages.gradient_noise import summarise_noise
from storage import Store, open_table


@pytest.fixture(scope="module")
def learnt(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("gradients") / "store"
    shutil.copytree(trained, store)
    return store


def test_every_group_that_is_learnt_from_is_measured_once(learnt: Path) -> None:
    credited = (
        open_table(learnt, "small", "advantages")
        .filter(pl.col("advantage").is_not_null())
        .select("iteration", "task_id")
        .unique()
        .collect()
    )
    assert len(credited)
    places = [Place(store=str(learnt), run="small", iteration=number) for number in (1, 2)]
    assert not any(map(is_measured, places))
    told: list[int] = []
    measure_gradients(places, told.append)
    assert told == [1, 2]
    assert all(map(is_measured, places))
    measured = open_table(learnt, "small", "gradient_noise").collect()
    keys = ["iteration", "task_id"]
    assert measured.select(keys).sort(keys).equals(credited.sort(keys))
    assert (measured["squared_norm"] > 0).all()
    several = credited.group_by("iteration").len().filter(pl.col("len") > 1)
    assert len(summarise_noise(measured, ["iteration"])) == len(several)


def test_an_update_without_its_policy_is_refused(learnt: Path) -> None:
    place = Place(store=str(learnt), run="small", iteration=3)
    with pytest.raises(StoreError, match="run small holds no advantages of iteration 3"):
        measure_gradients([place], lambda done: None)
    assert Store.open(learnt).has_run("small")
