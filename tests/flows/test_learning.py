"""A policy that calls its tool and is sometimes right goes through every stage, and learns."""

from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli, sets

from schemas.tables import TURN_KEY
from storage import open_table

KEY = ["iteration", *TURN_KEY]


@pytest.fixture(scope="module")
def store(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learning") / "store"
    done = cli.run(
        *("train", "--store", str(folder), "--run", "able"),
        *sets("iterations=2", "problems.levels=[1]", "compute.threads=1"),
        *sets("cold_start.steps=260", "cold_start.demonstrations=4160"),
        *sets("rollout.prompts=12", "evaluation.problems=8", "evaluation.every=2"),
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_calls_are_executed_and_observed(store: Path) -> None:
    executions = open_table(store, "able", "executions").collect()
    assert (executions["status"] == "ok").sum() > 20
    assert executions.filter(pl.col("status") == "ok")["observation"].str.contains(r"^\d+$").any()


def test_later_turns_follow_observations(store: Path) -> None:
    turns = open_table(store, "able", "turns")
    later = turns.filter(pl.col("turn_index") > 0).with_columns(pl.col("turn_index") - 1)
    unobserved = later.join(open_table(store, "able", "executions"), on=KEY, how="anti")
    assert later.collect().height > 20
    assert unobserved.collect().is_empty()


def test_some_trajectories_are_right_and_some_wrong_ones_are_shaped(store: Path) -> None:
    shaped = open_table(store, "able", "shaped_rewards").collect()
    assert set(shaped["outcome"].unique()) == {0.0, 1.0}
    partial = shaped.filter(pl.col("shaping") == "shaped", pl.col("shaped_accuracy") > 0)
    assert partial.height > 0
    assert partial["shaped_accuracy"].max() <= 0.5


def test_credit_has_both_signs_and_right_endings_the_positive_one(store: Path) -> None:
    credit = open_table(store, "able", "advantages").collect()
    rewards = open_table(store, "able", "turn_rewards").collect()
    assert credit["advantage"].min() < 0 < credit["advantage"].max()
    right = rewards.filter(pl.col("accuracy") == 1).join(credit, on=KEY).drop_nulls("advantage")
    assert right.height > 0
    assert (right["advantage"] > 0).all()


def test_updates_start_at_the_policy_that_sampled(store: Path) -> None:
    updates = open_table(store, "able", "updates").collect()
    assert (updates["tokens"] > 0).all()
    first = updates.filter(pl.col("step") == 0)
    assert first["ratio_max"].max() < 1.001
    assert first["kl"].abs().max() < 1e-6
