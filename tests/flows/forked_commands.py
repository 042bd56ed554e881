"""Commands as processes that need not import anything: forked from one that has.

Importing torch, transformers and Prefect takes several seconds of a core, for each of hundreds of
commands. Only for commands that are waited for: what is killed, or reads its terminal, is started
as a user does.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest

from flows.cli import main
from tests.prefect_servers import flows_on

IMPORTED = (
    "flows.benchmarks",
    "flows.rerun",
    "flows.study_report",
    "flows.train",
    "flows.watching",
)
"""Modules that the commands are forked with, and all that these import."""


class ForkedCommands:
    """Runs commands in forks of a process with one environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Starts the process that is forked; it lives as long as this one.

        Args:
            environment: What libraries read while they are imported.
        """
        self.environment = dict(environment)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*IMPORTED])
        # As the command itself sets it before it imports Prefect.
        quiet = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL"}
        with pytest.MonkeyPatch.context() as patched:
            for name in set(os.environ) - set(environment):
                patched.delenv(name)
            for name, value in {**environment, **quiet}.items():
                patched.setenv(name, value)
            forkserver.ensure_running()

    def run(self, arguments: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Runs `turnledger` with arguments, in the working directory, to its end.

        Raises:
            subprocess.TimeoutExpired: If it takes longer; it is killed then.
        """
        command = ["turnledger", *arguments]
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder, "stdout"), Path(folder, "stderr")
            target = partial(_run, command, self.environment, os.getcwd(), told)
            process = self._context.Process(target=target)
            process.start()
            process.join(timeout_s)
            if process.exitcode is None:
                process.kill()
                raise subprocess.TimeoutExpired(command, timeout_s)
            stdout, stderr = (path.read_text() for path in told)
        return subprocess.CompletedProcess(command, process.exitcode, stdout, stderr)


def _run(
    command: list[str], environment: dict[str, str], folder: str, told: tuple[Path, Path]
) -> None:
    """Runs a command in a process that was just forked, as if it had been started."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, number in zip(told, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = command
    try:
        with flows_on(environment["PREFECT_API_URL"]):
            main()
    finally:
        atexit._run_exitfuncs()  # which a fork skips
