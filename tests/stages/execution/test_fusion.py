"""The client of a SandboxFusion server, against a server that really executes what it is sent."""

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from schemas.errors import ExecutorError
from stages.execution import make_executor
from stages.execution.sandbox_fusion import FusionExecutor
from tests.stages.execution.frames import config_with, run_one, snippet_frame

Answer = dict[str, Any]


def run_code(request: Answer) -> Answer:
    """Answers as SandboxFusion does: a time-out and an exit code are both `Failed`."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", request["code"]],
            capture_output=True,
            text=True,
            timeout=request["run_timeout"],
            check=False,
        )
        result = {"status": "Finished", "return_code": done.returncode}
        result |= {"stdout": done.stdout, "stderr": done.stderr}
    except subprocess.TimeoutExpired:
        result = {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""}
    result["execution_time"] = time.monotonic() - started
    status = "Success" if result["return_code"] == 0 else "Failed"
    return {"status": status, "message": "", "run_result": result}


class Server:
    """Counts requests; `faults` is what becomes of the next ones before they are answered."""

    def __init__(self) -> None:
        self.seen: list[Answer] = []
        self.faults: list[Callable[[http.server.BaseHTTPRequestHandler], bool]] = []
        """Each may answer by itself, and says whether it did."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(length))
                outer.seen.append({"path": self.path, **request})
                if outer.faults and outer.faults.pop(0)(self):
                    return
                content = json.dumps(run_code(request)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def executor_at(server: Server, **changes: object) -> FusionExecutor:
    config = config_with(backend="sandbox_fusion", fusion_url=server.url, **changes)
    executor = make_executor(config)
    assert isinstance(executor, FusionExecutor)
    return executor


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> bool:
    handler.close_connection = True
    handler.connection.close()
    return True


def fail(handler: http.server.BaseHTTPRequestHandler) -> bool:
    handler.send_error(500)
    return True


@pytest.mark.parametrize(
    ("code", "status", "stdout", "exit_code"),
    [
        ("print(1)", "ok", "1\n", 0),
        ("1/0", "error", "", 1),
        ("print(1); raise SystemExit(3)", "error", "1\n", 3),
        ("import time; time.sleep(60)", "timeout", "", None),
        ("print('x' * 3000)", "output_limit", "x" * 1024, None),
        ("print(1)\0", "refused", "", None),
    ],
)
def test_statuses(
    server: Server, code: str, status: str, stdout: str, exit_code: int | None
) -> None:
    row = run_one(executor_at(server, wall_time_s=2.0, output_kib=1), code)
    assert (row["status"], row["stdout"], row["exit_code"]) == (status, stdout, exit_code)


def test_limits_are_sent(server: Server) -> None:
    run_one(executor_at(server, wall_time_s=3.0, memory_mib=99), "print(1)")
    sent = server.seen[-1]
    assert (sent["path"], sent["language"]) == ("/run_code", "python")
    assert (sent["run_timeout"], sent["memory_limit_MB"]) == (3.0, 99)


def test_order_is_kept(server: Server) -> None:
    codes = [f"import time; time.sleep({0.1 * (i % 3)}); print({i})" for i in range(6)]
    rows = executor_at(server, workers=3).execute(snippet_frame(codes))
    assert rows["stdout"].to_list() == [f"{i}\n" for i in range(6)]


def test_a_request_that_did_not_get_through_is_sent_again(server: Server) -> None:
    executor = executor_at(server)
    server.faults = [hang_up]
    assert run_one(executor, "print(1)")["status"] == "ok"
    assert len(server.seen) == 3


def test_a_server_that_is_gone_is_no_wrong_answer(server: Server) -> None:
    executor = executor_at(server)
    server.faults = [hang_up] * 9
    row = run_one(executor, "print(1)")
    assert row["status"] == "infrastructure"
    assert server.url in str(row["stderr"])
    assert len(server.seen) == 4


def test_a_failing_server_is_not_asked_again(server: Server) -> None:
    executor = executor_at(server)
    server.faults = [fail] * 9
    assert run_one(executor, "print(1)")["status"] == "infrastructure"
    assert len(server.seen) == 2


def test_a_server_that_hangs_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.execution.sandbox_fusion._GRACE_S", 0.5)
    executor = executor_at(server, wall_time_s=0.5)
    server.faults = [lambda _: time.sleep(3) or True]
    started = time.monotonic()
    assert run_one(executor, "print(1)")["status"] == "infrastructure"
    assert time.monotonic() - started < 2.5
    assert len(server.seen) == 2


def test_state_is_replayed(server: Server) -> None:
    frame = snippet_frame(["print(x + y)"], earlier=["x = 1; print('seen')", "1/0", "y = 2"])
    assert executor_at(server).execute(frame)["stdout"].to_list() == ["3\n"]


def test_a_server_that_does_not_answer_is_refused_at_once() -> None:
    config = config_with(backend="sandbox_fusion", fusion_url="http://127.0.0.1:9")
    with pytest.raises(ExecutorError, match=r"^execution.fusion_url: http://127.0.0.1:9 does not"):
        make_executor(config)


def test_an_address_is_needed() -> None:
    with pytest.raises(ExecutorError, match=r"execution\.fusion_url is not set"):
        make_executor(config_with(backend="sandbox_fusion"))
