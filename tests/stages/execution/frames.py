"""Frames that the tests of execution are made of."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from schemas.config import ExecutionConfig
from schemas.errors import ExecutorError
from stages.execution import SandboxExecutor
from stages.execution.bubblewrap import bundled_bwrap
from stages.execution.protocol import SNIPPET_SCHEMA, Executor


def snippet_frame(codes: Sequence[str], earlier: Sequence[str] = ()) -> pl.DataFrame:
    rows = [("task", index, 0, code, list(earlier)) for index, code in enumerate(codes)]
    return pl.DataFrame(rows, schema=SNIPPET_SCHEMA, orient="row")


def config_with(**changes: object) -> ExecutionConfig:
    """Limits that a busy machine does not run into, but for the changes."""
    return ExecutionConfig.model_validate({"wall_time_s": 20.0, "cpu_time_s": 20} | changes)


def allows_namespaces(bwrap: Path) -> bool:
    """Says whether the machine isolates at all, asked without any code of this project."""
    command = [str(bwrap), "--unshare-all", "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def isolated(**changes: object) -> SandboxExecutor:
    """An isolating executor; skips the test where the machine allows none."""
    try:
        return SandboxExecutor(config_with(**changes))
    except ExecutorError as error:
        if allows_namespaces(bundled_bwrap()):
            raise
        pytest.skip(str(error))


def run_one(executor: Executor, code: str) -> dict[str, object]:
    return executor.execute(snippet_frame([code])).row(0, named=True)
