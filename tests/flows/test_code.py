"""Which stages go stale when a source is edited, tried on a copy of the project."""

import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flows.binding
from flows.catalogue import STAGES
from storage import module_closure

ROOT = Path(__file__).parents[2]

IN_STAGES = {stage for stage, spec in STAGES.items() if spec.code[0].startswith("stages.")}
GRADED = {"turn_rewards", "evaluation"}
SCORED = {"turn_rewards", "similarity"}
"""Stages that read or write the table whose columns the components are."""
CREDITED = {"advantages", "optimisation", "gradient_noise"}
"""Stages that read or write the advantages."""
STARTING = {"cold_start", "prompts"}
"""Stages whose code reaches the cold start: its problems are the embedded ones."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for package in ("stages", "schemas", "storage"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    in_copy = functools.partial(module_closure, search_paths=[tmp_path])
    monkeypatch.setattr(flows.binding, "module_closure", in_copy)
    return tmp_path


def stale_after(edit: Callable[[], Any]) -> set[str]:
    code = flows.binding._code.__wrapped__  # not what was kept of the sources before
    before = {stage: code(stage, ()) for stage in STAGES}
    edit()
    return {stage for stage in STAGES if code(stage, ()) != before[stage]}


def in_class(name: str, line: str) -> tuple[str, str]:
    return rf"^class {name}\(.*\):\n", rf"\g<0>    {line}\n"


@pytest.mark.parametrize(
    ("file", "pattern", "new", "stale"),
    [
        ("stages/grading.py", r"\Z", "EXTRA = 1\n", GRADED),
        ("stages/similarity/tree.py", r"\Z", "EXTRA = 1\n", {"similarity"}),
        ("stages/similarity/report.py", r"\Z", "EXTRA = 1\n", set()),
        ("storage/embeddings.py", r"\Z", "EXTRA = 1\n", {"similarity"}),
        ("stages/advantages/rows.py", r"\Z", "EXTRA = 1\n", {"advantages"}),
        ("stages/comparison.py", r"\Z", "EXTRA = 1\n", set()),
        ("stages/__init__.py", r"\Z", "EXTRA = 1\n", IN_STAGES),
        ("storage/store.py", r"\Z", "EXTRA = 1\n", set()),
        ("storage/problems.py", r"\Z", "EXTRA = 1\n", {"problems"}),
        (
            "storage/checkpoints.py",
            r"\Z",
            "EXTRA = 1\n",
            {stage for stage, spec in STAGES.items() if "storage.checkpoints" in spec.code},
        ),
        ("schemas/tables.py", r"\Z", "class Costs(dy.Schema):\n    run = dy.String()\n", set()),
        ("schemas/tables.py", *in_class("ShapedRewards", "x = 1"), {"similarity", "advantages"}),
        ("schemas/tables.py", *in_class("Advantages", "x = 1"), CREDITED),
        ("schemas/config.py", r"\Z", "class Costs(Section):\n    per_hour: float = 1.0\n", set()),
        ("schemas/config.py", *in_class("SimilarityConfig", "x: int = 1"), {"similarity"}),
        ("schemas/config.py", *in_class("AdvantagesConfig", "x: int = 1"), {"advantages"}),
        ("schemas/config.py", *in_class("EvaluationConfig", "x: int = 1"), set()),
        ("schemas/config.py", *in_class("RunConfig", "x: int = 1"), set()),
        ("schemas/reward_components.py", r"penalty \* share", "penalty * share**2", SCORED),
        ("schemas/config.py", *in_class("ComputeConfig", "x: int = 1"), {"cold_start"}),
    ],
)
def test_edit_makes_stale_exactly_the_stages_that_depend_on_it(
    project: Path, file: str, pattern: str, new: str, stale: set[str]
) -> None:
    path = project / file
    edited, count = re.subn(pattern, new, path.read_text(), count=1, flags=re.M)
    assert count == 1
    assert stale_after(lambda: path.write_text(edited)) == stale


@pytest.mark.parametrize("file", ["stages/grading.py", "schemas/tables.py", "schemas/config.py"])
def test_comment_makes_no_stage_stale(project: Path, file: str) -> None:
    path = project / file
    assert stale_after(lambda: path.write_text("# Why.\n" + path.read_text())) == set()
