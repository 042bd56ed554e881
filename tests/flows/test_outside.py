"""Problem files and policies that are moved, absent or exchanged after a run has used them."""

import shutil
from pathlib import Path

import pytest
from small_runs import SMALL, Cli, sets

from storage import Store

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ONE_ITERATION = (*SMALL, "iterations=1", "evaluation.every=1", "rollout.prompts=2")


def settings(folder: Path) -> list[str]:
    return sets(
        *ONE_ITERATION,
        f"problems.path={folder / 'problems.jsonl'}",
        f"evaluation.path={folder / 'held-out.jsonl'}",
    )


def said(cli: Cli, *arguments: str) -> str:
    done = cli.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def used(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in `store`, and the files of its run `mine` in `files`."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "files").mkdir()
    for name in ("problems.jsonl", "held-out.jsonl"):
        shutil.copy(EXAMPLES / name, folder / "files")
    place = ("--store", str(folder / "store"), "--run", "mine")
    said(cli, "train", *place, *settings(folder / "files"))
    return folder


@pytest.fixture
def moved(used: Path, tmp_path: Path) -> Path:
    """The same, in another place, with the files moved to `elsewhere`."""
    shutil.copytree(used, tmp_path / "moved")
    (tmp_path / "moved" / "files").rename(tmp_path / "moved" / "elsewhere")
    # The settings name the files where they were: these are gone.
    (used / "files").rename(used / "away")
    try:
        yield tmp_path / "moved"
    finally:
        (used / "away").rename(used / "files")


def test_a_run_whose_files_are_gone_is_trained_on_and_rerun(cli: Cli, moved: Path) -> None:
    place = ("--store", str(moved / "store"), "--run", "mine")
    said(cli, "train", *place, "--set", "iterations=2")
    said(cli, "rerun", "advantages", *place, "--iteration", "1", "--set", "gamma=1.0",
         "--into", "branch")  # fmt: skip
    told = said(cli, "train", "--store", str(moved / "store"), "--run", "branch",
                "--set", "iterations=2")  # fmt: skip
    assert "iteration   2" in told


def test_a_run_goes_on_with_its_files_in_another_place(cli: Cli, moved: Path) -> None:
    place = ("--store", str(moved / "store"), "--run", "mine")
    told = said(cli, "train", *place, *settings(moved / "elsewhere"))
    assert "0 stage runs computed" in told
    kept = Store.open(moved / "store").run_record("mine").config["problems"]["path"]
    assert kept == str(moved / "elsewhere" / "problems.jsonl")


def test_a_run_does_not_go_on_with_other_problems(cli: Cli, moved: Path) -> None:
    with (moved / "elsewhere" / "problems.jsonl").open("a") as file:
        file.write('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    place = ("--store", str(moved / "store"), "--run", "mine")
    done = cli.run("train", *place, *settings(moved / "elsewhere"))
    assert done.returncode == 1
    assert "run mine was made with other settings (problems.path " in done.stderr


def test_a_new_run_needs_its_files(cli: Cli, moved: Path) -> None:
    place = ("--store", str(moved / "store"), "--run", "new")
    done = cli.run("train", *place, *settings(moved / "files"))
    assert done.returncode == 1
    assert "problems.path: problem file" in done.stderr
    assert not Store.open(moved / "store").has_run("new")
