import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import DOCS, ROOT, edits_of, rows_of

from stages.cold_start import conversations, examples

PAGE = DOCS / "cold-start.md"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources and their tests, with the family of the page added."""
    root = tmp_path_factory.mktemp("family")
    for name in ("flows", "stages", "storage", "schemas", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (edit,) = edits_of(PAGE)
    edit.apply(root)
    return root


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_a_further_family_passes_the_tests_of_families(copy: Path) -> None:
    done = run_in(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
                  "tests/stages/cold_start/test_families.py")  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_a_further_family_is_demonstrated_and_asked_on_both_sides(copy: Path) -> None:
    script = """
from schemas.cold_start import ColdStartConfig
from schemas.config import ExecutionConfig
from stages.cold_start.demonstrations import make_demonstrations
from stages.prompts import embedded_problems
shown = make_demonstrations(
    ColdStartConfig(demonstrations=300), ExecutionConfig(), levels=(1, 2), seed=0
)
print(shown["source"].str.contains("reversal").any(), *(
    embedded_problems(300, split=split, levels=(1, 2), seed=0)["source"]
    .str.contains("reversal").any() for split in ("train", "held_out")
))
"""
    done = run_in(copy, "-c", script)
    assert done.stdout.strip() == "True True True", done.stderr


def test_page_lists_the_reasons_for_leaving_out() -> None:
    reasons = {row[0] for row in rows_of(PAGE, "reason")}
    named = (examples.WRONG, examples.TOO_LONG, examples.NOT_SCORED, examples.NO_TOKEN)
    assert {*named, examples.UNREADABLE} <= reasons
    source = Path(conversations.__file__).read_text()
    for reason in ("a turn without call before the last", "a call without what it showed"):
        assert reason in reasons
        assert f'"{reason}"' in source
