"""The chain of warm interpreters: who runs in which, and what becomes of it when one dies."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from stages.execution import _supervisor
from stages.execution.lanes import Zygote
from tests.stages.execution.frames import config_with, isolated, run_one, snippet_frame
from tests.stages.execution.test_many import descendants

ASKS = "import sys; print([n for n in ('num' + 'py', 'sym' + 'py') if n in sys.modules])"


@pytest.mark.parametrize(
    ("named", "imported"),
    [("", "[]"), ("numpy", "['numpy']"), ("sympy", "['numpy', 'sympy']"), ("numpyx", "[]")],
)
def test_a_snippet_finds_what_its_text_names(executor, named, imported):
    assert run_one(executor, f"{ASKS} # {named}")["stdout"] == f"{imported}\n"


def test_what_earlier_snippets_name_counts(executor):
    rows = executor.execute(snippet_frame([ASKS], ["import sympy"]))
    assert rows["stdout"].to_list() == ["['numpy', 'sympy']\n"]


def test_a_submodule_is_found_by_the_name_of_its_package():
    zygote = Zygote(Path("unused"), config_with(preload=["json.tool", "numpy"]))
    assert [zygote.warmth_for([code]) for code in ("1", "import json", "numpy")] == [0, 1, 2]


@pytest.mark.parametrize("preload", [["numpy"], []])
def test_generators_are_seeded_however_numpy_comes_in(preload):
    executor = isolated(preload=preload)
    hidden = "n = __import__('num' 'py'); print(n.random.random(), __import__('random').random())"
    named = f"{hidden} # numpy"
    rows = executor.execute(snippet_frame([hidden, hidden, named, named]))
    assert rows["stderr"].to_list() == [""] * 4
    first, second, third, fourth = rows["stdout"].to_list()
    assert (first, third) == (second, fourth)
    assert first != third


def test_numpy_that_is_imported_late_draws_what_it_would_have_drawn_early():
    code = "import numpy; print(numpy.random.random())"
    outputs = [run_one(isolated(preload=names), code)["stdout"] for names in (["numpy"], [])]
    assert outputs[0] == outputs[1]


def test_a_warm_interpreter_that_is_killed_comes_back():
    before = descendants()
    executor = isolated(workers=1)
    code = "import sympy; print(sympy.Integer(1))"
    assert run_one(executor, code)["stdout"] == "1\n"
    time.sleep(0.5)  # lanes end a moment after their connection
    resident = {
        pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        for pid in descendants() - before
    }
    os.kill(max(resident, key=resident.__getitem__), signal.SIGKILL)  # the warmest
    time.sleep(0.2)
    for wanted in ("print(1)", code):
        assert run_one(executor, wanted)["stdout"] == "1\n"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise SystemExit(3)", "bad cannot be imported: SystemExit: 3"),
        ("raise ValueError('a\\nb')", "bad cannot be imported: ValueError: a"),
        ("import none_such", "no module none_such"),
        ("print('loud')", None),
    ],
)
def test_whatever_a_module_does_when_it_is_imported_is_told_as_its_doing(
    tmp_path, monkeypatch, source, told
):
    (tmp_path / "bad.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad", raising=False)
    assert _supervisor._warm_up("bad") == told
