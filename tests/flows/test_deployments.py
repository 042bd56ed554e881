"""Nights by schedule on a real Prefect server: served on SQLite, by a worker on PostgreSQL."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.cli_options import read_config
from storage import Store
from tests.prefect_servers import prefect_server_on

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_500)]

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "examples" / "nightly.toml"
WAIT_S = 400.0
UTF_16 = "{}".encode("utf-16")
INTERVAL_S = 5


def wait_for(what: str, holds: Callable[[], Any], log: Path | None = None) -> Any:
    """Returns what a condition returns once it is true."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.5)
    pytest.fail(f"{what} did not happen\n{log.read_text()[-6_000:] if log else ''}")


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serves HTTP on loopback; yields its address and what is posted to it."""
    posted: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/chat", posted
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def process(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Runs a command with a process group of its own; yields its log."""
    log = folder / "process.log"
    with log.open("w") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield log
        finally:
            started.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                started.wait(timeout=60)
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)  # flow runs are of its group
            started.wait()


def write_deployments(folder: Path) -> None:
    """Writes `prefect.yaml` as it is, with the small settings and a schedule of seconds."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    settings = read_config(SETTINGS, []).model_dump(mode="json")
    for deployment in content["deployments"]:
        if "config" in deployment["parameters"]:
            deployment["parameters"]["config"] = settings
        if "schedules" in deployment:
            deployment["schedules"] = [{"interval": INTERVAL_S}]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(content))


@dataclass
class Nights:
    """Two nights and what came of them."""

    folder: Path
    url: str
    log: Path
    notified: list[dict[str, Any]]
    states: list[tuple[str, str]] = field(default_factory=list)
    """Names of the final states of the nightly flow runs, and their messages."""
    reports: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "turnledger-store")

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with temporary_settings({PREFECT_API_URL: self.url}), get_client(sync_client=True) as made:
            yield made

    def status(self, run: str) -> str:
        has_store = (self.folder / "turnledger-store" / "store.json").exists()
        return self.store.run_record(run).status if has_store and self.store.has_run(run) else ""

    def arrive(self, name: str, content: bytes) -> None:
        (self.folder / "part").write_bytes(content)
        (self.folder / "part").rename(self.folder / "inbox" / name)

    def final_runs(self) -> list[FlowRun]:
        named = DeploymentFilter(name=DeploymentFilterName(any_=["nightly"]))
        with self.client() as client:
            runs = client.read_flow_runs(deployment_filter=named)
        return [run for run in runs if run.state is not None and run.state.is_final()]

    def start(self, deployment: str, **parameters: Any) -> FlowRun:
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def state(self, run: FlowRun) -> Any:
        with self.client() as client:
            state = client.read_flow_run(run.id).state
        return state if state is not None and state.is_final() else None


def more_problems(count: int) -> bytes:
    rows = [{"id": f"n{i}", "problem": f"Take {i}. Add 3.", "answer": i + 3} for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def notify(url: str) -> None:
    """Does what the page on deployments says, with another address."""
    page = (ROOT / "docs" / "deployments.md").read_text()
    code = next(c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "Automation(" in c)
    exec(compile(code.replace("http://127.0.0.1:9/chat", url), "deployments.md", "exec"), {})


def two_nights(nights: Nights) -> None:
    """Has a night fail, then two nights train, and one find nothing new."""
    wait_for("a notification", lambda: nights.notified, nights.log)
    (nights.folder / "inbox" / "bad.jsonl").unlink()
    nights.arrive("monday.jsonl", (ROOT / "docs/examples/problems.jsonl").read_bytes())
    wait_for("night 1", lambda: nights.status("nightly-0001") == "finished", nights.log)
    nights.arrive("tuesday.jsonl", more_problems(4))
    wait_for("night 2", lambda: nights.status("nightly-0002") == "finished", nights.log)

    def idle() -> bool:
        return "NothingNew" in [run.state.name for run in nights.final_runs() if run.state]

    wait_for("an idle night", idle, nights.log)
    with nights.client() as client:
        client.pause_deployment(client.read_deployment_by_name("nightly/nightly").id)
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["nightly-report"]))
        reports = sorted(client.read_artifacts(artifact_filter=key), key=lambda a: a.created)
    nights.reports = [str(report.data) for report in reports]
    nights.states = [(r.state.name, r.state.message or "") for r in nights.final_runs() if r.state]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def nights(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    (folder / "inbox").mkdir()
    (folder / "docs").symlink_to(ROOT / "docs")
    with prefect_server_on(request.param, tmp_path_factory.mktemp("server")) as url:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TURNLEDGER_")},
            "PWD": str(folder),  # as a shell says it, from which prefect.yaml takes it
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        command = ["flows.cli", "serve", "nightly", "--interval", str(INTERVAL_S)]
        command += ["--config", str(SETTINGS)]
        if request.param == "postgresql":
            write_deployments(folder)
            for step in ("work-pool create turnledger --type process", "deploy --all"):
                subprocess.run(
                    [sys.executable, "-m", "prefect", "--no-prompt", *step.split()],
                    cwd=folder,
                    env=environment,
                    check=True,
                    capture_output=True,
                )
            command = ["prefect", "worker", "start", "--pool", "turnledger"]
        with webhook() as (address, notified), temporary_settings({PREFECT_API_URL: url}):
            notify(address)
            (folder / "inbox" / "bad.jsonl").write_bytes(UTF_16)
            with process(command, folder, environment) as log:
                made = Nights(folder, url, log, notified)
                two_nights(made)
                yield made
    shutil.rmtree(folder)


def test_a_failed_night_is_notified_with_its_reason_in_one_line(nights: Nights) -> None:
    told = nights.notified[0]["text"]
    assert re.fullmatch(r"nightly: .*ProblemFileError: .*bad\.jsonl.* UTF-16.*", told), told


def test_the_second_night_begins_with_the_last_policy_of_the_first(nights: Nights) -> None:
    config = nights.store.run_record("nightly-0002").config
    first = nights.store.root / "run=nightly-0001/iteration=0001/split=train/stage=optimisation"
    assert config["policy"]["path"] == str(first / "policy")
    assert config["cold_start"]["steps"] == 0


def test_the_report_of_a_night_compares_it_with_the_night_before(nights: Nights) -> None:
    report = next(r for r in nights.reports if r.startswith("# nightly-0002"))
    assert "| before: the last policy of nightly-0001 | 0." in report
    assert re.search(r"\| gain, with its 95 % interval \| [+-]\d\.\d+ \([+-]\d\.\d+ to ", report)
    assert "4 of them new since nightly-0001" in report


def test_a_night_without_new_problems_is_recorded_and_makes_no_run(nights: Nights) -> None:
    idle = [message for name, message in nights.states if name == "NothingNew"]
    assert idle
    assert "holds what nightly-000" in idle[0]
    assert nights.store.run_names() == ["nightly-0001", "nightly-0002"]


def test_what_a_night_does_is_in_the_log_of_its_flow_run(nights: Nights) -> None:
    with nights.client() as client:
        told = [log.message for log in client.read_logs(limit=200)]
    assert any(message.startswith("Beginning flow run") for message in told), told[:20]


def test_a_cancelled_flow_run_leaves_an_interrupted_run_that_continues(nights: Nights) -> None:
    settings = read_config(SETTINGS, ["iterations=500"]).model_dump(mode="json")
    long = nights.start("train-session/train", run="long", config=settings)

    def done() -> int:
        return nights.store.run_record("long").iterations_done if nights.status("long") else 0

    wait_for("an iteration", lambda: done() >= 1, nights.log)
    with nights.client() as client:
        client.set_flow_run_state(long.id, Cancelling())
    state = wait_for("the end of a cancelled flow run", lambda: nights.state(long), nights.log)
    assert state.is_cancelled()
    assert nights.status("long") == "interrupted"
    settings["iterations"] = done()
    again = nights.start("train-session/train", run="long", config=settings)
    state = wait_for("the end of the continued run", lambda: nights.state(again), nights.log)
    assert state.is_completed(), state.message
    assert nights.status("long") == "finished"
