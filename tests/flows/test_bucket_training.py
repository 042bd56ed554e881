"""A training whose store is a bucket: trained, killed, rerun and continued by real commands."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from places import objects_of
from small_runs import SMALL, Cli, contents, sets

from schemas.errors import StoreError
from storage import Store

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("s3")]


@pytest.fixture
def remote(cli: Cli, s3: str) -> Cli:
    """The command line with the address and the keys of the server."""
    own = ("AWS_", "TURNLEDGER_")
    return Cli({**cli.environment, **{k: v for k, v in os.environ.items() if k.startswith(own)}})


def succeed(cli: Cli, *arguments: str) -> str:
    done = cli.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_in_a_bucket_survives_a_kill_and_is_rerun(
    remote: Cli, s3: str, trained: Path
) -> None:
    train = ("train", "--store", s3, "--run", "small", *sets(*SMALL))
    process = remote.start(*train)
    enough = random.SystemRandom().randrange(5, 50)
    while process.poll() is None:
        with contextlib.suppress(StoreError):  # it is not made yet
            if len(objects_of(Store.open(s3), "run=small/iteration=")) >= enough:
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    succeed(remote, *train)
    store = Store.open(s3)
    assert contents(store) == contents(Store.open(trained))
    succeed(
        remote,
        *("rerun", "advantages", "--store", s3, "--run", "small", "--iteration", "2"),
        *("--set", "gamma=1.0", "--into", "branch"),
    )
    assert "advantages" in succeed(remote, "diff", "small", "branch", "--store", s3)
    told = succeed(remote, "train", "--store", s3, "--run", "branch", "--set", "iterations=3")
    assert "iteration   3" in told
    assert store.run_record("branch").iterations_done == 3
