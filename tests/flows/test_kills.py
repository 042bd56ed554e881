"""kill -9 at random points: the run that continues ends with what an undisturbed one has."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from killed_updates import train_until_killed
from small_runs import SMALL, Cli, contents, kept, sets

from storage import Store

STAGE_RUNS = 59
"""Of the small training, so that every one of them may be the last before a kill."""


def start_and_kill(cli: Cli, store: Path, luck: random.Random) -> None:
    """Starts the training and kills it, and all that it started, after some stage run."""
    process = cli.start("train", "--store", str(store), "--run", "small", *sets(*SMALL))
    last = luck.randrange(STAGE_RUNS)
    while process.poll() is None:
        if sum(1 for _ in store.glob("run=small/iteration=*/**/manifest.json")) >= last:
            time.sleep(luck.uniform(0, 0.15))
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()


def check_a_kill(cli: Cli, trained: Path, store: Path, seed: int) -> None:
    luck = random.Random(seed)
    for _ in range(luck.choice([1, 1, 2])):
        start_and_kill(cli, store, luck)
    cli.train(store)
    assert contents(Store.open(store)) == contents(Store.open(trained))
    assert Store.open(store).run_record("small").status == "finished"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(50))
def test_fifty_killed_trainings_end_like_an_undisturbed_one(
    cli: Cli, trained: Path, tmp_path: Path, seed: int
) -> None:
    check_a_kill(cli, trained, tmp_path / "store", seed)


UPDATES: dict[str, tuple[str, ...]] = {
    "few policies": ("iterations=4", "evaluation.every=1", "compute.keep_policies=2"),
    "adapter": ("optimisation.lora_rank=4", "optimisation.lora_alpha=8"),
    "two processes": ("compute.processes=2",),
    "stale": ("iterations=3", "rollout.stale=true", "compute.keep_policies=2"),
}
STEPS = 12


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("kind", UPDATES)
def test_an_update_killed_between_its_steps_is_made_again_to_the_bit(
    cli: Cli, tmp_path: Path, kind: str
) -> None:
    settings = (f"optimisation.minibatches={STEPS}", *UPDATES[kind])
    cli.train(tmp_path / "undisturbed", *settings)
    last = kept(tmp_path / "undisturbed")[-1]
    killed = tmp_path / "killed"
    for iteration, step in ((1, 1), (last, 2), (last, STEPS)):
        train_until_killed(cli, killed, *settings, iteration=iteration, step=step)
    cli.train(killed, *settings)
    assert contents(Store.open(killed)) == contents(Store.open(tmp_path / "undisturbed"))
    assert kept(killed) == kept(tmp_path / "undisturbed")
