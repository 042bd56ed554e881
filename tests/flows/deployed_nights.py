"""Deployments on a real Prefect server, by `turnledger serve` or by a worker, as tests use them."""

import http.server
import json
import os
import re
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
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli_options import read_config
from schemas.errors import StoreError
from storage import Store
from tests.process_trees import processes_below

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "examples" / "nightly.toml"
WAIT_S = 400.0
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


def write_deployments(folder: Path, store: str) -> None:
    """Writes `prefect.yaml` as it is, with a store, small settings and a schedule of seconds."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    settings = read_config(SETTINGS, []).model_dump(mode="json")
    for deployment in content["deployments"]:
        deployment["parameters"]["store"] = store
        if "config" in deployment["parameters"]:
            deployment["parameters"]["config"] = settings
        if "schedules" in deployment:
            deployment["schedules"] = [{"interval": INTERVAL_S}]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(content))


@dataclass
class Nights:
    """A folder of problems, what trains on it night by night, and what came of two nights."""

    folder: Path
    place: str
    """Folder or address of the store."""
    url: str
    command: list[str]
    """What starts flow runs: a worker, or the command that serves."""
    environment: dict[str, str]
    notified: list[dict[str, Any]]
    ends: dict[str, State[Any]] = field(default_factory=dict)
    """Final states: of nights failed, first, at once (with the first), second and idle."""
    reports: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    """What Prefect's server has as the log of the first night."""
    runs: list[str] = field(default_factory=list)
    """Names of the runs of these nights."""

    @property
    def log(self) -> Path:
        return self.folder / "process.log"

    @contextmanager
    def starting_flow_runs(self) -> Iterator[None]:
        """Runs the command, in a process group of its own."""
        self.worker = self._start_worker()
        try:
            yield
        finally:
            self.worker.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.worker.wait(timeout=60)
            with suppress(ProcessLookupError):
                os.killpg(self.worker.pid, signal.SIGKILL)  # flow runs are of its group
            self.worker.wait()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        with self.log.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *self.command],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill_worker(self) -> None:
        """Kills what starts flow runs, and starts another one."""
        self.worker.kill()
        self.worker.wait()
        self.worker = self._start_worker()

    def flow_process(self) -> int:
        """Returns the process of the flow run that runs."""
        below = processes_below(self.worker.pid)
        (found,) = [pid for pid, name in below.items() if name.endswith("-m prefect.engine")]
        return found

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stops the flow run that runs, so that it does not end before another one begins."""
        process = self.flow_process()
        os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process, signal.SIGCONT)

    @property
    def store(self) -> Store:
        return Store.open(self.place)

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with temporary_settings({PREFECT_API_URL: self.url}), get_client(sync_client=True) as made:
            yield made

    def status(self, run: str) -> str:
        with suppress(StoreError):  # the store is not made yet
            return self.store.run_record(run).status
        return ""

    def arrive(self, name: str, content: bytes) -> None:
        (self.folder / "part").write_bytes(content)
        (self.folder / "part").rename(self.folder / "inbox" / name)

    @contextmanager
    def automation(self, name: str, **replaced: str) -> Iterator[None]:
        """Makes an automation as the page on deployments does, and deletes it at the end."""
        page = (ROOT / "docs" / "deployments.md").read_text()
        blocks = re.findall(r"```python\n(.*?)```", page, re.S)
        code = next(block for block in blocks if f'name="{name}"' in block)
        for told, used in replaced.items():
            code = re.sub(rf"\b{told}=[^,\n]*,", f"{told}={used},", code)
        with temporary_settings({PREFECT_API_URL: self.url}):
            exec(compile(code, "deployments.md", "exec"), {})
            try:
                yield
            finally:
                Automation.read(name=name).delete()

    def of_type(self, *types: StateType) -> list[FlowRun]:
        """Returns the nights whose states are of some types."""
        named = DeploymentFilter(name=DeploymentFilterName(any_=["nightly"]))
        states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*types])))
        with self.client() as client:
            return client.read_flow_runs(deployment_filter=named, flow_run_filter=states)

    def log_of(self, run: FlowRun) -> list[str]:
        of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        with self.client() as client:
            return [line.message for line in client.read_logs(log_filter=of_run)]

    def done(self, run: str) -> int:
        """Returns how many iterations of a run are finished."""
        return self.store.run_record(run).iterations_done if self.status(run) else 0

    def start(self, deployment: str, **parameters: Any) -> FlowRun:
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def train(self, run: str, iterations: int) -> FlowRun:
        """Starts a training, or lets it go on."""
        config = read_config(SETTINGS, [f"iterations={iterations}"]).model_dump(mode="json")
        return self.start("train-session/train", run=run, config=config)

    def end(self, run: FlowRun) -> Any:
        """Waits for the final state of a flow run."""

        def final() -> Any:
            with self.client() as client:
                state = client.read_flow_run(run.id).state
            return state if state is not None and state.is_final() else None

        return wait_for("the end of a flow run", final, self.log)

    def tells_of_a_kill(self, run: str) -> bool:
        """Kills the process of a flow run that trains on; whether that is notified of soon."""
        done = self.done(run)
        killed = self.train(run, 500)
        wait_for("an iteration", lambda: self.done(run) > done, self.log)
        told = len(self.notified)
        os.kill(self.flow_process(), signal.SIGKILL)
        assert self.end(killed).is_crashed()
        deadline = time.monotonic() + 120
        while len(self.notified) == told and time.monotonic() < deadline:
            time.sleep(0.5)
        return len(self.notified) > told


def more_problems(count: int) -> bytes:
    rows = [{"id": f"n{i}", "problem": f"Take {i}. Add 3.", "answer": i + 3} for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def two_nights(nights: Nights) -> None:
    """Has a scheduled night fail, then two nights train, and one find nothing new."""
    wait_for("a scheduled night", lambda: nights.of_type(StateType.FAILED), nights.log)
    with nights.client() as client:
        client.pause_deployment(client.read_deployment_by_name("nightly/nightly").id)
    waiting = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)
    wait_for("the last one", lambda: not nights.of_type(*waiting), nights.log)
    # Of what was scheduled only now, Prefect tells late: see the page on deployments.
    nights.ends["failed"] = nights.end(nights.start("nightly/nightly"))
    wait_for("a notification", lambda: nights.notified, nights.log)
    nights.arrive("monday.jsonl", (ROOT / "docs/examples/problems.jsonl").read_bytes())
    first = nights.start("nightly/nightly")
    wait_for("night 1", lambda: nights.status("nightly-0001") == "running", nights.log)
    with nights.standing_still():
        nights.ends["at once"] = nights.end(nights.start("nightly/nightly"))
    nights.ends["first"] = nights.end(first)
    nights.logged = nights.log_of(first)
    nights.arrive("tuesday.jsonl", more_problems(4))
    nights.ends["second"] = nights.end(nights.start("nightly/nightly"))
    nights.ends["idle"] = nights.end(nights.start("nightly/nightly"))
    nights.runs = nights.store.run_names()
    with nights.client() as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["nightly-report"]))
        reports = sorted(client.read_artifacts(artifact_filter=key), key=lambda a: a.created)
    nights.reports = [str(report.data) for report in reports]
