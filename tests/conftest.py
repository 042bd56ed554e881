"""A real Prefect server and a real S3 server, each started once for all tests that need one."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import pytest

from tests.prefect_servers import running_prefect_server
from tests.s3_places import use_s3


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts a real Prefect server on loopback; yields the URL of its API."""
    with running_prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts an S3 server on loopback with the bucket `ledger`; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_file = tmp_path_factory.mktemp("s3") / "server.log"
    with log_file.open("w") as log:
        command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _make_bucket(f"http://127.0.0.1:{port}", log_file)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()  # asked kindly, it would wait for connections that clients keep open
            server.wait()


def _make_bucket(endpoint: str, log_file: Path) -> None:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            client.create_bucket(Bucket="ledger")
        except botocore.exceptions.EndpointConnectionError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the S3 server did not start:\n{log_file.read_text()[-2000:]}")


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Sets the environment for the S3 server; returns a place in it for a store."""
    return use_s3(s3_server, monkeypatch, tmp_path)
