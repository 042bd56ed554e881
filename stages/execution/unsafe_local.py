"""Execution without isolation, for code that you trust.

A new interpreter for each snippet, with the resource limits and the time-out of the configuration
and nothing else: the code can read and write whatever the user can, reach the network, and leave
processes behind that moved to a session of their own. The number of processes is not limited.
"""

import json
import logging
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from schemas.config import ExecutionConfig
from stages.execution import _cells, _child, _seccomp, _unisolated, _watch
from stages.execution._outputs import Outputs
from stages.execution.protocol import Outcome, cells_of, outcome_frame, refusal_of
from stages.execution.runtime import (
    ENVIRONMENT,
    interpreter_command,
    limits_of,
    site_packages,
    sources_of,
)

_log = logging.getLogger(__name__)
_MODULES = sources_of(_cells, _seccomp, _child, _unisolated)


class UnsafeLocalExecutor:
    """Runs snippets as plain processes of the current user."""

    def __init__(self, config: ExecutionConfig) -> None:
        _log.warning("execution.backend unsafe_local: generated code runs without any isolation")
        self._limits = limits_of(config)
        self._workers = config.workers

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        """Runs every snippet in an interpreter of its own; see `Executor.execute`."""
        with ThreadPoolExecutor(self._workers) as pool:
            return outcome_frame(snippets, list(pool.map(self._run, cells_of(snippets))))

    def _run(self, cells: list[str]) -> Outcome:
        refusal = refusal_of(cells)
        if refusal is not None:
            return refusal
        with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as source:
            source.write(json.dumps(cells).encode())
            source.seek(0)
            settings = {"directory": directory, "limits": self._limits, "path": site_packages()}
            command = interpreter_command(sys.executable, _MODULES, settings)
            pipes = [os.pipe() for _ in range(3)]
            ends = [source.fileno(), *(write for _, write in pipes)]
            actions = [(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(ends)]
            pid = os.posix_spawn(
                sys.executable,
                command,
                ENVIRONMENT | {"HOME": directory, "TMPDIR": directory},
                file_actions=actions,
            )
            for _, write in pipes:
                os.close(write)
            out, err, note = (read for read, _ in pipes)
            outputs = Outputs(out, err, self._limits["output_kib"])
            ended = _watch.watch(pid, note, self._limits, outputs=outputs)
            stdout, stderr = outputs.texts()
            return Outcome(stdout=stdout, stderr=stderr + ended.pop("reason"), **ended)
