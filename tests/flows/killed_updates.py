"""Trainings that die in the middle of an update."""

import signal
import subprocess
import sys
from pathlib import Path

from small_runs import SMALL, Cli

_TRAINING = """
import os
import signal
import sys

from flows.events import StageEvent, listening
from flows.sessions import session
from flows.train import train
from schemas.config_text import parse_config
from storage import Store

root, iteration, step, *overrides = sys.argv[1:]


def die(event: StageEvent) -> None:
    is_update = event.kind == "progress" and event.slot.stage == "optimisation"
    if is_update and event.slot.iteration == int(iteration):
        if event.reason.startswith(f"step {step} of "):
            os.kill(os.getpid(), signal.SIGKILL)


store, config = Store.open(root, create=True), parse_config("", overrides)
with listening(die), session(store, "small", config):
    train(root, "small", config)
"""


def train_until_killed(
    cli: Cli, store: Path, *overrides: str, iteration: int, step: int = 1
) -> None:
    """Trains `small` until it kills itself, and none of its children, once a step is taken.

    Several processes have told of the step by then, and are within the next one.
    """
    arguments = (str(store), str(iteration), str(step), *SMALL, *overrides)
    done = subprocess.run(
        [sys.executable, "-c", _TRAINING, *arguments],
        env=cli.environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    updates = f"run=small/iteration={iteration:04}/split=train/stage=optimisation/manifest.json"
    assert not (store / updates).exists()
