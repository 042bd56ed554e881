import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from storage_builders import fingerprint, slot, updates

from schemas.refs import StageOutput
from storage import Fingerprint, Slot, Store

_HERE = str(Path(__file__).parent)

Start = Callable[..., subprocess.Popen[str]]


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
