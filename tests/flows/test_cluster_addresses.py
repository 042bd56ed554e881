"""A cluster that cannot be used is told before anything is started."""

import importlib.util
import socket
from collections.abc import Iterator

import pytest

from flows.cluster_addresses import require_task_runner
from schemas.config import ComputeConfig
from schemas.config_text import parse_config
from schemas.errors import ClusterError, ConfigError

SERVER = "http://127.0.0.1:4200/api"


@pytest.fixture
def listening() -> Iterator[str]:
    """Yields an address at which something answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'turnledger\[{runner}\]'"):
        require_task_runner(ComputeConfig(task_runner=runner), prefect_url=SERVER)  # type: ignore[arg-type]


def test_threads_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_task_runner(ComputeConfig(), prefect_url=None)


def test_a_cluster_that_answers_is_taken(listening: str) -> None:
    for url in (listening, f"tcp://{listening}"):
        compute = ComputeConfig(task_runner="dask", cluster_url=url)
        require_task_runner(compute, prefect_url=None)


def test_nobody_at_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        compute = ComputeConfig(task_runner="ray", cluster_url=address)
        with pytest.raises(ClusterError, match=f"no ray cluster answers at {address}"):
            require_task_runner(compute, prefect_url=SERVER)


@pytest.mark.parametrize("url", ["head", "tcp://head", "head:port", "://"])
def test_an_address_without_host_and_port(url: str) -> None:
    compute = ComputeConfig(task_runner="ray", cluster_url=url)
    with pytest.raises(ConfigError, match="write it as head:6379"):
        require_task_runner(compute, prefect_url=SERVER)


@pytest.mark.parametrize("server", [None, SERVER, "http://localhost:4200/api"])
def test_workers_elsewhere_need_a_server_that_they_reach(server: str | None) -> None:
    compute = ComputeConfig(task_runner="ray", cluster_url="192.0.2.1:6379")
    with pytest.raises(ConfigError, match=r"workers at 192\.0\.2\.1 cannot reach"):
        require_task_runner(compute, prefect_url=server)


def test_an_address_without_a_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match="set task_runner=ray or dask"):
        parse_config(overrides=["compute.cluster_url=head:6379"])
