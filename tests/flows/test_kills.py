"""kill -9 at random points: the run that continues ends with what an undisturbed one has."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from small_runs import SMALL, Cli, contents, sets

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
