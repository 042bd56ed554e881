"""One small real training, shared by the tests of flows."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_commands import ForkedCommands
from small_runs import Cli

from tests.prefect_servers import flows_on


@pytest.fixture(scope="session")
def cli(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line, connected to the server."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_server,
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect-client")),
        "COLUMNS": "200",
    }
    return Cli(environment, forked=ForkedCommands(environment))


@pytest.fixture(scope="session")
def trained(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the finished run `small`; tests only read it or branch off it."""
    store = tmp_path_factory.mktemp("stores") / "store"
    cli.train(store)
    return store


@pytest.fixture(autouse=True)
def _use_the_server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connects flows that a test runs in its own process to the server."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    with flows_on(prefect_server):
        yield
