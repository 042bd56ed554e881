"""One folder in which all pages are tried, with a real Prefect server and the run `small`."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from docs_pages import DOCS
from docs_workplace import TRAIN, Workplace


@pytest.fixture(scope="session")
def docs_prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts a Prefect server on loopback, so that not every command starts its own."""
    home = tmp_path_factory.mktemp("docs-prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=_environment(home),
            stdout=output,
            stderr=output,
        )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/api/health", server, log)
            yield f"http://127.0.0.1:{port}/api"
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture(scope="session")
def workplace(docs_prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "docs").symlink_to(DOCS)
    environment = _environment(folder / "prefect") | {"PREFECT_API_URL": docs_prefect_api}
    made = Workplace(folder=folder, environment=environment)
    done = made.run(TRAIN)
    assert done.returncode == 0, done.stderr
    return made


def _environment(home: Path) -> dict[str, str]:
    """Returns this process's environment, with our commands and without a user's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "TURNLEDGER_"))}
    return kept | {
        "COLUMNS": "160",
        "DO_NOT_TRACK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"the Prefect server did not start:\n{log.read_text()[-2000:]}")
