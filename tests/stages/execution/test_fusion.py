"""The client of a SandboxFusion server, against a server that really executes what it is sent."""

import contextlib
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
from tests.stages.execution.frames import config_with, isolated, run_one, snippet_frame

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


@pytest.mark.parametrize(
    ("code", "stdout"),
    [("1 + 1", "2\n"), ("print(3); 1 + 1", "3\n"), ("input", "<built-in function input>\n")],
)
def test_a_last_value_is_shown_as_by_the_sandbox(server: Server, code: str, stdout: str) -> None:
    assert run_one(executor_at(server), code)["stdout"] == stdout
    assert run_one(executor_at(server, show_last_value=False), "1 + 1")["stdout"] == ""


def test_the_same_random_numbers_as_in_the_sandbox(server: Server) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.random())"
    assert run_one(executor_at(server), code)["stdout"] == run_one(isolated(), code)["stdout"]


def test_a_traceback_is_that_of_the_snippet(server: Server) -> None:
    stderr = str(run_one(executor_at(server), "def f():\n    1/0\nf()")["stderr"])
    assert stderr.splitlines()[1] == '  File "<snippet>", line 3, in <module>'
    assert stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_memory_error_is_told_from_others(server: Server) -> None:
    executor = executor_at(server)
    assert run_one(executor, "bytearray(1 << 60)")["status"] == "memory"
    assert run_one(executor, "raise RuntimeError('MemoryError')")["status"] == "error"
    assert run_one(executor, "import sys; print('MemoryError', file=sys.stderr)")["status"] == "ok"


def answer_with(content: bytes, *, drip_s: float = 0.0) -> Callable[..., bool]:
    """Returns a fault that sends some content, in pieces if it is to drip."""

    def send(handler: http.server.BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has hung up
            for start in range(0, len(content), 1 << 20 if drip_s == 0 else 1):
                handler.wfile.write(content[start : start + (1 << 20 if drip_s == 0 else 1)])
                time.sleep(drip_s)
        handler.close_connection = True
        return True

    return send


def test_an_endless_answer_is_not_read_to_its_end(server: Server) -> None:
    executor = executor_at(server, output_kib=1)
    server.faults = [answer_with(b'{"status": "' + b"x" * (64 << 20))]
    assert run_one(executor, "print(1)")["status"] == "output_limit"


def test_an_answer_that_drips_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.execution.sandbox_fusion._GRACE_S", 0.5)
    executor = executor_at(server, wall_time_s=1.0)
    server.faults = [answer_with(b"{" * 100, drip_s=0.2)]
    started = time.monotonic()
    assert run_one(executor, "print(1)")["status"] == "infrastructure"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b'{"run_result": 3}', b'{"run_result": {"stdout": 3}}',
     b'{"status": "Success", "run_result": {"status": "Finished", "return_code": "x"}}',
     b'{"status": "Success", "run_result": {"status": "Finished", "stdout": "1"}}',
     b'{"status": "SandboxError", "message": "full"}',
     b'{"status": "Success", "run_result": {"status": "Finished", "return_code": 0,'
     b' "stdout": "1", "stderr": null, "execution_time": "x"}}'],
)  # fmt: skip
def test_an_answer_of_another_make_is_no_wrong_answer(server: Server, content: bytes) -> None:
    executor = executor_at(server)
    server.faults = [answer_with(content)]
    row = run_one(executor, "print(1)")
    assert row["status"] == "infrastructure"
    assert server.url in str(row["stderr"])
