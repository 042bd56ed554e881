import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from storage_builders import fingerprint

from storage import explain, module_closure

PACKAGES = ("stages", "schemas")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages: advantages -> helper -> tables, rewards -> tables, lazy -> helper."""
    sources = {
        "stages/__init__.py": '"""Stages."""\n',
        "stages/advantages.py": "import os\nfrom stages import helper\nX = helper.f(2)\n",
        "stages/helper.py": "from schemas.tables import A\n\ndef f(x):\n    return x + A\n",
        "stages/rewards.py": "from schemas import tables\n",
        "stages/lazy.py": "def f():\n    from .helper import f as g\n    return g(1)\n",
        "stages/deep/__init__.py": "from ..helper import f\n",
        "stages/deep/inner.py": "from . import leaf\n",
        "stages/deep/leaf.py": "X = 1\n",
        "stages/broken.py": "raise RuntimeError('never import me')\n",
        "schemas/__init__.py": "",
        "schemas/tables.py": "A = 1\n",
    }
    for name, source in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


def closure(tree: Path, module: str) -> dict[str, str]:
    return module_closure(module, PACKAGES, search_paths=[tree])


def edit(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "stages.advantages",
            ["schemas", "schemas.tables", "stages", "stages.advantages", "stages.helper"],
        ),
        ("stages.rewards", ["schemas", "schemas.tables", "stages", "stages.rewards"]),
        (
            "stages.lazy",
            ["schemas", "schemas.tables", "stages", "stages.helper", "stages.lazy"],
        ),
        (
            "stages.deep.inner",
            [
                *("schemas", "schemas.tables", "stages", "stages.deep", "stages.deep.inner"),
                *("stages.deep.leaf", "stages.helper"),
            ],
        ),
    ],
)
def test_closure_holds_what_is_imported(tree: Path, module: str, expected: list[str]) -> None:
    assert list(closure(tree, module)) == expected


def test_closure_of_edited_helper_changes_for_its_dependents_only(tree: Path) -> None:
    modules = ["stages.advantages", "stages.lazy", "stages.rewards", "stages.deep.inner"]
    before = {module: closure(tree, module) for module in modules}
    edit(tree / "stages/helper.py", "from schemas.tables import A\n\ndef f(x):\n    return x - A\n")
    changed = [module for module in modules if closure(tree, module) != before[module]]
    assert changed == ["stages.advantages", "stages.lazy", "stages.deep.inner"]


def test_closure_follows_a_new_import(tree: Path) -> None:
    assert "stages.helper" not in closure(tree, "stages.rewards")
    edit(tree / "stages/rewards.py", "from schemas import tables\nimport stages.helper\n")
    assert "stages.helper" in closure(tree, "stages.rewards")


def test_closure_ignores_comments_format_and_docstrings(tree: Path) -> None:
    before = closure(tree, "stages.advantages")
    edit(
        tree / "stages/helper.py",
        '"""New."""\nfrom schemas.tables import (\n    A,  # why\n)\n\n\n'
        'def f(x):\n    """Doc."""\n    return (x  +  A)\n',
    )
    edit(tree / "schemas/tables.py", 'A = 1\n"""What A is."""\n')
    assert closure(tree, "stages.advantages") == before


def test_closure_sees_a_changed_string_that_is_used(tree: Path) -> None:
    edit(tree / "schemas/tables.py", 'A = "one"\n')
    before = closure(tree, "stages.rewards")
    edit(tree / "schemas/tables.py", 'A = "two"\n')
    assert closure(tree, "stages.rewards") != before


def test_closure_does_not_import(tree: Path) -> None:
    assert "stages.broken" in closure(tree, "stages.broken")


def test_closure_of_unknown_module_is_an_error(tree: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"stages\.missing"):
        closure(tree, "stages.missing")


def test_closure_of_this_project_imports_none_of_it() -> None:
    code = (
        "import sys, storage\n"
        "found = storage.module_closure('storage.problems', ('storage', 'schemas'))\n"
        "assert 'schemas.tables' in found and 'storage.problem_sources' in found, found\n"
        "assert storage.module_closure('stages.rollout')\n"
        "assert 'stages' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("parts", "reasons"),
    [
        ({"config": {"gamma": 0.95}}, ["config gamma: 0.9 -> 0.95"]),
        ({"config": {"gamma": 0.9, "a": {"b": True}}}, ["config a.b: unset -> true"]),
        ({"config": {}}, ["config gamma: 0.9 -> unset"]),
        ({"code": {"stages.optimisation": "c1"}}, ["code stages.optimisation changed"]),
        (
            {"code": {"stages.losses": "c0"}},
            ["code stages.losses added", "code stages.optimisation removed"],
        ),
        ({"inputs": {"advantages": "d1"}}, ["data advantages changed"]),
        ({"seed": 1}, ["seed 0 -> 1"]),
        ({"libraries": {"torch": "2.14"}}, ["library torch 2.13 -> 2.14"]),
        (
            {"seed": None, "config": {"gamma": 1}, "inputs": {}},
            ["config gamma: 0.9 -> 1", "data advantages removed", "seed 0 -> null"],
        ),
        ({}, []),
    ],
)
def test_explain_names_each_difference(parts: dict[str, Any], reasons: list[str]) -> None:
    assert explain(fingerprint(**parts), fingerprint()) == reasons


def test_explain_first_run() -> None:
    assert explain(fingerprint(), None) == ["first run"]


def test_fingerprint_digest_survives_json() -> None:
    original = fingerprint(config={"levels": (1, 2, 3), "path": None})
    again = type(original).model_validate_json(original.model_dump_json())
    assert again.digest == original.digest
    assert explain(original, again) == []


@pytest.mark.parametrize(
    "parts",
    [{"stage": "x"}, {"code": {}}, {"config": {}}, {"inputs": {}}, {"seed": 1}, {"libraries": {}}],
)
def test_fingerprint_digest_covers_every_part(parts: dict[str, Any]) -> None:
    assert fingerprint(**parts).digest != fingerprint().digest
