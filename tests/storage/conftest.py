import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import polars as pl
import pytest

from schemas.refs import StageOutput
from storage import Fingerprint, Slot, Store

_HERE = str(Path(__file__).parent)
sys.path.insert(0, _HERE)

from storage_builders import fingerprint, slot, updates  # noqa: E402

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts an S3 server on loopback with the bucket `ledger`; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_file = tmp_path_factory.mktemp("s3") / "server.log"
    with log_file.open("w") as log:
        command = [sys.executable, f"{_HERE}/s3_server.py", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _make_bucket(f"http://127.0.0.1:{port}", log_file)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


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
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("TURNLEDGER_CACHE", str(tmp_path / "cache"))
    return f"s3://ledger/{uuid.uuid4().hex}"


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store: in a folder, or where `on_both` says so in a bucket."""
    if getattr(request, "param", "folder") == "bucket":
        return Store.open(request.getfixturevalue("s3"), create=True)
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def bucket(s3: str) -> Store:
    """An empty store in a bucket."""
    return Store.open(s3, create=True)


@pytest.fixture
def put(store: Store) -> Callable[..., StageOutput]:
    """Stores updates; where nothing else is said, those of one slot and one fingerprint."""

    def put(
        at: Slot | None = None,
        of: Fingerprint | None = None,
        *,
        frame: pl.DataFrame | None = None,
        replace: bool = False,
    ) -> StageOutput:
        return store.write(
            at or slot(),
            of or fingerprint(),
            tables={"updates": updates() if frame is None else frame},
            seconds=1.0,
            parents=[],
            replace=replace,
        )

    return put


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python processes that know the builders; kills what is left of them."""
    processes: list[subprocess.Popen[str]] = []

    def start(code: str, *args: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            env={**os.environ, "PYTHONPATH": _HERE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
