"""Deployments on a real Prefect server: served, and by a worker.

What is served has SQLite and a store in a folder, the worker has PostgreSQL and a bucket.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from deployed_nights import (
    INTERVAL_S,
    ROOT,
    SETTINGS,
    Nights,
    two_nights,
    wait_for,
    webhook,
    write_deployments,
)
from prefect.states import Cancelling

from flows.policies import stored_policy
from tests.prefect_servers import prefect_server_on
from tests.s3_places import use_s3

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_500)]


OTHERS = ("TURNLEDGER_STORE", "PWD", "PREFECT_LOGGING")
"""Beginnings of environment variables that other tests have set in this process."""


@pytest.fixture(scope="module", params=["folder, served, sqlite", "bucket, worker, postgresql"])
def nights(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    (folder / "inbox").mkdir()
    (folder / "docs").symlink_to(ROOT / "docs")
    with pytest.MonkeyPatch.context() as patched, ExitStack() as running:
        if "served" in request.param:
            place, url = str(folder / "store"), request.getfixturevalue("prefect_server")
        else:
            home = tmp_path_factory.mktemp("server")
            url = running.enter_context(prefect_server_on("postgresql", home))
            place = use_s3(request.getfixturevalue("s3_server"), patched, folder)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(OTHERS)},
            "PWD": str(folder),  # as a shell says it, from which prefect.yaml takes it
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        command = ["flows.cli", "serve", "nightly", "--interval", str(INTERVAL_S)]
        command += ["--config", str(SETTINGS), "--store", place]
        if "worker" in request.param:
            command = deploy(folder, place, environment)
        address, notified = running.enter_context(webhook())
        made = Nights(folder, place, url, command, environment, notified)
        running.enter_context(made.automation("a flow run failed", url=repr(address)))
        running.enter_context(made.starting_flow_runs())
        two_nights(made)
        yield made
    shutil.rmtree(folder)


def deploy(folder: Path, store: str, environment: dict[str, str]) -> list[str]:
    """Does what the page says of work pools; returns the command of a worker."""
    write_deployments(folder, store)
    for step in ("work-pool create turnledger --type process", "deploy --all"):
        subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *step.split()],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
        )
    return ["prefect", "worker", "start", "--pool", "turnledger"]


def test_a_failed_night_is_notified_with_its_reason_in_one_line(nights: Nights) -> None:
    assert nights.notified[0]["text"] == f"nightly: {nights.ends['failed'].message}"
    assert re.fullmatch(
        r".*ProblemFileError: problems\.path: .*inbox.*", nights.notified[0]["text"]
    )


def test_a_night_that_comes_while_another_trains_is_cancelled(nights: Nights) -> None:
    assert nights.ends["at once"].is_cancelled()
    assert nights.ends["at once"].message == "Deployment concurrency limit reached."
    assert nights.ends["first"].is_completed(), nights.ends["first"].message


def test_the_log_of_a_night_is_with_the_server(nights: Nights) -> None:
    assert any("Beginning flow run" in line for line in nights.logged), nights.logged


def test_the_second_night_begins_with_the_last_policy_of_the_first(nights: Nights) -> None:
    config = nights.store.run_record("nightly-0002").config
    of_first = stored_policy(nights.store, "nightly-0001", 1)
    assert config["policy"]["path"] == str(nights.store.path(of_first))
    assert config["cold_start"]["steps"] == 0


def test_the_report_of_a_night_compares_it_with_the_night_before(nights: Nights) -> None:
    report = next(r for r in nights.reports if r.startswith("# nightly-0002"))
    assert "| before: the last policy of nightly-0001 | 0." in report
    assert re.search(r"\| gain, with its 95 % interval \| [+-]\d\.\d+ \([+-]\d\.\d+ to ", report)
    assert "4 of them new since nightly-0001" in report


def test_a_night_without_new_problems_is_recorded_and_makes_no_run(nights: Nights) -> None:
    assert nights.ends["idle"].name == "NothingNew"
    assert "holds what nightly-0002" in (nights.ends["idle"].message or "")
    assert nights.runs == ["nightly-0001", "nightly-0002"]


def test_an_evaluation_and_a_rerun_at_once_make_a_branch_each(nights: Nights) -> None:
    asked = {"run": "nightly-0001"}
    started = [
        nights.start("evaluate-session/evaluate", **asked, overrides=["samples=3"]),
        nights.start(
            *("rerun-session/rerun",),
            **asked,
            **{"stage": "advantages", "iteration": 1, "overrides": ["gamma=0.95"]},
        ),
    ]
    states = [nights.end(run) for run in started]
    assert all(state.is_completed() for state in states), [state.message for state in states]
    branches = [nights.store.run_record(f"nightly-0001.{number}").parent for number in (1, 2)]
    assert {branch.stage for branch in branches if branch} == {"evaluation", "advantages"}


def test_a_cancelled_flow_run_leaves_an_interrupted_run_that_continues(nights: Nights) -> None:
    long = nights.train("long", 500)
    wait_for("an iteration", lambda: nights.done("long") >= 1, nights.log)
    with nights.client() as client:
        client.set_flow_run_state(long.id, Cancelling())
    assert nights.end(long).is_cancelled()
    assert nights.status("long") == "interrupted"
    state = nights.end(nights.train("long", nights.done("long")))
    assert state.is_completed(), state.message
    assert nights.status("long") == "finished"


def test_a_killed_flow_run_is_notified_and_the_next_one_continues(nights: Nights) -> None:
    # Prefect's server, by a race of its own, holds an event back for 15 minutes now and then.
    assert nights.tells_of_a_kill("killed") or nights.tells_of_a_kill("killed")
    assert re.match("train: Process exited .* SIGKILL", nights.notified[-1]["text"])
    assert nights.status("killed") == "interrupted"
    state = nights.end(nights.train("killed", nights.done("killed") + 1))
    assert state.is_completed(), state.message


def test_a_flow_run_outlives_its_worker_and_is_missed_when_it_dies_itself(nights: Nights) -> None:
    with nights.automation("a flow run is missed", within="timedelta(seconds=40)"):
        alone = nights.train("alone", 500)
        wait_for("an iteration", lambda: nights.done("alone") >= 1, nights.log)
        process, done, told = nights.flow_process(), nights.done("alone"), len(nights.notified)
        nights.kill_worker()
        wait_for("iterations alone", lambda: nights.done("alone") >= done + 3, nights.log)
        os.kill(process, signal.SIGKILL)
        assert nights.end(alone).is_crashed()
        wait_for("a notification", lambda: len(nights.notified) > told, nights.log)
    assert (
        nights.notified[-1]["text"] == "train: The process of the flow run is not heard any more."
    )
