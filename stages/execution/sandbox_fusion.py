"""Execution by a SandboxFusion server: isolation on another machine, behind HTTP.

The protocol is that of github.com/bytedance/SandboxFusion: `POST /run_code` with the code and its
limits, answered with a status. Its answers do not tell a time-out of the code from an exit code,
except by `run_result.status`; memory is not told at all and reads as an error.

What the server protects is its own affair. Of the limits only wall time and memory are sent.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import polars as pl

from schemas.config import ExecutionConfig
from schemas.errors import ExecutorError
from schemas.tables import ExecutionStatus
from stages.execution.protocol import Outcome, cells_of, outcome_frame, refusal_of

_ATTEMPTS = 3
_PAUSE_S = 0.5
_GRACE_S = 10.0
"""How much longer than the code may run an answer is waited for: a server can hang, too."""

_REPLAYED = """
import contextlib, io
for cell in {cells!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(BaseException):
            exec(compile(cell, "<snippet>", "exec"), globals())
"""


class FusionExecutor:
    """Runs snippets by a SandboxFusion server; see `Executor`.

    Args:
        config: Limits, `fusion_url`, and `workers`, the requests that are under way at a time.

    Raises:
        schemas.errors.ExecutorError: If no address is set, or a trial snippet does not succeed.
    """

    def __init__(self, config: ExecutionConfig) -> None:
        if config.fusion_url is None:
            raise ExecutorError(
                "execution.fusion_url is not set: backend sandbox_fusion needs the server's address"
            )
        self._url = config.fusion_url.rstrip("/") + "/run_code"
        self._config = config
        timeout = httpx.Timeout(config.wall_time_s + _GRACE_S, connect=5.0)
        limits = httpx.Limits(max_connections=config.workers)
        self._client = httpx.Client(timeout=timeout, limits=limits)
        outcome = self._run(["print('ready')"])
        if (outcome.status, outcome.stdout) != (ExecutionStatus.OK, "ready\n"):
            raise ExecutorError(
                f"execution.fusion_url: {config.fusion_url} does not run a trial snippet "
                f"({outcome.status}: {outcome.stderr.strip() or outcome.stdout.strip()}): start a "
                "SandboxFusion server there, or take another backend"
            )

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        """Has every snippet run by the server; see `Executor.execute`."""
        with ThreadPoolExecutor(self._config.workers, "fusion") as pool:
            return outcome_frame(snippets, list(pool.map(self._run, cells_of(snippets))))

    def _run(self, cells: list[str]) -> Outcome:
        refusal = refusal_of(cells)
        if refusal is not None:
            return refusal
        *earlier, code = cells
        if earlier:
            code = _REPLAYED.format(cells=earlier) + code
        request = {
            "code": code,
            "language": "python",
            "run_timeout": self._config.wall_time_s,
            "memory_limit_MB": self._config.memory_mib,
        }
        started = time.monotonic()
        try:
            answer = self._answer(request)
        except (httpx.HTTPError, ValueError) as error:
            reason = f"{self._url}: {str(error) or type(error).__name__}"
            return Outcome(ExecutionStatus.INFRASTRUCTURE, stderr=reason)
        return self._outcome(answer, time.monotonic() - started)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Asks the server; again only where the request did not get through."""
        for attempt in range(_ATTEMPTS):
            try:
                response = self._client.post(self._url, json=request)
            except httpx.ReadTimeout:
                raise  # it may be running the code still
            except httpx.TransportError:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_S * 2**attempt)
                continue
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
            return answer
        raise AssertionError("unreachable")

    def _outcome(self, answer: dict[str, Any], wall_s: float) -> Outcome:
        result = answer.get("run_result") or {}
        room = self._config.output_kib * 1024
        stdout, is_cut = _cut(result.get("stdout") or "", room)
        stderr, is_cut_too = _cut(result.get("stderr") or "", room)
        exit_code = result.get("return_code")
        wall_s = result.get("execution_time") or wall_s
        if answer.get("status") == "SandboxError" or not result:
            reason = str(answer.get("message") or json.dumps(answer)[:200])
            return Outcome(ExecutionStatus.INFRASTRUCTURE, stderr=reason)
        if result.get("status") == "TimeLimitExceeded":
            return Outcome(ExecutionStatus.TIMEOUT, stdout, stderr, None, wall_s)
        if result.get("status") == "Error":
            return Outcome(ExecutionStatus.INFRASTRUCTURE, stdout, stderr, None, wall_s)
        if is_cut or is_cut_too:
            return Outcome(ExecutionStatus.OUTPUT_LIMIT, stdout, stderr, None, wall_s)
        status = ExecutionStatus.OK if exit_code == 0 else ExecutionStatus.ERROR
        return Outcome(status, stdout, stderr, exit_code, wall_s)


def _cut(text: str, most_bytes: int) -> tuple[str, bool]:
    """Returns the start of a text, and whether anything was cut."""
    content = text.encode("utf-8", "replace")
    if len(content) <= most_bytes:
        return text, False
    return content[:most_bytes].decode("utf-8", "ignore"), True
