"""A Ray cluster that runs already, and asks for the token of who uses it."""

import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_runs import Cli, contents, sets

from storage import Store
from tests.process_trees import alive, processes_below, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A Ray cluster of one machine."""

    address: str
    token: dict[str, str]
    """What lets a process in, as environment variables."""


@pytest.fixture(scope="module")
def head(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    pytest.importorskip("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    log = tmp_path_factory.mktemp("ray") / "log"
    options = (
        *("--head", "--block", f"--port={port}", "--num-cpus=1", "--include-dashboard=false"),
        *("--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0"),
        *(f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"),
    )
    with log.open("wb") as output:
        started = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", *options],
            env={**cli.environment, **token},
            stdout=output,
            stderr=output,
        )
    try:
        assert wait_until(lambda: b"Ray runtime started" in log.read_bytes(), 120)
        yield Head(address=f"127.0.0.1:{port}", token=token)
    finally:
        processes = set(processes_below(started.pid))
        started.terminate()
        started.wait(60)
        assert wait_until(lambda: not alive(processes), 60)


def rescore(cli: Cli, store: Path, into: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return cli.run(
        *("rerun", "turn_rewards", "--only", "--store", str(store), "--run", "small"),
        *("--iteration", "1", "--into", into, *sets("no_tool_penalty=-0.29", *overrides)),
    )


def on(head: Head) -> tuple[str, str]:
    return "compute.task_runner=ray", f"compute.cluster_url={head.address}"


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def test_a_cluster_by_address_gives_what_threads_give(cli: Cli, head: Head, store: Path) -> None:
    there = Cli({**cli.environment, **head.token})
    for done in (rescore(there, store, "there", *on(head)), rescore(cli, store, "here")):
        assert done.returncode == 0, done.stderr
    opened = Store.open(store)
    there_stored, here_stored = (
        sorted(contents(opened, run).values()) for run in ("there", "here")
    )
    assert there_stored == here_stored
    assert there_stored != sorted(contents(opened).values())


@pytest.mark.usefixtures("head")
def test_who_names_no_cluster_gets_one_of_their_own(cli: Cli, store: Path) -> None:
    done = rescore(cli, store, "own", "compute.task_runner=ray")
    assert done.returncode == 0, done.stderr


def test_who_has_no_token_is_told_which(cli: Cli, head: Head, store: Path) -> None:
    done = rescore(cli, store, "nobody", *on(head))
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]  # after what Ray itself logs of its tries
    assert said.startswith(f"error: Ray cannot use the one at {head.address}")
    assert "RAY_AUTH_TOKEN" in said
    assert "Traceback" not in done.stderr
