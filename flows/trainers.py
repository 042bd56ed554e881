"""Trainings as processes: `turnledger train` for each, which ends with this process."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.cli_options import as_toml
from schemas.config import RunConfig
from schemas.errors import TurnledgerError
from stages.kept_process import KeptProcess

OnFact = Callable[[str, Mapping[str, Any]], None]
"""Told the name of a run, and one JSON object of `turnledger train --json`."""

_SOURCES = Path(__file__).resolve().parent.parent


class Trainers:
    """Runs trainings, and ends those that still run when it is closed."""

    def __init__(self, store: str, prefect_url: str, on_fact: OnFact) -> None:
        """Begins without any.

        Args:
            store: Folder or address of the store.
            prefect_url: Address of the Prefect server that all of them use.
            on_fact: Told what they do; called from the threads that train.
        """
        self._store, self._on_fact = store, on_fact
        self._environment = {
            # Trainings share one server, which is late at times: its answer is waited for.
            "PREFECT_CLIENT_MAX_RETRIES": "10",
            **os.environ,
            "PREFECT_API_URL": prefect_url,
            "PYTHONPATH": os.pathsep.join(
                [str(_SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        self._lock = threading.Lock()
        self._running: dict[str, KeptProcess] = {}
        self._ended = False

    def close(self) -> None:
        """Ends the trainings that run, and lets none begin."""
        with self._lock:
            self._ended = True
            running, self._running = self._running, {}
        for kept in running.values():
            kept.end()

    def train(self, run: str, config: RunConfig) -> None:
        """Trains a run to its last iteration, and returns when it is done.

        Raises:
            TurnledgerError: If it fails, with its own words, or was ended.
        """
        with tempfile.TemporaryDirectory(prefix="turnledger-training-") as name:
            folder = Path(name)
            (folder / "config.toml").write_text(as_toml(config))
            words = ["train", "--json", "--store", self._store, "--run", run]
            command = [sys.executable, "-m", "flows.cli", *words]
            with (folder / "errors").open("wb") as errors:
                kept = self._begin(run, [*command, "--config", str(folder / "config.toml")], errors)
            told: dict[str, Any] = {}
            output = kept.keeper.stdout
            assert output is not None
            with output:
                for line in output:
                    told = json.loads(line)
                    self._on_fact(run, told)
            status = self._status_of(run)
            if status:
                reason = (folder / "errors").read_text(errors="replace").strip().splitlines()
                said = told.get("message") or (reason[-1] if reason else f"exit code {status}")
                raise TurnledgerError(f"training {run} failed: {said}")

    def _begin(self, run: str, command: list[str], errors: Any) -> KeptProcess:
        with self._lock:
            if self._ended:
                raise TurnledgerError(f"training {run} was not begun")
            kept = KeptProcess(
                command,
                Path(errors.name).parent,
                environment=self._environment,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            self._running[run] = kept
            return kept

    def _status_of(self, run: str) -> int:
        """Returns the status of a training whose output has ended.

        Raises:
            TurnledgerError: If it was ended meanwhile.
        """
        with self._lock:
            kept = self._running.pop(run, None)
        if kept is None:
            raise TurnledgerError(f"training {run} was ended; the same command goes on with it")
        return kept.end()
