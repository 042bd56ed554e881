"""The code of a module: on a small tree by cases, and on a copy of this project by an oracle."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import grimp
import pytest

from storage import module_closure

ROOT = Path(__file__).parents[2]

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
    return write_tree(tmp_path, sources)


def write_tree(folder: Path, sources: dict[str, str]) -> Path:
    for name, source in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


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
            ["schemas.tables", "stages", "stages.advantages", "stages.helper"],
        ),
        ("stages.rewards", ["schemas.tables", "stages", "stages.rewards"]),
        (
            "stages.lazy",
            ["schemas.tables", "stages", "stages.helper", "stages.lazy"],
        ),
        (
            "stages.deep.inner",
            [
                *("schemas.tables", "stages", "stages.deep", "stages.deep.inner"),
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


# --- declarations count by what is used -----------------------------------------------------

DECLARATIONS = """
import polars as pl
from schemas.kinds import KINDS, Kind
from schemas import lengths

KEY = ("task_id",)
SIZE: int = 3
LEFT, RIGHT = 1, 2

def _column(doc):
    return (pl.String, doc, SIZE)

class Turns:
    task_id = _column("Turns of a task.")
    kind = Kind

class Longer(Turns):
    length = lengths.LONGEST

class Later:
    before: "list[Turns]"

class Alone:
    x = LEFT
"""
KINDS = "class Kind:\n    A = 1\n\nKINDS = [Kind]\nUNUSED = 1\n"
USERS = {
    "key": "from schemas.tables import KEY",
    "turns": "from schemas.tables import Turns",
    "longer": "from schemas.tables import Longer",
    "later": "from schemas.tables import Later",
    "alone": "from schemas.tables import Alone",
    "kinds": "from schemas.tables import KINDS as all_kinds",
    "lazy": "def f():\n    from ..schemas.tables import Alone\n",
    "module": "import schemas.tables",
    "member": "from schemas import tables",
    "star": "from schemas.tables import *",
    "unknown": "from schemas.tables import missing",
    "through": "from stages import turns",
}


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """Stages that use one definition each of `schemas.tables`, which uses other modules."""
    sources = {f"stages/{name}.py": source for name, source in USERS.items()}
    sources["stages/lazy.py"] = "def f():\n    from schemas.tables import Alone\n"
    sources |= {
        "stages/__init__.py": "",
        "schemas/__init__.py": "",
        "schemas/tables.py": DECLARATIONS,
        "schemas/kinds.py": KINDS,
        "schemas/lengths.py": "LONGEST = 9\n",
    }
    return write_tree(tmp_path, sources)


WHOLE = {"module", "member", "star", "unknown"}
"""Users that count the whole module."""


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("tables", "KEY = (", "KEY = (1, ", {"key"}),
        ("tables", "SIZE: int = 3", "SIZE: int = 4", {"turns", "longer", "later", "through"}),
        ("tables", "(pl.String, doc", "(pl.Int32, doc", {"turns", "longer", "later", "through"}),
        ("tables", "LEFT, RIGHT = 1", "LEFT, RIGHT = 3", {"alone", "lazy"}),
        (
            "tables",
            "import polars as pl",
            "import pandas as pl",
            {"turns", "longer", "later", "through"},
        ),
        ("tables", "class Longer(Turns)", "class Longer(Later, Turns)", {"longer"}),
        ("tables", "    kind = Kind", "    sort = Kind", {"turns", "longer", "later", "through"}),
        ("tables", "class Alone:", "class New:\n    y = 1\n\nclass Alone:", set()),
        ("tables", "class Alone:", "Turns.more = 1\n\nclass Alone:", {*USERS}),
        ("tables", "class Alone:", "KEY += (1,)\n\nclass Alone:", {"key"}),
        ("tables", "import polars", "from __future__ import annotations\nimport polars", {*USERS}),
        ("kinds", "A = 1", "A = 2", {"turns", "longer", "later", "through", "kinds"}),
        ("kinds", "[Kind]", "[Kind, 1]", {"kinds"}),
        ("kinds", "UNUSED = 1", "UNUSED = 2", set()),
        ("kinds", "UNUSED = 1", "print(1)", {*USERS}),
        ("lengths", "9", "10", {"longer"}),
    ],
)
def test_edit_of_declarations_concerns_those_who_use_them(
    declared: Path, file: str, old: str, new: str, stale: set[str]
) -> None:
    path = declared / f"schemas/{file}.py"
    source = path.read_text()
    assert old in source
    changed = changes(declared, USERS, lambda: edit(path, source.replace(old, new, 1)))
    # What counts a module whole sees each edit in it, and elsewhere what the module refers to.
    whole = WHOLE if file == "tables" or stale else set()
    assert changed == stale | whole


def test_moved_and_split_imports_of_declarations_change_nothing(declared: Path) -> None:
    path = declared / "schemas/tables.py"
    split = "from schemas.kinds import Kind\nfrom schemas.kinds import KINDS"
    edited = path.read_text().replace("from schemas.kinds import KINDS, Kind", split)
    assert changes(declared, ["turns", "kinds"], lambda: edit(path, edited)) == set()


# --- a copy of this project -----------------------------------------------------------------

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "stages").rglob("*.py")
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    return tmp_path


@pytest.fixture(scope="session")
def reached() -> dict[str, set[str]]:
    """Module to all modules that are loaded with it, by another program's import graph."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    direct = {
        name: {*graph.find_modules_directly_imported_by(name), *parents_of(name)}
        for name in graph.modules
    }
    closures = {}
    for name in MODULES:
        found: set[str] = set()
        waiting = {name}
        while waiting:
            found |= waiting
            waiting = {other for one in waiting for other in direct[one]} - found
        closures[name] = found
    return closures


def test_closures_are_those_of_the_import_graph(reached: dict[str, set[str]]) -> None:
    for module, expected in reached.items():
        counted = set(module_closure(module))
        assert {m for m in counted if m.startswith("stages")} == {
            m for m in expected if m.startswith("stages")
        }, module
        assert counted <= expected, module


@pytest.mark.parametrize(
    "helper", ["stages.randomness", "stages.grading", "stages.dialogue", "stages.execution"]
)
def test_edited_helper_concerns_all_that_reach_it(
    project: Path, reached: dict[str, set[str]], helper: str
) -> None:
    path = file_of(project, helper)
    stale = changes(project, MODULES, lambda: edit(path, path.read_text() + "\nEXTRA = 1\n"))
    assert stale == {module for module, loaded in reached.items() if helper in loaded}


@pytest.mark.parametrize(
    ("file", "definition"),
    [
        ("tables", "TurnRewards"),
        ("tables", "ColdStartUpdates"),
        ("tables", "Problems"),
        ("tables", "_category"),
        ("tables", "TRAJECTORY_KEY"),
        ("config", "SimilarityConfig"),
        ("config", "ComputeConfig"),
        ("config", "Section"),
        ("errors", "TurnledgerError"),
    ],
)
def test_edited_declaration_concerns_all_that_mention_it(
    project: Path, reached: dict[str, set[str]], file: str, definition: str
) -> None:
    path = project / f"schemas/{file}.py"
    names = mentioning(path.read_text(), definition)
    used = re.compile(rf"^from schemas\.{file} import [^#]*?\b({'|'.join(names)})\b", re.M)
    direct = {
        module
        for module in MODULES
        if used.search(imports_in_one_line(file_of(project, module).read_text()))
    }
    stale = changes(project, MODULES, lambda: edit(path, path.read_text() + redefined(definition)))
    assert stale == {module for module, loaded in reached.items() if loaded & direct}


def test_a_new_table_concerns_nobody(project: Path) -> None:
    path = project / "schemas/tables.py"
    source = path.read_text().replace(
        "TABLES: dict[str, Table] = {",
        'class Costs(dy.Schema):\n    """Grain: run."""\n\n    run = dy.String()\n\n\n'
        'TABLES: dict[str, Table] = {\n    "costs": Table(schema=Costs, version=1),',
    )
    assert "Costs" in source
    assert changes(project, MODULES, lambda: edit(path, source)) == set()


def test_comments_docstrings_and_formatting_concern_nobody(project: Path) -> None:
    def rewrite() -> None:
        for path in project.rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                match node:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        node.value = ast.Constant(f"Rewritten: {text}")
            edit(path, f"# A comment.\n{ast.unparse(tree)}\n")

    assert changes(project, MODULES, rewrite) == set()


def changes(tree: Path, modules: Iterable[str], change: Callable[[], object]) -> set[str]:
    """Returns the modules whose closure a change of the tree changes."""
    names = {name: name if "stages" in name else f"stages.{name}" for name in modules}
    before = {short: closure(tree, name) for short, name in names.items()}
    change()
    return {short for short, name in names.items() if closure(tree, name) != before[short]}


def mentioning(source: str, name: str) -> set[str]:
    """Returns the definitions of a module in whose text a name stands, and so on."""
    parts = re.split(r"^(?=class |def |@|[A-Z_]+\b.* = )", source, flags=re.M)
    found: set[str] = set()
    waiting = {name}
    while waiting:
        found |= waiting
        pattern = re.compile(rf"\b({'|'.join(waiting)})\b")
        heads = (re.match(r"(?:class |def )?(\w+)", p) for p in parts if pattern.search(p))
        waiting = {head[1] for head in heads if head} - found
    return found


def imports_in_one_line(source: str) -> str:
    return re.sub(r"\(\n([^)]*)\)", lambda m: " ".join(m[1].split()), source)


def redefined(name: str) -> str:
    """Returns source that changes what a definition is made of, and nothing else."""
    return f"\n{name} = {name} and {name}\n"


def parents_of(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def file_of(tree: Path, module: str) -> Path:
    path = tree.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
