"""The temporary server of a command does what the command needs, and ends with it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import server_guard
from tests.process_trees import alive, processes_below, wait_until

COMMAND = """
import time
from flows.prefect_server import prefect_started

with prefect_started(), prefect_started():
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that has started a server of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        env={**environment, "PREFECT_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_a_temporary_server_ends_with_a_command_that_is_killed(
    command: subprocess.Popen[str], how: int
) -> None:
    below = processes_below(command.pid)
    assert sum("prefect.server" in name for name in below.values()) == 1
    assert sum("server_guard" in name for name in below.values()) == 1
    command.send_signal(how)
    command.wait()
    assert wait_until(lambda: not alive(set(below)), seconds=60)


SERVICES = """
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from flows.prefect_server import prefect_started

with prefect_started(), get_client(sync_client=True) as client:
    services = client.request("GET", "/admin/settings").json()["server"]["services"]
    heartbeat_s = get_current_settings().flows.heartbeat_frequency
names = ["triggers", "event_persister", "task_run_recorder", "late_runs"]
print(*(services[name]["enabled"] for name in names), heartbeat_s)
"""


IMPORTED = """
import sys
from flows.prefect_server import has_prefect_server, prefect_started
with prefect_started():
    print(has_prefect_server(), "prefect.server.api.server" in sys.modules)
"""


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "False False False True None"),
        (
            {
                "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED": "true",
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
            },
            "False False True True 60",
        ),
    ],
    ids=["by default", "where it is asked to"],
)
def test_nothing_is_recorded_of_task_runs_and_no_heartbeat_sent_unless_asked(
    tmp_path: Path, asked: dict[str, str], told: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    said = subprocess.run(
        [sys.executable, "-c", SERVICES],
        env={**environment, "PREFECT_HOME": str(tmp_path), **asked},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert said.stdout.split() == told.split()


def test_a_server_that_runs_is_used_without_its_code() -> None:
    said = subprocess.run(
        [sys.executable, "-c", IMPORTED], stdout=subprocess.PIPE, text=True, check=True
    )
    assert said.stdout.split() == ["True", "False"]


def test_a_guard_ends_when_the_server_is_ended_by_its_owner() -> None:
    server = subprocess.Popen(["sleep", "600"])
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", server_guard.__file__, str(os.getpid()), str(server.pid)]
    )
    with pytest.raises(subprocess.TimeoutExpired):
        guard.wait(2)
    server.kill()
    server.wait()
    assert guard.wait(30) == 0


def test_a_server_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    server = subprocess.Popen([sys.executable, stubborn], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    # Process 1 stands for an owner that is gone: it is not the parent of the guard.
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", server_guard.__file__, "1", str(server.pid)]
    )
    assert server.wait(60) == -signal.SIGKILL
    server.stdout.close()
    assert guard.wait(30) == 0
