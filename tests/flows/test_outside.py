"""Problem files and policies that are moved, absent or exchanged after a run has used them."""

import shutil
from pathlib import Path

import pytest
from small_runs import SMALL, Cli, sets

from flows.binding import Place
from flows.catalogue import Scope
from flows.rerun import reads_problems
from schemas.config_text import parse_config
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
    said(cli, "rerun", "advantages", *place, "--iteration", "1", "--set", "gamma=0.5",
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


def test_a_run_does_not_go_on_with_a_path_that_leads_nowhere(cli: Cli, moved: Path) -> None:
    place = ("--store", str(moved / "store"), "--run", "mine")
    before = Store.open(moved / "store").run_record("mine")
    done = cli.run("train", *place, *settings(moved / "mistyped"))
    assert done.returncode == 1
    assert f"problems.path: problem file {moved / 'mistyped'}" in done.stderr
    assert Store.open(moved / "store").run_record("mine") == before


@pytest.mark.soak
@pytest.mark.parametrize("name", ["missing.jsonl", "unknown.csv"])
def test_an_evaluation_on_another_file_does_not_take_the_stored_problems(
    cli: Cli, moved: Path, name: str
) -> None:
    (moved / "unknown.csv").write_text("problem,answer\n")
    done = cli.run("evaluate", "--store", str(moved / "store"), "--run", "mine",
                   "--set", f"path={moved / name}", "--into", "other")  # fmt: skip
    assert done.returncode == 1
    assert f"evaluation.path: problem file {moved / name}" in done.stderr
    assert Store.open(moved / "store").run_record("other").status == "failed"


def test_stored_problems_do_not_stand_for_a_file_read_in_another_way(cli: Cli, moved: Path) -> None:
    done = cli.run("rerun", "prompts", "--store", str(moved / "store"), "--run", "mine",
                   "--iteration", "1", "--set", "problems.problem_field=question",
                   "--into", "other")  # fmt: skip
    assert done.returncode == 1
    assert "problems.path: problem file" in done.stderr
    assert Store.open(moved / "store").run_record("other").status == "failed"


@pytest.mark.soak
def test_prompts_are_planned_and_made_again_from_stored_problems(cli: Cli, moved: Path) -> None:
    again = ("prompts", "--store", str(moved / "store"), "--run", "mine", "--iteration", "1",
             "--only", "--set", "rollout.prompts=3")  # fmt: skip
    assert "1 would run" in said(cli, "plan", *again)
    assert "\n1 stage runs computed" in said(cli, "rerun", *again)


@pytest.mark.soak
def test_what_lies_at_the_old_path_by_now_does_not_count(
    cli: Cli, moved: Path, tmp_path: Path
) -> None:
    place = ("--store", str(moved / "store"), "--run", "edited")
    files, copied, other = (tmp_path / name for name in ("files", "copied", "other"))
    shutil.copytree(moved / "elsewhere", files)
    said(cli, "train", *place, *settings(files))
    shutil.copytree(files, copied)
    with (files / "problems.jsonl").open("a") as file:
        file.write('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    shutil.copytree(files, other)
    assert "made with other settings" in cli.run("train", *place, *settings(other)).stderr
    assert "\n0 stage runs computed" in said(cli, "train", *place, *settings(copied))


def test_only_stages_that_ask_problems_read_their_files(moved: Path) -> None:
    old = Place(store=str(moved / "store"), run="mine", iteration=1)
    asked_again = parse_config(overrides=["rollout.resample_rounds=1"])
    assert not reads_problems(old, Scope.of("advantages", "optimisation"), asked_again)
    rollout_alone = Scope.of("rollout", "optimisation")
    assert not reads_problems(old, rollout_alone, parse_config())
    assert reads_problems(old, rollout_alone, asked_again)
    for first, last in (("prompts", "prompts"), ("advantages", None), ("evaluation", None)):
        assert reads_problems(old, Scope.of(first, last), parse_config())
