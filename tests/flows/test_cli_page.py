"""The commands `page` and `report`, as a user runs them."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_runs import RUN, make_store
from small_runs import Cli


@pytest.fixture(autouse=True)
def _use_the_server() -> None:
    """In place of the fixture that starts a server for all other tests of flows."""


@pytest.fixture(scope="module")
def looking() -> Cli:
    return Cli({**os.environ, "COLUMNS": "200"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("pages") / "store").root


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_page_tells_its_address_and_serves_until_it_is_stopped(looking: Cli, store: Path) -> None:
    server = looking.start("page", "--store", str(store), "--port", "0")
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.fullmatch(rf"page of {store}: (http://127\.0\.0\.1:\d+/) \(Ctrl-C .*\)\n", line)
        assert found is not None, line
        with urllib.request.urlopen(found[1], timeout=60) as answer:
            assert RUN in answer.read().decode()
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 0
    assert errors == ""


def test_a_port_that_is_taken_is_one_line(looking: Cli, store: Path, taken_port: int) -> None:
    done = looking.run("page", "--store", str(store), "--port", str(taken_port))
    assert done.returncode == 1
    expected = f"error: port {taken_port} of 127.0.0.1 is taken: choose another one with --port\n"
    assert done.stderr == expected


def test_an_address_of_another_machine_is_one_line(looking: Cli, store: Path) -> None:
    done = looking.run("page", "--store", str(store), "--host", "192.0.2.1")
    assert done.returncode == 1
    assert re.fullmatch(r"error: cannot listen at 192\.0\.2\.1, port 8321: [^\n]+\n", done.stderr)


def test_a_store_that_is_not_there_is_one_line(looking: Cli, tmp_path: Path) -> None:
    done = looking.run("page", "--store", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: no store")
    assert done.stderr.count("\n") == 1


def test_report_writes_one_file(looking: Cli, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "main.html"
    done = looking.run("report", RUN, "--store", str(store), "--output", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report  {file}\n"
    assert file.read_text().startswith("<!DOCTYPE html>")


def test_report_is_named_after_the_run(store: Path, tmp_path: Path) -> None:
    there = Cli({**os.environ, "PYTHONPATH": str(Path.cwd())}, folder=tmp_path)
    done = there.run("report", RUN, "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [f"{RUN}.html"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody"], "there is no run nobody in this store"),
        ([RUN, "--output", "report.pdf"], "report.pdf cannot be written: take a name that ends in"),
        ([RUN, "--output", "nowhere/report.html"], "there is no folder nowhere"),
    ],
)
def test_report_refuses_in_one_line(
    looking: Cli, store: Path, arguments: list[str], says: str
) -> None:
    done = looking.run("report", *arguments, "--store", str(store))
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_commands_for_looking_import_nothing_heavy() -> None:
    code = "import sys, flows.page.app, flows.page.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
