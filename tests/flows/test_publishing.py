"""Figures for TensorBoard, MLflow and W&B, by their own clients, read back by what reads them."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import Cli

from flows.publishing import publish
from flows.watching import new_events
from flows.writers import open_writer
from flows.writers.points import Header, Key, Point, Points
from schemas.errors import ConfigError
from stages.execution.bubblewrap import bundled_bwrap
from storage import Store, open_table

WITHOUT_NETWORK = """
import subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
lines = open("/proc/net/snmp").read().splitlines()
names, values = (line.split() for line in lines if line.startswith("Ip: "))
print("tried", dict(zip(names, values))["OutNoRoutes"])
sys.stderr.write(done.stderr)
sys.exit(done.returncode)
"""
"""Runs a command and prints how many packets it wanted to send where no network leads."""


@pytest.fixture(scope="module")
def points(trained: Path) -> list[Point]:
    """The points of the run `small`, as the store has them."""
    store = Store.open(trained)
    reader = Points(store, store.run_record("small"))
    return [p for _, event in new_events(store, "small", {}) for p in reader.of(event)]


def values(points: Sequence[Point]) -> dict[Key, float]:
    return {point.key: point.value for point in points}


def read_tensorboard(folder: Path) -> dict[Key, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    files.Reload()
    return {(n, s.step): s.value for n in files.Tags()["scalars"] for s in files.Scalars(n)}


def read_wandb(folder: Path) -> Iterator[Any]:
    """Yields the records of an offline file: LevelDB's log format, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = next(folder.glob("wandb/offline-run-*/run-*.wandb")).read_bytes()
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # a block's end is too short for another head
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_steps_are_counted_through_the_run(trained: Path, points: list[Point]) -> None:
    updates = open_table(trained, "small", "updates").collect()
    losses = [(p.step, p.value) for p in points if p.name == "updates/loss"]
    assert [value for _, value in sorted(losses)] == updates["loss"].to_list()
    expected = [(i - 1) * 2 + step for i, step in updates.select("iteration", "step").rows()]
    assert sorted(step for step, _ in losses) == expected
    accuracy = [p.step for p in points if p.name == "evaluations/held_out/avg_at_k"]
    assert accuracy == [0, 2]
    assert [p.step for p in points if p.name == "rollouts/reward"] == [1, 2]


def test_no_point_is_there_twice(points: list[Point]) -> None:
    assert len({point.key for point in points}) == len(points) > 0


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    kinds = {
        "tensorboard": f"tensorboard:{tmp_path / 'tb'}",
        "mlflow": f"mlflow:sqlite:///{tmp_path / 'mlflow.db'}",
        "wandb": "wandb:ours",
    }
    return kinds[request.param]


every_target = pytest.mark.parametrize("target", ["tensorboard", "mlflow", "wandb"], indirect=True)


@every_target
def test_what_was_published_is_not_published_again(
    trained: Path, points: list[Point], target: str
) -> None:
    store = Store.open(trained)
    first, second = publish(store, "small", target), publish(store, "small", target)
    assert (first.added, first.known) == (len(points), 0)
    assert (second.added, second.known) == (0, len(points))


@every_target
def test_what_an_earlier_publishing_left_out_is_added(
    trained: Path, points: list[Point], target: str
) -> None:
    store = Store.open(trained)
    writer = open_writer(target, Header.of(store.run_record("small")))
    writer.known()
    writer.write(points[:5])
    writer.close("running")
    assert publish(store, "small", target).added == len(points) - 5


def test_tensorboard_shows_the_figures(trained: Path, points: list[Point], tmp_path: Path) -> None:
    publish(Store.open(trained), "small", f"tensorboard:{tmp_path}")
    folder = next(tmp_path.iterdir())
    assert folder.name.startswith("small-")
    assert read_tensorboard(folder) == pytest.approx(values(points), rel=1e-6)


def test_mlflow_has_figures_settings_and_state(
    trained: Path, points: list[Point], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    publish(Store.open(trained), "small", f"mlflow:{uri}")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("turnledger")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "small"
    assert run.info.status == "FINISHED"
    assert run.data.params["iterations"] == "2"
    there = {
        (name, metric.step): metric.value
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    }
    assert there == values(points)


def test_wandb_keeps_the_figures_in_its_offline_file(
    trained: Path, points: list[Point], tmp_path: Path, cli: Cli
) -> None:
    # In a process of its own: W&B's service keeps nothing of a second run of an id in a process.
    offline = Cli({**cli.environment, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)})
    done = offline.run("publish", "small", "--to", "wandb:ours", "--store", str(trained))
    assert done.returncode == 0, done.stderr
    there: dict[Key, float] = {}
    for record in read_wandb(tmp_path):
        if record.WhichOneof("record_type") == "history":
            row = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in row.items():
                if "/" in name:
                    axis = "optimiser_step" if name.startswith("updates/") else "iteration"
                    there[name, row[axis]] = value
    assert there == pytest.approx(values(points))


@every_target
def test_nothing_outside_this_machine_is_asked(
    trained: Path, cli: Cli, target: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "flows.cli", "publish", "small", "--to", target]
    done = subprocess.run(
        [
            *(str(bundled_bwrap()), "--dev-bind", "/", "/", "--unshare-net"),
            *(sys.executable, "-c", WITHOUT_NETWORK, *command, "--store", str(trained)),
        ],
        env={**cli.environment, **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tried 0\n"


def test_a_run_is_followed_until_it_ends(
    trained: Path, tmp_path: Path, points: list[Point]
) -> None:
    done = publish(Store.open(trained), "small", f"tensorboard:{tmp_path}", until_end=True)
    assert done.added == len(points)


def test_a_later_run_of_the_name_is_another_one(trained: Path) -> None:
    record = Store.open(trained).run_record("small")
    later = record.model_copy(update={"created_at": record.updated_at})
    assert Header.of(record).identity != Header.of(later).identity
    continued = record.model_copy(update={"status": "running", "iterations_done": 9})
    assert Header.of(record).identity == Header.of(continued).identity


@pytest.mark.parametrize("target", ["elsewhere:x", "tensorboard", "mlflow:"])
def test_an_unknown_target_is_refused(target: str, trained: Path) -> None:
    with pytest.raises(ConfigError, match="write tensorboard:FOLDER, mlflow:URI, wandb:PROJECT"):
        open_writer(target, Header.of(Store.open(trained).run_record("small")))


def test_a_client_that_is_missing_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'turnledger\[mlflow\]'"):
        open_writer("mlflow:x", Header.of(Store.open(trained).run_record("small")))


def test_a_server_that_does_not_answer_is_one_line(trained: Path, cli: Cli) -> None:
    quick = Cli({**cli.environment, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    done = quick.run(
        "publish", "small", "--to", "mlflow:http://127.0.0.1:9", "--store", str(trained)
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: MLflow: ")
    assert done.stderr.count("\n") == 1
