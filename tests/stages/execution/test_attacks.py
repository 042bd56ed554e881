"""Hostile snippets end as they may, breach nothing, and harm no snippet after them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.execution import SandboxExecutor
from tests.stages.execution.attacks import ATTACKS, CLEAN, targets
from tests.stages.execution.frames import isolated, run_one, snippet_frame


@pytest.fixture(scope="module")
def aims() -> Iterator[dict[str, str]]:
    with targets() as made:
        yield made


@pytest.fixture(scope="module")
def executors() -> dict[bool, SandboxExecutor]:
    """An executor that lets snippets start no processes, and one that does."""
    return {
        leave: isolated(wall_time_s=1.0, threads=16, child_processes=leave)
        for leave in (False, True)
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_ends_as_it_may_and_harms_nobody(
    executors: dict[bool, SandboxExecutor],
    aims: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv("SECRET", "of the host")
    attack = ATTACKS[name]
    executor = executors[attack.processes]
    row = run_one(executor, attack.at(aims))
    assert row["status"] in attack.ends, row
    assert "BREACH" not in str(row["stdout"]), row
    after = executor.execute(snippet_frame([CLEAN] * 3))
    assert after["stdout"].to_list() == ["42\n"] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="the test above runs as an ordinary user already")
def test_attacks_of_an_ordinary_user_end_as_they_may() -> None:
    root, script = Path(__file__).parents[3], Path(__file__).with_name("as_ordinary_user.py")
    # Not pytest's own folder, which others may not enter.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(script), folder],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
    if "an ordinary user may make" in done.stderr or "no interpreter" in done.stderr:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    assert done.stdout == "all harmless\n", done.stderr + done.stdout
