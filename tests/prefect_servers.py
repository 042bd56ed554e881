"""Real Prefect servers on loopback, on SQLite or on a PostgreSQL server of their own."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

START_TIME_S = 180.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_prefect_server(home: Path, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Starts a server whose state is below a folder; yields the URL of its API."""
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        **(settings or {}),
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/api"
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_until_healthy(url, server, home / "server.log")
            yield url
        finally:
            end(server)


@contextmanager
def flows_on(url: str) -> Iterator[None]:
    """Connects flows that are run in this process to a server."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    # A flow would wait at its end until its heartbeat looks up, up to a second.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def end(process: subprocess.Popen[bytes], time_s: float = 30.0) -> None:
    """Asks a process to end, and kills it if it does not."""
    process.terminate()
    try:
        process.wait(timeout=time_s)
    except subprocess.TimeoutExpired:  # on a busy machine; no test is wrong for it
        process.kill()
        process.wait()


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIME_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"the Prefect server did not start:\n{log.read_text()[-2000:]}")


def postgresql_programs() -> Path | None:
    """Returns the folder of PostgreSQL's programs, the newest one; null where it is missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _version(program: Path) -> float:
    return float(program.parents[1].name)


@contextmanager
def running_postgresql(programs: Path) -> Iterator[str]:
    """Starts a PostgreSQL server in a folder of its own; yields the URL for Prefect.

    It refuses to run as root, so it gets the user `postgres` of its package then.
    """
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    # Not below pytest's folders, which other users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data, port = folder / "data", free_port()
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "prefect", "-A", "trust", "--no-sync"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=True,
            **as_user,
        )
        listening = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(port), *listening, "-c", "fsync=off"],
            cwd=folder,
            stderr=subprocess.DEVNULL,
            **as_user,
        )
        try:
            _wait_until_open(port)
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            end(server)
    finally:
        shutil.rmtree(folder)


def _wait_until_open(port: int) -> None:
    deadline = time.monotonic() + START_TIME_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("PostgreSQL did not start")


@contextmanager
def prefect_server_on(database: str, home: Path) -> Iterator[str]:
    """Starts a Prefect server on `sqlite` or `postgresql`; yields the URL of its API.

    Skips the test where PostgreSQL is not installed.
    """
    programs = postgresql_programs()
    if database == "postgresql" and programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    is_own = database == "postgresql" and programs is not None
    with running_postgresql(programs) if is_own else nullcontext() as place:  # type: ignore[arg-type]
        settings = {} if place is None else {"PREFECT_API_DATABASE_CONNECTION_URL": place}
        with running_prefect_server(home, settings) as url:
            yield url
