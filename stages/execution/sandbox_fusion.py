"""Execution by a SandboxFusion server: isolation on another machine, behind HTTP.

The protocol is that of github.com/bytedance/SandboxFusion: `POST /run_code` with a program and its
limits, answered with a status. Its answers do not tell a time-out of the code from an exit code,
except by `run_result.status`; memory is told by the last line of the traceback alone. The program
that is sent runs the snippet as the sandbox does (`_cells.py`): value of a last expression, state
of earlier cells, seeds.

What the server protects is its own affair. Of the limits only wall time and memory are sent, and
output beyond the limit is cut here.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import polars as pl
from pydantic import BaseModel, Field, ValidationError

from schemas.categories import ExecutionStatus
from schemas.config import ExecutionConfig
from schemas.errors import ExecutorError
from stages.execution import _cells
from stages.execution.protocol import Outcome, cells_of, outcome_frame, refusal_of
from stages.execution.runtime import sources_of

_ATTEMPTS = 3
_PAUSE_S = 0.5
_GRACE_S = 10.0
"""How much longer than the code may run an answer is waited for: a server can hang, too."""

_EXTRA_BYTES = 1 << 16
"""Room in an answer for all but the two streams."""

_PROGRAM = """import types
module = types.ModuleType("cells")
exec(compile({source!r}, "cells", "exec"), module.__dict__)
module.run_cells({cells!r}, show_last_value={show!r})
"""
_SOURCE = sources_of(_cells)[0].text


class _RunResult(BaseModel):
    status: Literal["Finished", "Error", "TimeLimitExceeded"]
    execution_time: float | None = Field(None, ge=0, allow_inf_nan=False)
    return_code: int | None = Field(None, ge=-(2**31), lt=2**31)
    stdout: str | None = None
    stderr: str | None = None


class _Answer(BaseModel):
    """What the server says of one snippet, as far as it is used here."""

    status: Literal["Success", "Failed", "SandboxError"]
    message: str | None = None
    run_result: _RunResult | None = None


class _TooLongError(Exception):
    """The answer is longer than the limits on output allow."""


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
        show = self._config.show_last_value
        request = {
            "code": _PROGRAM.format(source=_SOURCE, cells=cells, show=show),
            "language": "python",
            "run_timeout": self._config.wall_time_s,
            "memory_limit_MB": self._config.memory_mib,
        }
        try:
            return self._outcome(self._answer(request))
        except _TooLongError:
            return Outcome(ExecutionStatus.OUTPUT_LIMIT)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "it"
            reason = f"not an answer of SandboxFusion: {place}: {first['msg']}"
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            reason = str(error) or type(error).__name__
        return Outcome(ExecutionStatus.INFRASTRUCTURE, stderr=f"{self._url}: {reason}")

    def _answer(self, request: dict[str, Any]) -> _Answer:
        """Asks the server; again only where the request did not get through."""
        for attempt in range(_ATTEMPTS):
            try:
                content = self._content(request)
            except httpx.ReadTimeout:
                raise  # it may be running the code still
            except httpx.TransportError:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_S * 2**attempt)
            else:
                return _Answer.model_validate_json(content)
        raise AssertionError("unreachable")

    def _content(self, request: dict[str, Any]) -> bytes:
        """Returns the body of one answer, which may neither be endless nor drip for ever."""
        # A character takes up to six bytes in JSON.
        most_bytes = 2 * 6 * 1024 * self._config.output_kib + _EXTRA_BYTES
        deadline = time.monotonic() + self._config.wall_time_s + _GRACE_S
        content = bytearray()
        with self._client.stream("POST", self._url, json=request) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > most_bytes:
                    raise _TooLongError
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer did not end in time")
        return bytes(content)

    def _outcome(self, answer: _Answer) -> Outcome:
        result = answer.run_result
        has_run = result is not None and (
            result.status == "TimeLimitExceeded"
            or (result.status == "Finished" and result.return_code is not None)
        )
        if answer.status == "SandboxError" or result is None or not has_run:
            reason = answer.message or "the server could not run it"
            return Outcome(ExecutionStatus.INFRASTRUCTURE, stderr=f"{self._url}: {reason}")
        room = self._config.output_kib * 1024
        stdout, is_cut = _cut(result.stdout or "", room)
        stderr, is_cut_too = _cut(result.stderr or "", room - len(stdout.encode()))
        exit_code = None
        if result.status == "TimeLimitExceeded":
            status = ExecutionStatus.TIMEOUT
        elif is_cut or is_cut_too:
            status = ExecutionStatus.OUTPUT_LIMIT
        elif result.return_code and re.match(
            "MemoryError(:|$)", stderr.strip().rpartition("\n")[2]
        ):
            status = ExecutionStatus.MEMORY
        else:
            exit_code = result.return_code
            status = ExecutionStatus.OK if exit_code == 0 else ExecutionStatus.ERROR
        return Outcome(status, stdout, stderr, exit_code, result.execution_time)


def _cut(text: str, most_bytes: int) -> tuple[str, bool]:
    """Returns the start of a text, and whether anything was cut."""
    content = text.encode("utf-8", "replace")
    if len(content) <= most_bytes:
        return text, False
    return content[:most_bytes].decode("utf-8", "ignore"), True
