"""Where the pages are tried: a folder, an environment, and the run that all of them use."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.prefect_servers import flows_on

TRAIN = "turnledger train --run small --config docs/examples/small.toml"
"""Makes the run that the pages use; the page on operations shows this command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """A folder with `docs/`, and an environment in which the commands of the pages run."""

    folder: Path
    environment: dict[str, str]

    def run(self, script: str, *, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @contextmanager
    def with_server(self) -> Iterator[None]:
        """Connects flows that are run in this process to the server of the tests."""
        with flows_on(self.environment["PREFECT_API_URL"]):
            yield

    def run_here(self, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        """Runs commands of `turnledger` in this process, which has imported everything already.

        Raises:
            AssertionError: If a command ends with another exit code than 0.
        """
        from flows.cli import main

        monkeypatch.chdir(self.folder)
        monkeypatch.delenv("TURNLEDGER_STORE", raising=False)
        monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")  # `main` would leave it set
        with self.with_server():
            for command in commands:
                monkeypatch.setattr(sys, "argv", command)
                with pytest.raises(SystemExit) as ended:
                    main()
                assert not ended.value.code, shlex.join(command)


def commands_of(script: str) -> list[list[str]] | None:
    """Returns the commands of a script as argument lists; null if some are not `turnledger`."""
    lines = script.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.strip()]
    return commands if all(command[0] == "turnledger" for command in commands) else None
