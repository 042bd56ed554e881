"""The commands that drop, collect, export and import, on a real training."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import SMALL, Cli, sets

from storage import Store, open_table
from storage.digests import file_digest, files_below, folder_digest


def said(cli: Cli, *arguments: str) -> str:
    done = cli.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(cli: Cli, *arguments: str) -> str:
    done = cli.run(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


@pytest.fixture
def store(cli: Cli, trained: Path, tmp_path: Path) -> Path:
    """A store of its own with the run `small`."""
    folder = tmp_path / "store"
    said(cli, "export", "small", str(folder), "--store", str(trained))
    return folder


def run_files(store: Path, run: str) -> dict[str, str]:
    folder = store / f"run={run}"
    names = [n for n in files_below(folder) if n not in ("run.lock", "run.pid")]
    return {name: file_digest(folder / name) for name in names}


def test_training_an_exported_run_computes_nothing(cli: Cli, store: Path) -> None:
    assert "\n0 stage runs computed" in cli.train(store)


def test_training_an_imported_run_computes_nothing(cli: Cli, store: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    out = said(cli, "import", str(store), "--as", "theirs", "--store", str(fresh))
    assert out == f"imported into {fresh}: theirs\n"
    assert "\n0 stage runs computed" in cli.train(fresh, run="theirs")
    first, second = (
        open_table(place, run, "advantages").drop("run").collect()
        for place, run in ((store, "small"), (fresh, "theirs"))
    )
    assert first.equals(second)


def test_a_stage_of_an_imported_run_is_rerun_alone(cli: Cli, store: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    said(cli, "import", str(store), "--store", str(fresh))
    out = said(
        cli, "rerun", "advantages", "--only", "--iteration", "2", "--set", "gamma=0.5",
        "--store", str(fresh), "--run", "small", "--into", "branch",
    )  # fmt: skip
    assert "1 stage runs computed" in out


def test_a_branch_outlives_the_run_that_was_dropped_and_collected(cli: Cli, store: Path) -> None:
    at = ("--store", str(store))
    said(
        cli, "rerun", "advantages", "--iteration", "1", "--set", "gamma=0.5",
        "--run", "small", "--into", "branch", *at,
    )  # fmt: skip
    before = run_files(store, "branch")
    dropped = said(cli, "drop", "small", *at)
    assert dropped.startswith("run small dropped: `turnledger gc` frees ")
    assert len(dropped.splitlines()) == 1
    assert "run=small" in said(cli, "gc", "--dry-run", *at)
    assert said(cli, "gc", *at).endswith(" removed\n")
    assert run_files(store, "branch") == before
    assert not (store / "run=small").exists()
    assert said(cli, "gc", *at) == f"nothing to remove in {store}\n"
    # Trained from nothing, the run takes over what the branch shares with it.
    out = cli.train(store)
    computed, reused = counts(out)
    assert computed > 0
    assert reused > 10
    assert run_files(store, "branch") == before


def counts(out: str) -> tuple[int, int]:
    """Returns how many stage runs were computed, and how many found."""
    words = next(line for line in out.splitlines() if "stage runs computed" in line).split()
    return int(words[0]), int(words[4])


def test_a_dry_run_changes_nothing(cli: Cli, store: Path) -> None:
    said(cli, "drop", "small", "--store", str(store))
    before = folder_digest(store)
    out = said(cli, "gc", "--dry-run", "--store", str(store))
    assert "`turnledger gc` removes them" in out
    assert folder_digest(store) == before


def test_a_drop_is_undone(cli: Cli, store: Path) -> None:
    before = run_files(store, "small")
    said(cli, "drop", "small", "--store", str(store))
    assert said(cli, "runs", "--store", str(store)).startswith("no run in ")
    assert said(cli, "drop", "small", "--undo", "--store", str(store)) == "run small is back\n"
    assert run_files(store, "small") == before


def test_unknown_runs_and_taken_names_are_one_line(cli: Cli, store: Path, tmp_path: Path) -> None:
    at = ("--store", str(store))
    assert "known runs: small" in refused(cli, "drop", "smal", *at)
    assert "known runs: small" in refused(cli, "export", "smal", str(tmp_path / "out"), *at)
    assert "take another name with --as" in refused(cli, "import", str(store), *at)
    assert "no store at" in refused(cli, "import", str(tmp_path / "none"), *at)
    assert "not empty" in refused(cli, "export", "small", str(tmp_path), *at)


TRAINING = """
import sys
from storage import Store
with Store.open(sys.argv[1]).lock_run("small"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_collecting_and_dropping_are_refused_during_a_training(cli: Cli, store: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(store)], stdin=-1, stdout=-1, text=True
    ) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "held\n"
        for command in (("gc",), ("gc", "--dry-run"), ("drop", "small")):
            told = refused(cli, *command, "--store", str(store))
            assert f"run small is being trained by another process (pid {training.pid})" in told
        training.kill()


def test_collecting_during_a_real_training_is_refused_and_harms_nothing(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    training = cli.start("train", "--store", str(store), "--run", "small", *sets(*SMALL))
    while not (store / "run=small" / "run.json").exists():
        assert training.poll() is None
    refusals = 0
    while training.poll() is None:
        done = cli.run("gc", "--store", str(store))
        refusals += "run small is being trained" in done.stderr
        assert done.returncode == 0 or "is being trained" in done.stderr
    _, error = training.communicate()
    assert training.returncode == 0, error
    assert refusals > 0
    runs = [Store.open(place).results("small") for place in (store, trained)]
    first, second = ({uri: m.fingerprint_digest for uri, m in results} for results in runs)
    assert first == second


def test_a_file_that_cannot_be_written_is_one_line(cli: Cli, store: Path) -> None:
    for command in ("plan", "lineage advantages"):
        place = ("--store", str(store), "--run", "small", "--to", "/nonexistent/x.parquet")
        told = refused(cli, *command.split(), *place)
        assert (
            told == "error: /nonexistent/x.parquet cannot be written: No such file or directory\n"
        )


def test_a_name_that_is_too_long_is_one_line(cli: Cli) -> None:
    assert refused(cli, "train", "--store", "x" * 300).endswith("File name too long\n")


def test_lineage_of_an_evaluation_needs_no_split(cli: Cli, store: Path) -> None:
    told = said(cli, "lineage", "evaluations", "--run", "small", "--store", str(store))
    assert told.startswith("evaluations of small, iteration 2")


def test_a_damaged_record_is_listed_and_its_run_can_be_dropped(cli: Cli, store: Path) -> None:
    (store / "run=small/run.json").write_text("{")
    place = ("--store", str(store))
    assert "damaged run record" in said(cli, "runs", *place)
    assert refused(cli, "show", "turns", "--run", "small", *place).endswith(
        "put it back from a copy, or `turnledger drop small`\n"
    )
    said(cli, "drop", "small", *place)
    assert said(cli, "runs", *place).startswith("no run in")


def test_a_folder_of_prefect_that_cannot_be_written_is_refused(cli: Cli, store: Path) -> None:
    alone = {k: v for k, v in cli.environment.items() if k != "PREFECT_API_URL"}
    other = Cli({**alone, "PREFECT_HOME": "/proc/nope"})
    before = Store.open(store).runs()
    done = other.run("train", "--run", "new", "--store", str(store), *sets(*SMALL))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]  # before it Prefect warns of the same
    assert last.startswith("error: PREFECT_HOME=/proc/nope cannot be written")
    assert Store.open(store).runs() == before
