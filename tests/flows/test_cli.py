"""Bad input ends in one clear line, a non-zero exit, and loses nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import SMALL, Cli, sets

from flows import cli as command_line
from schemas.config import RunConfig
from storage import Store


def call(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Runs the command in this process; returns exit code and what went to stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["turnledger", *arguments])
        try:
            command_line.main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err.strip()


def write_problems(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def real(path: Path) -> list[str]:
    held_out = path.with_name("held_out.jsonl")
    held_out.write_text('{"problem": "What is 20 + 1?", "answer": 21}\n')
    return sets(*SMALL, f"problems.path={path}", f"evaluation.path={held_out}")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("advantages.gama=0.9", "advantages.gama is unknown"),
        ("speed=9", "speed is unknown"),
        ("advantages.gamma=1.5", "advantages.gamma: input should be less than or equal to 1"),
        ("rollout.prompts=many", "rollout.prompts: "),
        ("advantages.gamma", "write it as section.key=value"),
        ("problems.path=a.jsonl", "evaluation.path"),
        ("compute.device=cuda:77", "compute.device: torch cannot use cuda:77"),
        ("problems.levels=[0]", "problems.levels.0: "),
    ],
)
def test_train_refuses_setting_by_name(
    override: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    code, error = call("train", "--store", str(store), "--set", override, capsys=capsys)
    assert code == 1
    assert told in error
    assert error.startswith("error: ")
    assert "\n" not in error
    assert not store.exists()


def test_train_refuses_missing_config_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = call("train", "--config", str(tmp_path / "no.toml"), capsys=capsys)
    assert code == 1
    assert "no.toml cannot be read" in error


def test_train_refuses_broken_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text("seed = = 3")
    code, error = call("train", "--config", str(tmp_path / "run.toml"), capsys=capsys)
    assert code == 1
    assert "not valid TOML" in error


def test_config_file_and_override_are_combined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text("seed = 7\n[advantages]\ngamma = 0.8\n")
    done = subprocess_free("train", "--config", str(tmp_path / "run.toml"), "--show-config",
                           "--set", "advantages.estimator=grpo", capsys=capsys)  # fmt: skip
    for line in ("seed = 7", "gamma = 0.8", 'estimator = "grpo"'):
        assert line in done


def test_shown_config_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = subprocess_free("train", "--show-config", capsys=capsys)
    (tmp_path / "run.toml").write_text(shown)
    again = subprocess_free(
        "train", "--config", str(tmp_path / "run.toml"), "--show-config", capsys=capsys
    )
    assert again == shown


def subprocess_free(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command in this process; returns what went to stdout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["turnledger", *arguments])
        with pytest.raises(SystemExit) as end:
            command_line.main()
    assert end.value.code == 0
    return capsys.readouterr().out


def test_train_refuses_missing_problem_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    code, error = call(
        "train", "--store", str(store), *real(tmp_path / "none.jsonl"), capsys=capsys
    )
    assert code == 1
    assert "none.jsonl" in error
    assert not store.exists()


def test_train_refuses_folder_that_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    code, error = call("train", "--store", str(tmp_path / "store"),
                       "--set", f"policy.path={folder}", capsys=capsys)  # fmt: skip
    assert code == 1
    assert "is no model folder: config.json is missing" in error
    assert not (tmp_path / "store").exists()


def test_train_refuses_store_of_newer_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    Store.open(store, create=True)
    (store / "store.json").write_text('{"format": 99}')
    code, error = call("train", "--store", str(store), capsys=capsys)
    assert code == 1
    assert "has format 99" in error
    assert "upgrade turnledger" in error


def test_train_refuses_folder_that_holds_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    code, error = call("train", "--store", str(tmp_path), capsys=capsys)
    assert code == 1
    assert "is no store and not empty" in error
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "is empty"),
        ([{"problem": "1+1?"}], "answer"),
        ([{"question": "1+1?", "answer": "2"}], "problem"),
    ],
)
def test_train_refuses_problem_file_without_usable_rows(
    rows: list[object], told: str, cli: Cli, tmp_path: Path
) -> None:
    path = write_problems(tmp_path / "problems.jsonl", *rows)
    done = cli.run("train", "--store", str(tmp_path / "store"), *real(path))
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "store").rglob("*.parquet"))


def test_a_run_without_results_may_be_mended(cli: Cli, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(8)]
    path = write_problems(tmp_path / "problems.jsonl", *rows)
    arguments = ("train", "--store", str(tmp_path / "store"), "--run", "mine", *real(path))
    assert cli.run(*arguments).returncode == 1
    write_problems(path.with_name("held_out.jsonl"), {"question": "What is 20?", "answer": "20"})
    done = cli.run(*arguments, "--set", "problems.problem_field=question")
    assert done.returncode == 0, done.stderr


def test_show_refuses_an_iteration_without_rows(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = call("show", "turns", "--store", str(trained), "--run", "small",
                       "--iteration", "77", capsys=capsys)  # fmt: skip
    assert code == 1
    assert "no row of iteration 77" in error


def test_train_refuses_other_settings_for_a_run_that_exists(cli: Cli, trained: Path) -> None:
    done = cli.run("train", "--store", str(trained), "--run", "small",
                   *sets(*SMALL, "advantages.gamma=0.8"))  # fmt: skip
    assert done.returncode == 1
    assert "advantages.gamma 0.9 -> 0.8" in done.stderr
    assert Store.open(trained).run_record("small").status == "finished"


def test_train_refuses_a_run_that_is_being_trained(cli: Cli, trained: Path) -> None:
    with Store.open(trained).lock_run("small"):
        done = cli.run("train", "--store", str(trained), "--run", "small", *sets(*SMALL))
    assert done.returncode == 1
    assert "being trained by another process" in done.stderr


def test_more_iterations_continue_a_run(cli: Cli, trained: Path) -> None:
    cli.train(trained, run="longer")
    output = cli.train(trained, "iterations=3", run="longer")
    assert "iteration   3" in output
    assert Store.open(trained).run_record("longer").iterations_done == 3


def test_full_disk_ends_in_one_line(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        done = cli.run("train", "--store", str(disk / "store"), *sets(*SMALL))
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert done.stderr.count("\n") == 1
        tables = list((disk / "store").rglob("*.parquet"))
        assert all((table.parent / "manifest.json").exists() for table in tables)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("command", ["runs", "show turns", "rerun advantages --iteration 1"])
def test_commands_refuse_a_store_that_is_not_there(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = call(*command.split(), "--store", str(tmp_path / "none"), capsys=capsys)
    assert code == 1
    assert "no store at" in error
    assert not (tmp_path / "none").exists()


def test_show_refuses_unknown_table(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = call("show", "terns", "--store", str(trained), capsys=capsys)
    assert code == 1
    assert "terns" in error
    assert "turn_rewards" in error


def test_show_refuses_unknown_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = call("show", "turns", "--store", str(trained), "--run", "nix", capsys=capsys)
    assert code == 1
    assert "known runs: " in error
    assert "small" in error


def test_rerun_refuses_unknown_stage(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = call(
        "rerun", "advantage", "--iteration", "1", "--store", str(trained), capsys=capsys
    )
    assert code == 1
    assert "stages: prompts, rollout" in error


def test_show_tells_counts_schema_and_rows(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = subprocess_free("show", "turns", "--store", str(trained), "--run", "small",
                          "--iteration", "1", "-n", "3", capsys=capsys)  # fmt: skip
    assert "turns of small, train: " in out
    assert "token_ids" in out
    assert "List(Int32)" in out


def test_runs_lists_status_and_progress(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = subprocess_free("runs", "--store", str(trained), capsys=capsys)
    line = next(line for line in out.splitlines() if line.split()[:1] == ["small"])
    assert "finished" in line
    assert "2 of 2" in line


def test_help_answers_without_loading_models() -> None:
    code = "import sys, flows.cli; print({'torch', 'prefect', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_only_tells_of_runs_does_not_load_torch() -> None:
    code = "import sys, flows.reporters, flows.publishing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_help_fills_the_lines_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = subprocess_free("rerun", "--help", capsys=capsys)
    told = out[out.index("What stands before") : out.index("Example:")].strip()
    lengths = [len(line.strip()) for line in told.splitlines()]
    assert len(lengths) > 2
    assert min(lengths[:-1]) > 60


def test_help_of_train_names_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    out = subprocess_free("train", "--help", capsys=capsys)
    named = out[out.index("The sections of the config") : out.index("Example:")]
    missing = [name for name in RunConfig.model_fields if not re.search(rf"\b{name}\b", named)]
    assert missing == []


@pytest.mark.parametrize("command", ["train", "quickstart", "rerun", "evaluate", "runs", "show"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--store" in subprocess_free(command, "--help", capsys=capsys)


def test_usage_error_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = call("train", "--no-such-option", capsys=capsys)
    assert code == 2
