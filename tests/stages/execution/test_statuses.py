"""What a snippet does decides its status, exit code and texts."""

import pytest

from stages.execution import make_executor
from stages.execution.protocol import why_refused
from tests.stages.execution.frames import config_with, isolated, run_one, snippet_frame


def test_printing_snippet_is_ok(executor):
    row = run_one(executor, "print('é', 1 + 1)")
    assert (row["status"], row["stdout"], row["stderr"], row["exit_code"]) == ("ok", "é 2\n", "", 0)


def test_times_are_measured(executor):
    row = run_one(executor, "import time\nwhile time.process_time() < 0.3: pass")
    assert row["wall_s"] >= 0.2
    assert row["cpu_s"] >= 0.2


def test_exception_is_an_error_with_its_own_frames_only(executor):
    row = run_one(executor, "def f():\n    return math.pi\nf()")
    assert (row["status"], row["exit_code"]) == ("error", 1)
    lines = row["stderr"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("NameError: name 'math' is not defined")
    assert all('"<snippet>"' in line for line in lines if line.startswith("  File"))


def test_code_that_is_no_python_is_an_error(executor):
    row = run_one(executor, "print(1")
    assert row["status"] == "error"
    assert "SyntaxError" in row["stderr"].splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("import sys; sys.exit(0)", "ok", 0),
        ("import sys; sys.exit()", "ok", 0),
        ("import sys; sys.exit('reason')", "error", 1),
        ("import os; os._exit(3)", "error", 3),
        ("raise KeyboardInterrupt", "error", 1),
        ("import ctypes; ctypes.string_at(0)", "error", None),
        ("import os; os.abort()", "error", None),
        ("input()", "error", 1),
    ],
)
def test_end_decides_status_and_exit_code(executor, code, status, exit_code):
    row = run_one(executor, code)
    assert (row["status"], row["exit_code"]) == (status, exit_code)


def test_segfault_names_the_signal(executor):
    assert run_one(executor, "import ctypes; ctypes.string_at(0)")["stderr"] == "SIGSEGV\n"


def test_sleeping_too_long_is_a_timeout_that_keeps_what_was_printed(hasty_executor):
    row = run_one(hasty_executor, "import time; print('before'); time.sleep(60)")
    assert (row["status"], row["stdout"], row["exit_code"]) == ("timeout", "before\n", None)


def test_computing_in_one_long_call_is_a_timeout(hasty_executor):
    assert run_one(hasty_executor, "sum(range(10**12))")["status"] == "timeout"


def test_ignoring_every_signal_is_a_timeout(hasty_executor):
    code = "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    row = run_one(hasty_executor, code + "    except (OSError, ValueError): pass\nwhile True: pass")
    assert row["status"] == "timeout"


def test_cpu_limit_is_a_timeout():
    executor = isolated(cpu_time_s=1)
    row = run_one(executor, "while True: pass")
    assert row["status"] == "timeout"
    assert row["wall_s"] < 15


def test_closing_every_descriptor_does_not_escape_the_wall_time(hasty_executor):
    row = run_one(hasty_executor, "import os, time; os.closerange(0, 64); time.sleep(60)")
    assert row["status"] == "timeout"


@pytest.mark.parametrize(
    "code", ["x = bytearray(10**10)", "x = []\nwhile True: x.append('x' * 10**6)"]
)
def test_too_much_memory_is_memory(executor, code):
    assert run_one(executor, code)["status"] == "memory"


def test_memory_error_that_is_caught_is_ok(executor):
    code = "try: bytearray(10**10)\nexcept MemoryError: print('caught')"
    row = run_one(executor, code)
    assert (row["status"], row["stdout"]) == ("ok", "caught\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_cut_at_the_limit(stream):
    executor = isolated(output_kib=3)
    code = f"import sys\nwhile True: print('x' * 99, file=sys.{stream})"
    row = run_one(executor, code)
    assert row["status"] == "output_limit"
    assert len(row["stdout"]) + len(row["stderr"]) == 3 * 1024


def test_output_at_the_limit_is_ok():
    executor = isolated(output_kib=1)
    row = run_one(executor, "print('x' * 1024, end='')")
    assert (row["status"], row["stdout"]) == ("ok", "x" * 1024)


def test_output_that_is_no_text_is_replaced(executor):
    row = run_one(executor, r"import os; _ = os.write(1, b'\xff\x00ok')")
    assert (row["status"], row["stdout"]) == ("ok", "\ufffd\0ok")


def test_code_with_a_null_character_is_refused(executor):
    row = run_one(executor, "print(1)\0")
    assert (row["status"], row["stdout"], row["wall_s"]) == ("refused", "", None)


def test_code_with_a_lone_surrogate_would_be_refused():
    assert why_refused("print('\ud800')") is not None
    assert why_refused("print('\U0001f600')") is None


def test_threads_are_joined_and_exit_functions_run(executor):
    code = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
    )
    assert run_one(executor, code)["stdout"] == "thread\nlast\n"


@pytest.mark.parametrize(
    "draw",
    [
        "random; random.random()",
        "numpy; numpy.random.random()",
        "numpy; numpy.random.default_rng().random()",
        "sympy; sympy.randprime(1, 10**9)",
    ],
)
def test_the_same_code_draws_the_same_numbers_and_other_code_others(executor, draw):
    code = f"import {draw}"
    rows = executor.execute(snippet_frame([code, code, f"{code} # other"]))
    first, again, other = rows["stdout"]
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 + 1", "2\n"),
        ("x = 3\nx", "3\n"),
        ("'a'", "'a'\n"),
        ("None", ""),
        ("print(1)\n2", "1\n"),
        ("import sys; sys.stderr.write('e')\n2", "2\n"),
        ("x = 3", ""),
        ("if True:\n    5", ""),
        ("print(1)", "1\n"),
        ("import sys; sys.stdout.close()\n1", ""),
    ],
)
def test_the_value_of_a_last_expression_is_shown_if_nothing_was_printed(executor, code, shown):
    row = run_one(executor, code)
    assert (row["status"], row["stdout"]) == ("ok", shown)


def test_the_value_of_a_last_expression_can_be_left_out():
    assert run_one(isolated(show_last_value=False), "1 + 1")["stdout"] == ""


def test_an_expression_that_raises_is_an_error_with_its_own_frames_only(executor):
    row = run_one(executor, "x = 0\n1 / x")
    assert row["status"] == "error"
    assert [line for line in row["stderr"].splitlines() if "File" in line] == [
        '  File "<snippet>", line 2, in <module>'
    ]


def test_sets_of_strings_have_one_order(executor):
    rows = executor.execute(snippet_frame(["print({'a', 'b', 'c', 'd', 'e', 'f'})"] * 4))
    assert rows["stdout"].n_unique() == 1


def test_installed_packages_can_be_imported(executor):
    pytest.importorskip("numpy")
    row = run_one(executor, "import numpy; print(int(numpy.arange(4).sum()))")
    assert (row["status"], row["stdout"]) == ("ok", "6\n"), row["stderr"]


def test_main_module_holds_what_the_snippet_defines(executor):
    code = (
        "import dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass Point:\n    x: 'int'\n"
        "print(__name__, pickle.loads(pickle.dumps(Point(3))).x)\n"
    )
    assert run_one(executor, code)["stdout"] == "__main__ 3\n"


def test_generators_of_one_snippet_differ_from_each_other(executor):
    code = "from numpy.random import default_rng as g; print(g().random() == g().random())"
    assert run_one(executor, code)["stdout"] == "False\n"
    seeded = "from numpy.random import default_rng as g; print(g(3).random() == g(3).random())"
    assert run_one(executor, seeded)["stdout"] == "True\n"


@pytest.mark.parametrize(
    "code",
    ["9**9999", "class A:\n    def __repr__(self): raise ValueError('no')\nA()"],
)
def test_a_last_value_that_cannot_be_shown_is_an_error(executor, code):
    row = run_one(executor, code)
    assert (row["status"], row["stdout"]) == ("error", "")
    assert "ValueError" in row["stderr"]


@pytest.mark.parametrize("module", ["random", "numpy.random"])
def test_replayed_cells_draw_the_numbers_that_they_drew(executor, module):
    drew = f"import {module}\nx = {module}.random()"
    shown = run_one(executor, f"{drew}\nprint(x)")["stdout"]
    again = executor.execute(snippet_frame(["print(x)"], [f"{drew}\nprint(x)"]))
    assert again["stdout"].to_list() == [shown]


@pytest.mark.parametrize(
    "earlier",
    [
        "import os; x = 1; os._exit(0)",
        "import sys; x = 1; sys.stdout.close()",
        "import io, sys; x = 1; sys.stdout = io.StringIO()",
        "import atexit; x = 1; atexit.register(print, 'late')",
        "import sys; x = 1; sys.exit(3)",
    ],
)
def test_however_an_earlier_cell_ended_the_next_one_prints(executor, earlier):
    rows = executor.execute(snippet_frame(["print(x)"], [earlier]))
    assert rows["stdout"].to_list() == ["1\n"], rows["stderr"][0]
    rows = executor.execute(snippet_frame(["print(x)"], [earlier, "print(x); x = 2"]))
    assert rows["stdout"].to_list() == ["2\n"], rows["stderr"][0]


def test_an_earlier_cell_that_was_refused_left_no_state(executor):
    rows = executor.execute(snippet_frame(["print(x)"], ["x = 1", "x = 2\0"]))
    assert rows["stdout"].to_list() == ["1\n"]


@pytest.mark.parametrize("end", ["quit()", "exit()", "exit(0)"])
def test_the_interactive_ways_to_end_work(executor, end):
    row = run_one(executor, f"print(1)\n{end}\nprint(2)")
    assert (row["status"], row["stdout"]) == ("ok", "1\n")


@pytest.mark.parametrize("code", ["def f(:", "x = 1\n1/0", "import json; json.loads('{')"])
def test_a_traceback_shows_no_frame_of_ours(executor, code):
    row = run_one(executor, code)
    assert row["status"] == "error"
    assert "stages" not in row["stderr"]
    assert "_cells" not in row["stderr"]
    assert "ast.py" not in row["stderr"]


def test_what_a_snippet_makes_of_the_ways_to_end_is_its_own_affair(executor):
    row = run_one(executor, "import os\nos._exit = lambda code: None\nprint(1)")
    assert (row["status"], row["stdout"], row["stderr"]) == ("ok", "1\n", "")


def test_code_beyond_a_mebibyte_is_refused(executor):
    assert run_one(executor, "#" + "x" * (1 << 20))["status"] == "refused"
    assert run_one(executor, "print(1)#" + "x" * ((1 << 20) - 9))["stdout"] == "1\n"


def test_a_long_snippet_gives_way(executor):
    code = (
        "import os, time\nt = time.monotonic()\n"
        "while os.getpriority(os.PRIO_PROCESS, 0) == 0 and time.monotonic() - t < 10: pass\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    assert run_one(executor, code)["stdout"] == "10\n"


def test_seven_that_hang_leave_a_lane_for_the_eighth():
    executor = isolated(workers=1, wall_time_s=4.0)
    rows = executor.execute(snippet_frame(["import time; time.sleep(60)"] * 7 + ["print(1)"]))
    assert rows["status"].to_list() == ["timeout"] * 7 + ["ok"]
    assert rows["wall_s"][7] < 4.0


def test_a_signal_without_a_name_is_an_error():
    row = run_one(
        make_executor(config_with(backend="unsafe_local")), "import os; os.kill(os.getpid(), 36)"
    )
    assert (row["status"], row["stderr"]) == ("error", "signal 36\n")
