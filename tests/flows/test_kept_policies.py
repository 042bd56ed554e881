"""A training that keeps few policies: which go, and that going on needs none of them."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli, contents, kept

from flows.binding import Place
from flows.kept_policies import PolicyKeeper
from flows.plan import plan_training
from flows.policies import policy_slot
from flows.report import accuracy_by_iteration
from flows.sessions import stored_config
from schemas.refs import TableRef
from storage import Store


def test_going_on_gives_what_a_run_that_kept_all_has(cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "store"
    few = ("compute.keep_policies=2", "evaluation.every=1")
    cli.train(store, "iterations=4", *few, run="few")
    best = PolicyKeeper(None).best(Place(store=str(store), run="few", iteration=4))
    assert kept(store, "few") == sorted({0, best, 3, 4})
    cli.train(store, "iterations=5", *few, run="few")
    assert {0, 4, 5} <= set(kept(store, "few"))
    cli.train(tmp_path / "all", "iterations=5", "evaluation.every=1", run="few")
    assert kept(tmp_path / "all", "few") == [0, 1, 2, 3, 4, 5]
    assert contents(Store.open(store), "few") == contents(Store.open(tmp_path / "all"), "few")
    done = cli.run("rerun", "rollout", "--store", str(store), "--run", "few", "--iteration", "3")
    if 2 not in kept(store, "few"):
        assert done.returncode == 1
        assert "the policy of iteration 2 of few is not kept any more" in done.stderr
        assert "Traceback" not in done.stderr
        again = ("rerun", "advantages", "--store", str(store), "--run", "few", "--iteration", "3")
        change = ("--into", "credit", "--set", "gamma=0.5")
        done = cli.run(*again, *change)
        assert done.returncode == 1
        assert done.stderr.endswith("with --until advantages no policy is needed\n")
        done = cli.run(*again, *change, "--until", "advantages")
        assert done.returncode == 0, done.stderr


def test_a_branch_goes_on_without_the_policy_that_it_began_with(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(trained, store)
    there = ("--store", str(store), "--run")
    change = ("--into", "branch", "--set", "learning_rate=1e-4")
    done = cli.run("rerun", "optimisation", *there, "small", "--iteration", "1", *change)
    assert done.returncode == 0, done.stderr
    assert cli.run("train", *there, "branch").returncode == 0
    Store.open(store).release_policy(policy_slot("branch", 1))
    config = stored_config(Store.open(store).run_record("branch"))
    plan = plan_training(Place(store=str(store), run="branch", iteration=0), config)
    assert set(plan["action"]) == {"hit"}


def test_the_best_of_equal_evaluations_is_the_last(trained: Path) -> None:
    accuracy = accuracy_by_iteration(trained, "small")
    best = accuracy.filter(accuracy["avg_at_k"] == accuracy["avg_at_k"].max())["iteration"].max()
    assert PolicyKeeper(None).best(Place(store=str(trained), run="small", iteration=2)) == best


def test_each_evaluation_is_read_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[TableRef] = []
    reads = Store.read

    def noted(store: Store, ref: TableRef) -> pl.DataFrame:
        read.append(ref)
        return reads(store, ref)

    monkeypatch.setattr(Store, "read", noted)
    keeper, end = PolicyKeeper(None), Place(store=str(trained), run="small", iteration=2)
    asked = [keeper.best(end.at(iteration)) for iteration in (0, 1, 2)]
    evaluated = accuracy_by_iteration(trained, "small")["iteration"].n_unique()
    assert len(read) == evaluated > 1
    assert asked == [PolicyKeeper(None).best(end.at(iteration)) for iteration in (0, 1, 2)]


def test_without_an_evaluation_none_is_the_best(trained: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(trained, store)
    for folder in (store / "run=small").glob("iteration=*/split=evaluation"):
        shutil.rmtree(folder)
    done = Place(store=str(store), run="small", iteration=2)
    assert PolicyKeeper(None).best(done) == 0
    PolicyKeeper(2).free(done)
    assert kept(store, "small") == [0, 1, 2]


def test_all_are_kept_unless_asked(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "release_policy", lambda *_: pytest.fail("released"))
    PolicyKeeper(None).free(Place(store=str(trained), run="small", iteration=2))
    assert Store.open(trained).manifest(policy_slot("small", 1)) is not None
