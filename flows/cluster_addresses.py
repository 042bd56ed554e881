"""Whether a cluster can be used, found before anything is started."""

import importlib.util
import ipaddress
import socket
from urllib.parse import urlsplit

from schemas.config import ComputeConfig
from schemas.errors import ClusterError, ConfigError

CONNECT_TIME_S = 10.0
PACKAGES = {"ray": "prefect_ray", "dask": "prefect_dask"}
"""Task runner to the package that has it; the extra of turnledger has the runner's name."""


def require_task_runner(compute: ComputeConfig, *, prefect_url: str | None) -> None:
    """Refuses a task runner that cannot be used here.

    Args:
        compute: Names it, and the cluster.
        prefect_url: Address of the Prefect server; null for a temporary one on this machine.

    Raises:
        ConfigError: If its package is missing, or workers on other machines cannot reach the
            Prefect server, which they tell of their tasks.
        ClusterError: If no cluster is at its address.
    """
    runner, url = compute.task_runner, compute.cluster_url
    if runner == "threads":
        return
    if importlib.util.find_spec(PACKAGES[runner]) is None:
        raise ConfigError(
            f"compute.task_runner: {runner} needs a package that is not installed: "
            f"pip install 'turnledger[{runner}]'"
        )
    if url is None:
        return
    host, port = _host_and_port(url)
    server = urlsplit(prefect_url or "").hostname or "localhost"
    if not _is_of_this_machine(host) and _is_loopback(server):
        told = prefect_url or "a temporary one on this machine"
        raise ConfigError(
            f"compute.cluster_url: workers at {host} cannot reach the Prefect server, {told}: set "
            "PREFECT_API_URL to an address of a server that they reach"
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIME_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise ClusterError(
            f"no {runner} cluster answers at {host}:{port} ({reason}): start one, or leave "
            "compute.cluster_url out"
        ) from error


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("no host and port")
    except ValueError as error:
        raise ConfigError(
            f"compute.cluster_url: {url} is no address: write it as head:6379 for Ray, "
            "tcp://head:8786 for Dask"
        ) from error
    return parts.hostname, parts.port


def _is_of_this_machine(host: str) -> bool:
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind(address)  # which no address of another machine allows
    except OSError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
