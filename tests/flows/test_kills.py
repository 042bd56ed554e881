"""kill -9 at random points: the run that continues ends with what an undisturbed one has."""

import os
import random
import signal
import time
from pathlib import Path

import polars as pl
import pytest
from killed_updates import train_until_killed
from small_runs import SMALL, Cli, contents, sets

from storage import Store, open_table

_LEARNING = (
    "iterations=3",
    "evaluation.every=1",
    "optimisation.minibatches=4",
    # Large enough, and trained long enough, that some groups vary in every iteration.
    "policy.hidden_size=64",
    "cold_start.steps=300",
    "cold_start.demonstrations=4000",
    "rollout.prompts=8",
)
KINDS = {
    "adapter": ("optimisation.lora_rank=4",),
    "few_policies": ("compute.keep_policies=2",),
    "further_groups": (
        "advantages.groups_without_outcome_variance=drop",
        "rollout.resample_rounds=2",
        "rollout.samples=8",
    ),
    "processes": ("compute.processes=2",),
    "stale": ("rollout.stale=true", "compute.keep_policies=2"),
}
"""Ways to train that hold other state between steps and iterations."""


def stage_runs(store: Path) -> int:
    """Counts what is stored, also what a policy that is not kept any more has left."""
    return sum(1 for _ in store.glob("run=small/iteration=*/**/manifest.json"))


def start_and_kill(cli: Cli, store: Path, luck: random.Random, whole: int, *kind: str) -> None:
    """Starts the training and kills it, and all that it started, after one of its stage runs."""
    settings = sets(*SMALL, *kind)
    process = cli.start("train", "--store", str(store), "--run", "small", *settings)
    last = luck.randrange(whole)
    while process.poll() is None:
        if stage_runs(store) >= last:
            time.sleep(luck.uniform(0, 0.15))
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()


def check_a_kill(cli: Cli, undisturbed: Path, store: Path, seed: int, *kind: str) -> None:
    luck = random.Random(seed)
    whole = stage_runs(undisturbed)
    for _ in range(luck.choice([1, 1, 2])):
        start_and_kill(cli, store, luck, whole, *kind)
    cli.train(store, *kind)
    assert contents(Store.open(store)) == contents(Store.open(undisturbed))
    assert Store.open(store).run_record("small").status == "finished"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(50))
def test_fifty_killed_trainings_end_like_an_undisturbed_one(
    cli: Cli, trained: Path, tmp_path: Path, seed: int
) -> None:
    check_a_kill(cli, trained, tmp_path / "store", seed)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return (*_LEARNING, *KINDS[request.param])


@pytest.fixture(scope="module")
def undisturbed(cli: Cli, kind: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    cli.train(store, *kind)
    return store


@pytest.mark.soak
def test_each_way_to_train_learns_in_every_iteration(undisturbed: Path) -> None:
    steps = open_table(undisturbed, "small", "updates").group_by("iteration").agg(n=pl.len())
    assert steps.sort("iteration").collect().rows() == [(1, 4), (2, 4), (3, 4)]


@pytest.mark.soak
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("iteration", [2, 3])
def test_each_kind_killed_between_two_steps_ends_like_an_undisturbed_one(
    cli: Cli, undisturbed: Path, kind: tuple[str, ...], tmp_path: Path, iteration: int, step: int
) -> None:
    store = tmp_path / "store"
    train_until_killed(cli, store, *kind, iteration=iteration, step=step)
    cli.train(store, *kind)
    assert contents(Store.open(store)) == contents(Store.open(undisturbed))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
def test_killed_trainings_of_each_kind_end_like_an_undisturbed_one(
    cli: Cli, undisturbed: Path, kind: tuple[str, ...], tmp_path: Path, seed: int
) -> None:
    check_a_kill(cli, undisturbed, tmp_path / "store", seed, *kind)
