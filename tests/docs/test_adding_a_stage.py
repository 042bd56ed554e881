import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import DOCS, ROOT, edits_of

PAGE = DOCS / "adding-a-stage.md"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the example applied."""
    root = tmp_path_factory.mktemp("example")
    for name in ("flows", "stages", "storage", "schemas"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for edit in edits_of(PAGE):
        edit.apply(root)
    return root


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "PREFECT_HOME": str(folder / ".prefect-home"),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_example_passes_its_own_tests(copy: Path) -> None:
    done = run_in(copy, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_example_runs_from_the_copy(copy: Path) -> None:
    done = run_in(copy, "flows.cli", "train", "--set", "trajectory_lengths.long_tokens=9",
                  "--show-config")  # fmt: skip
    assert "long_tokens = 9" in done.stdout, done.stderr


def test_example_keeps_the_style_of_the_project(copy: Path) -> None:
    checked = run_in(copy, "ruff", "check", ".")
    assert checked.returncode == 0, checked.stdout
    formatted = run_in(copy, "ruff", "format", "--check", ".")
    assert formatted.returncode == 0, formatted.stdout
