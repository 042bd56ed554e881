"""Joined tables of runs whose rows are known, and of a real one."""

from pathlib import Path

import polars as pl
import pytest
from handmade_runs import REWARDS, put_run

from flows.looking import (
    KEY,
    credit_of_right_turns,
    credit_with,
    credited_turns,
    shaped_trajectories,
    stage_seconds,
    taught_most,
    tool_failures,
)
from schemas.config import RunConfig
from schemas.errors import ConfigError, StoreError
from storage import RunRecord, Store, open_table


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(tmp_path / "store", create=True)
    put_run(made, "hand")
    made.save_run(RunRecord.new("hand", RunConfig(), status="finished"))
    return made


def called(*rows: tuple[int, str | None, str]) -> pl.DataFrame:
    """Makes turns of iteration, status and stderr."""
    return pl.DataFrame(rows, schema=["iteration", "status", "stderr"], orient="row")


def test_every_turn_has_its_credit(store: Store) -> None:
    turns = credited_turns(store.url, "hand")
    stored = open_table(store.url, "hand", "advantages").collect()
    assert turns.height == sum(map(len, REWARDS)) == stored.height
    assert turns["advantage"].to_list() == stored.sort(KEY)["advantage"].to_list()
    assert turns["turns"].to_list() == [len(t) for t in REWARDS for _ in t]


def test_a_table_that_a_run_lacks_is_null_with_its_types(store: Store, trained: Path) -> None:
    turns, whole = credited_turns(store.url, "hand"), credited_turns(trained, "small")
    assert turns["logprob_change"].null_count() == turns.height
    assert turns.schema == whole.schema


def test_only_some_iterations_are_read_if_asked(store: Store) -> None:
    put_run(store, "hand", iteration=2)
    assert credited_turns(store.url, "hand")["iteration"].n_unique() == 2
    assert credited_turns(store.url, "hand", iterations=[2])["iteration"].unique().item() == 2


def test_shares_of_an_iteration_add_up_to_one() -> None:
    turns = pl.DataFrame(
        {
            "iteration": [1, 1, 1, 2, 2],
            "advantage": [1.0, -3.0, None, 0.0, 0.0],
            "tokens": [6, 2, 9, 5, 5],
        }
    )
    taught = taught_most(turns)
    assert taught["share"].to_list() == [0.5, 0.5, 0.0, 0.0]
    assert taught["weight"].to_list()[:2] == [6.0, 6.0]


def test_right_turns_are_told_by_length_and_place(store: Store) -> None:
    right = credit_of_right_turns(credited_turns(store.url, "hand"))
    assert right.select("turns", "turn_index", "count").rows() == [
        (1, 0, 1),
        (3, 0, 1),
        (3, 1, 1),
        (3, 2, 1),
    ]
    shares = right["negative"]
    assert ((shares == 0) | (shares == 1)).all()


def test_the_nearest_of_the_shaped_comes_first() -> None:
    turns = pl.DataFrame(
        {
            "iteration": [1] * 4,
            "task_id": ["a"] * 4,
            "sample_index": [0, 0, 1, 2],
            "turn_index": [0, 1, 0, 0],
            "turns": [2, 2, 1, 1],
            "shaping": ["shaped", "shaped", "shaped", "right"],
            "similarity_mean": [0.2, 0.2, 0.3, None],
            "similarity_max": [0.4, 0.4, 0.9, None],
            "code": ["x = 1", "print(x)", "print(2)", "print(3)"],
            "advantage": [1.0, 3.0, -1.0, 0.0],
        }
    )
    shaped = shaped_trajectories(turns)
    assert shaped["sample_index"].to_list() == [1, 0]
    assert shaped["code"].to_list() == ["print(2)", "x = 1\n# next turn\nprint(x)"]
    assert shaped["advantage"].to_list() == [-1.0, 2.0]


def test_failures_are_told_by_their_cause() -> None:
    told = tool_failures(
        called(
            (1, "ok", ""),
            (1, "error", "Traceback:\n  x\nNameError: name 'x' is not defined\n"),
            (1, "error", "Traceback:\n  x\nValueError\n"),
            (1, "timeout", ""),
            (1, None, ""),
            (2, "ok", ""),
        )
    )
    assert set(told.filter(iteration=1)["cause"]) == {"NameError", "ValueError", "timeout"}
    assert set(told.filter(iteration=1)["calls"]) == {4}
    assert told.filter(iteration=2).rows() == [(2, None, 0, 1, 0.0)]


def test_credit_with_the_settings_of_the_run_is_its_credit(store: Store) -> None:
    same = credit_with(store.url, "hand")
    assert same["before"].to_list() == pytest.approx(same["after"].to_list())
    other = credit_with(store.url, "hand", gamma=0.1)
    assert other["before"].to_list() == same["before"].to_list()
    assert other["after"].to_list() != pytest.approx(same["after"].to_list())


def test_credit_is_refused_for_a_setting_that_there_is_not(store: Store) -> None:
    with pytest.raises(ConfigError, match="gama"):
        credit_with(store.url, "hand", gama=0.1)


def test_seconds_of_stages_are_those_of_their_manifests(trained: Path) -> None:
    seconds = stage_seconds(trained, "small")
    stored = [manifest.seconds for _, manifest in Store.open(trained).results("small")]
    assert seconds["seconds"].sum() == pytest.approx(sum(stored))
    assert seconds["stage_runs"].sum() == len(stored)
    with pytest.raises(StoreError, match="known runs"):
        stage_seconds(trained, "none")
