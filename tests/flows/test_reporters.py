"""Quiet and JSON lines: what a scheduled job reads."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, Cli, sets

PAGE = Path(__file__).parents[2] / "docs" / "watching.md"
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| [^|]+ \|$", re.MULTILINE)


def documented_keys() -> dict[str, set[str]]:
    """Returns event to its keys as the page lists them, beside `time`, `event` and `run`."""
    table = PAGE.read_text().partition("| event | keys | when |\n")[2].partition("\n\n")[0]
    # What a key may be stands in brackets behind it.
    return {
        event: set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", keys)))
        for event, keys in ROW.findall(table)
    }


def check_keys(lines: list[dict[str, Any]]) -> None:
    keys = documented_keys()
    for line in lines:
        assert line.keys() == keys[line["event"]] | {"time", "event", "run"}


def objects(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


@pytest.fixture(scope="module")
def told(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of a training from nothing."""
    store = str(tmp_path_factory.mktemp("told") / "store")
    done = cli.run("train", "--store", store, "--run", "small", "--json", *sets(*SMALL))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return objects(done.stdout)


def test_every_line_has_the_keys_of_its_event(told: list[dict[str, Any]]) -> None:
    check_keys(told)
    for line in told:
        at = datetime.fromisoformat(line["time"])
        assert str(at.tzinfo) == "UTC"


def test_a_training_tells_begin_milestones_and_end(told: list[dict[str, Any]]) -> None:
    main = [(t["event"], t.get("iteration")) for t in told if t["event"] != "stage"]
    assert main == [
        ("begin", None),
        ("cold_start", 0),
        ("evaluation", 0),
        ("iteration", 1),
        ("iteration", 2),
        ("evaluation", 2),
        ("end", None),
    ]
    assert told[-1]["status"] == "finished"
    assert told[-1]["computed"] == sum(line.get("state") == "computed" for line in told)


def test_the_speed_of_sampling_is_told(told: list[dict[str, Any]]) -> None:
    iterations = [line for line in told if line["event"] == "iteration"]
    assert all(line["tokens_per_s"] > 0 for line in iterations)
    assert iterations[0]["left_s"] > 0


def test_a_rerun_tells_what_changed(cli: Cli, trained: Path) -> None:
    arguments = ("--store", str(trained), "--run", "small", "--iteration", "2")
    done = cli.run(
        *("rerun", "advantages", *arguments, "--only"),
        *("--set", "gamma=0.5", "--into", "told-by-json", "--json"),
    )
    check_keys(objects(done.stdout))
    changes = next(line for line in objects(done.stdout) if line["event"] == "changes")
    assert changes["source"] == "small"
    assert changes["turns"] > 0


@pytest.mark.parametrize("mode", ["--json", "--quiet"])
def test_an_error_is_a_line_for_persons_and_the_end_for_programs(
    cli: Cli, tmp_path: Path, mode: str
) -> None:
    done = cli.run("train", "--store", str(tmp_path / "s"), mode, "--set", "speed=9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    lines = objects(done.stdout)
    if mode == "--quiet":
        assert not lines
    else:
        assert [line["event"] for line in lines] == ["end"]
        assert lines[0]["status"] == "failed"
        assert lines[0]["exit_code"] == 1
        assert lines[0]["message"] in done.stderr


def test_quiet_says_nothing(cli: Cli, trained: Path) -> None:
    place = ("--store", str(trained), "--run", "small")
    for command in (("train", *place), ("evaluate", *place)):
        done = cli.run(*command, "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_quiet_and_json_contradict_each_other(cli: Cli, trained: Path) -> None:
    done = cli.run("watch", "small", "--store", str(trained), "--quiet", "--json")
    assert done.returncode == 1
    assert "take one of them" in done.stderr
