"""The name of a branch that was refused or failed is not quietly that of a new run."""

import os
import shlex
import signal
from pathlib import Path

import pytest
from small_runs import Cli

from storage import Store


def refused(cli: Cli, *arguments: str) -> str:
    done = cli.run(*arguments)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


def rerun(store: Path, into: str, *more: str, iteration: int = 2) -> list[str]:
    source = ["--store", str(store), "--run", "small", "--iteration", str(iteration)]
    return ["rerun", "optimisation", *source, "--into", into, "--until", "optimisation", *more]


@pytest.mark.parametrize(
    ("name", "iteration", "settings", "reason"),
    [
        ("never-begun", 9, [], "run small holds no rollout of iteration 9"),
        ("stopped-by-guard", 2, ["--set", "max_kl=1e-7"], "was stopped before step 1: divergence"),
    ],
)
def test_training_it_tells_why_and_by_what_command(
    cli: Cli, trained: Path, name: str, iteration: int, settings: list[str], reason: str
) -> None:
    arguments = rerun(trained, name, *settings, iteration=iteration)
    assert reason in refused(cli, *arguments)
    for command in ("train", "plan"):
        told = refused(cli, command, "--store", str(trained), "--run", name)
        assert f"run {name} is a branch without a policy to go on from" in told
        assert reason in told
    assert Store.open(trained).run_record(name).status == "failed"
    line = told.partition("its rerun, turnledger ")[2].partition(", failed")[0]
    without_store = [a for a in arguments if a not in ("--store", str(trained))]
    assert sorted(shlex.split(line)) == sorted(without_store)


def test_asking_again_with_what_was_wrong_mended_makes_it(cli: Cli, trained: Path) -> None:
    refused(cli, *rerun(trained, "asked-twice", iteration=9))
    done = cli.run(*rerun(trained, "asked-twice"))
    assert done.returncode == 0, done.stderr
    assert Store.open(trained).run_record("asked-twice").status == "finished"


def test_what_was_refused_is_not_the_run_that_was_changed_last(cli: Cli, trained: Path) -> None:
    before = cli.run("show", "turns", "--store", str(trained), "-n", "1").stdout
    refused(cli, *rerun(trained, "nothing-there", iteration=9))
    assert cli.run("show", "turns", "--store", str(trained), "-n", "1").stdout == before


def test_what_left_no_record_is_told_to_be_a_new_run(cli: Cli, trained: Path) -> None:
    mistyped = rerun(trained, "mistyped", "--set", "learnin_rate=1e-5")
    assert "learnin_rate" in refused(cli, *mistyped)
    process = cli.start("train", "--store", str(trained), "--run", "mistyped")
    assert process.stdout is not None
    with process.stdout as told:
        assert told.readline() == f"new run mistyped in {trained}\n"
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
