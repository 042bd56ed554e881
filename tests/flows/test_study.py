"""A small study, really trained: killed, gone on with, reported, and found stored."""

import shutil
import signal
import subprocess
from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli

from storage import Store
from tests.process_trees import alive, processes_below, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
FILE = Path(__file__).parents[2] / "docs" / "examples" / "study.toml"


@pytest.fixture(scope="module")
def killed(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose study was killed while its second batch was trained."""
    store = tmp_path_factory.mktemp("study") / "store"
    started = cli.start("study", str(FILE), "--store", str(store))
    assert wait_until(lambda: store.exists() and begun(store, "tiny-one-grpo-"), 240)
    below = processes_below(started.pid)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert wait_until(lambda: not alive({*below}), 60), "trainings live on without their study"
    return store


@pytest.fixture(scope="module")
def reported(cli: Cli, killed: Path) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
    """What the same command said afterwards, the store, and the folder of the report."""
    folder = killed.parent / "report"
    done = cli.run("study", str(FILE), "--store", str(killed), "--to", str(folder), timeout_s=500)
    assert done.returncode == 0, done.stderr
    return done, killed, folder


def begun(store: Path, prefix: str) -> bool:
    return any(path.name.startswith(f"run={prefix}") for path in store.iterdir())


def test_a_killed_study_goes_on(
    reported: tuple[subprocess.CompletedProcess[str], Path, Path],
) -> None:
    done, store, _ = reported
    assert "tuning: 0 of 2 trainings are stored" in done.stdout
    names = set(Store.open(store).run_names())
    assert {
        f"tiny-one-{arm}-0.00025-s{seed}" for arm in ("grpo", "gtpo") for seed in (1, 2)
    } < names


def test_arms_share_what_they_have_in_common(
    reported: tuple[subprocess.CompletedProcess[str], Path, Path],
) -> None:
    _, store, _ = reported
    opened = Store.open(store)
    runs = [name for name in opened.run_names() if name.endswith("-s1")]
    made = [
        name
        for name in runs
        for _, manifest in opened.results(name)
        if manifest.slot.stage == "cold_start" and manifest.adopted_from is None
    ]
    assert len(runs) == 3
    assert made == ["tiny-one-start-s1"]


def test_the_report_has_tables_of_what_it_says(
    reported: tuple[subprocess.CompletedProcess[str], Path, Path],
) -> None:
    done, _, folder = reported
    text = (folder / "results.md").read_text()
    assert text.rstrip() in done.stdout
    assert "Nothing is learnt, so nothing differs." in text
    assert "gtpo: +0.0 points of final on one" in text
    assert "no difference is shown" in text
    curves = pl.read_parquet(folder / "main-curves.parquet")
    assert curves.group_by("arm").len().sort("arm").rows() == [("grpo", 4), ("gtpo", 4)]
    sampled = curves.filter(iteration=1)["tokens"]
    assert (sampled > 0).all()
    assert (folder / "main.png").stat().st_size > 10_000


def test_gradients_are_measured_and_stored_as_results_of_the_run(
    reported: tuple[subprocess.CompletedProcess[str], Path, Path],
) -> None:
    _, store, folder = reported
    for arm in ("grpo", "gtpo"):
        run = f"tiny-one-{arm}-0.00025-s1"
        kept = [m for _, m in Store.open(store).results(run) if m.slot.stage == "gradient_noise"]
        assert [m.slot.iteration for m in kept] == [1]
    # Its groups hardly ever differ in reward, so there is no gradient to see.
    assert "noise_scale" in pl.read_parquet(folder / "main-gradients.parquet").columns


def test_a_study_that_is_trained_trains_nothing(
    cli: Cli, reported: tuple[subprocess.CompletedProcess[str], Path, Path]
) -> None:
    _, store, _ = reported
    again = cli.run("study", str(FILE), "--store", str(store))
    assert "main: 4 of 4 trainings are stored" in again.stdout


def test_what_is_stored_is_reported_whatever_made_it(
    cli: Cli, reported: tuple[subprocess.CompletedProcess[str], Path, Path], tmp_path: Path
) -> None:
    _, store, folder = reported
    changed = tmp_path / "study.toml"
    settings = FILE.read_text().replace("cold_start.steps=5", "cold_start.steps=6")
    changed.write_text(settings)
    again = cli.run(
        "study", str(changed), "--store", str(store), "--stored", "--to", str(tmp_path / "report")
    )
    assert again.returncode == 0, again.stderr
    assert "trainings are stored" not in again.stdout
    assert (tmp_path / "report" / "results.md").read_text() == (folder / "results.md").read_text()


def test_what_is_not_stored_cannot_be_reported(cli: Cli, tmp_path: Path) -> None:
    Store.open(tmp_path / "store", create=True)
    done = cli.run("study", str(FILE), "--store", str(tmp_path / "store"), "--stored")
    assert done.returncode == 1
    assert "has no run tiny-one-grpo-0.00025-s101: train the study's piece first" in done.stderr


def test_a_training_that_fails_is_named(
    cli: Cli, killed: Path, tmp_path: Path, reported: object
) -> None:
    store = tmp_path / "store"
    shutil.copytree(killed, store)
    run = store / "run=tiny-one-gtpo-0.00025-s101"
    record = run / "run.json"
    record.write_text(record.read_text().replace('"temperature": 1.0', '"temperature": 0.5'))
    shutil.rmtree(run / "iteration=0001")
    done = cli.run("study", str(FILE), "--store", str(store))
    assert done.returncode == 1
    assert "error: training tiny-one-gtpo-0.00025-s101 failed: " in done.stderr
    assert "was made with other settings" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_study_with_one_line(cli: Cli, tmp_path: Path, number: int) -> None:
    store = tmp_path / "store"
    started = cli.start("study", str(FILE), "--store", str(store))
    assert wait_until(lambda: store.exists() and begun(store, "tiny-one-"), 240)
    below = processes_below(started.pid)
    started.send_signal(number)
    _, told = started.communicate(timeout=120)
    assert started.returncode == 130
    assert told == "interrupted: the same command goes on\n"
    assert wait_until(lambda: not alive({*below}), 60), "something lives on without its study"


def test_a_plan_trains_nothing(cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = cli.run("study", str(FILE), "--store", str(store), "--plan")
    assert "tuning  2 trainings on one, learning rates 0.00025" in done.stdout
    assert "main  4 trainings: grpo, gtpo on one, 2 seeds" in done.stdout
    assert not store.exists()


def test_unknown_pieces_are_refused(cli: Cli, tmp_path: Path) -> None:
    done = cli.run("study", str(FILE), "--store", str(tmp_path / "s"), "--piece", "mian")
    assert done.returncode == 1
    assert done.stderr == "error: piece mian is unknown; pieces: main\n"
