"""The first page: its transcript is of this version, and its code runs."""

import re

from docs_pages import ROOT
from docs_workplace import Workplace

from flows.sessions import default_run_name
from schemas.config import RunConfig

PAGE = (ROOT / "README.md").read_text()


def test_transcript_is_of_the_default_settings() -> None:
    assert f"run {default_run_name(RunConfig())} in turnledger-store" in PAGE


def test_transcript_at_least_doubles_accuracy_within_six_minutes() -> None:
    line = re.search(r"^quickstart: avg@4 ([\d.]+) -> ([\d.]+) in (\d+) s, store ", PAGE, re.M)
    assert line is not None
    before, after, seconds = (float(value) for value in line.groups())
    assert after >= 2 * before
    assert seconds <= 360


def test_python_runs_on_a_run(workplace: Workplace) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert blocks
    for block in blocks:
        code = block.replace(default_run_name(RunConfig()), "small").replace('"', "'")
        done = workplace.run(f'python -c "{code}"')
        assert done.returncode == 0, done.stderr


def test_rerun_command_runs_on_a_run(workplace: Workplace) -> None:
    command = next(c for c in PAGE.splitlines() if "turnledger rerun advantages --run" in c)
    command = command.removeprefix(".venv/bin/").replace(default_run_name(RunConfig()), "small")
    done = workplace.run(command.replace("--iteration 20", "--iteration 1"))
    assert done.returncode == 0, done.stderr
