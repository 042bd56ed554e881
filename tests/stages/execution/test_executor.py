"""The executor as a whole: order, independence of snippets, and failures of the machine."""

import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.errors import ExecutorError
from schemas.tables import TURN_KEY
from stages.execution import (
    SandboxExecutor,
    UnsafeLocalExecutor,
    bubblewrap,
    lanes,
    make_executor,
)
from stages.execution import probe as probe_module
from stages.execution.protocol import OUTCOME_SCHEMA
from tests.process_trees import wait_until
from tests.stages.execution.frames import config_with, isolated, run_one, snippet_frame

UNSAFE = "execution.backend unsafe_local: generated code runs without any isolation"


def children_named(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text()
        except OSError:
            continue
        command, rest = fields[fields.index("(") + 1 : fields.rindex(")")], fields.split(")")[-1]
        if command == name and int(rest.split()[1]) == os.getpid():
            found.append(int(entry.name))
    return found


def processes_under(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in processes_under(int(child)))]


def test_order_is_kept_with_mixed_durations(executor):
    codes = [f"import time; time.sleep({0.05 * (i % 3)}); print({i})" for i in range(12)]
    rows = executor.execute(snippet_frame(codes))
    assert rows["stdout"].to_list() == [f"{i}\n" for i in range(12)]
    assert rows["sample_index"].to_list() == list(range(12))


def test_columns_are_those_of_the_protocol(executor):
    rows = executor.execute(snippet_frame(["print(1)"]))
    assert rows.columns == [*TURN_KEY, *OUTCOME_SCHEMA.names()]
    assert dict(rows.select(OUTCOME_SCHEMA.names()).schema) == dict(OUTCOME_SCHEMA)


def test_no_snippets_give_no_rows(executor):
    rows = executor.execute(snippet_frame([]))
    assert rows.height == 0
    assert rows.columns == [*TURN_KEY, *OUTCOME_SCHEMA.names()]


def test_hanging_snippet_holds_up_no_other(hasty_executor, monkeypatch):
    """All others have ended before the hanging one does, though it was the first to start."""
    ended = []
    run = lanes.Lane.run

    def noted_run(self, cells):
        outcome = run(self, cells)
        ended.append(outcome.status)
        return outcome

    monkeypatch.setattr(lanes.Lane, "run", noted_run)
    codes = ["import time; time.sleep(60)", *["print(1)"] * 20]
    rows = hasty_executor.execute(snippet_frame(codes))
    assert rows["status"].to_list() == ["timeout"] + ["ok"] * 20
    assert ended == ["ok"] * 20 + ["timeout"]


def test_calls_from_several_threads_do_not_mix(executor):
    def call(number: int) -> list[str]:
        return executor.execute(snippet_frame([f"print({number})"] * 5))["stdout"].to_list()

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(call, range(3)))
    assert results == [[f"{number}\n"] * 5 for number in range(3)]


def test_supervisor_killed_from_outside_costs_one_snippet():
    others = set(children_named("bwrap"))
    executor = isolated(workers=1)

    name = f"hit-{os.getpid()}"
    names_itself = f"import ctypes; ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)"

    def in_flight() -> bool:
        listed = subprocess.run(["ps", "-eo", "comm="], capture_output=True, text=True, check=True)
        return name in listed.stdout.split()

    def kill_supervisors() -> None:
        wait_until(in_flight, 60)
        for pid in set(children_named("bwrap")) - others:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_supervisors)
    killer.start()
    hangs = f"{names_itself}; import time; time.sleep(15)"
    rows = executor.execute(snippet_frame(["print(0)", hangs, "print(2)"]))
    killer.join()
    assert rows["status"].to_list() == ["ok", "infrastructure", "ok"]


def test_a_killed_zygote_costs_what_is_in_flight_and_comes_back(executor):
    row = run_one(executor, "print(1)")
    assert (row["status"], row["stderr"]) == ("ok", "")
    for pid in children_named("bwrap"):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    rows = executor.execute(snippet_frame([f"print({i})" for i in range(5)]))
    assert rows["stdout"].to_list() == [f"{i}\n" for i in range(5)]


def test_a_snippet_finds_the_state_of_earlier_ones_and_not_their_output(executor):
    earlier = [
        "import math\nprint('seen')\nx = 3",
        "y = x\n1/0",
        "raise SystemExit",
        "def f(): return x",
    ]
    rows = executor.execute(snippet_frame(["print(f() + y, math.floor(1.5))"], earlier))
    assert rows["stdout"].to_list() == ["6 1\n"]
    assert rows["stderr"].to_list() == [""]


def test_time_of_earlier_snippets_counts(hasty_executor):
    frame = snippet_frame(["print(1)"], ["import time; time.sleep(60)"])
    assert hasty_executor.execute(frame)["status"].to_list() == ["timeout"]


def test_waiting_for_a_processor_is_not_held_against_a_snippet():
    """Each takes 0.3 s of a processor, and all together more than the wall time of one second."""
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(1)"
    executor = isolated(wall_time_s=1.0, workers=2)
    rows = executor.execute(snippet_frame([work] * 16))
    assert rows["status"].to_list() == ["ok"] * 16


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("none_such", "no module none_such"),
        ("asyncio.windows_events", "asyncio.windows_events cannot be imported: ImportError: win32"),
    ],
)
def test_a_module_that_cannot_be_imported_cannot_be_preloaded(module, told):
    with pytest.raises(ExecutorError, match=f"execution.preload: {told}"):
        SandboxExecutor(config_with(preload=[module]))


def test_a_module_that_prints_can_be_preloaded():
    assert run_one(isolated(preload=["this"]), "import this; print(1)")["stdout"] == "1\n"


@pytest.mark.parametrize("name", ["", ".relative", "a b", "1a", "a..b"])
def test_what_is_no_name_of_a_module_cannot_be_preloaded(name):
    with pytest.raises(ValidationError, match="preload"):
        config_with(preload=[name])


def test_all_threads_but_the_main_one_can_be_started():
    code = (
        "import threading, time\n"
        "made = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(31)]\n"
        "for t in made: t.start()\n"
        "for t in made: t.join()\nprint(len(made))"
    )
    row = run_one(isolated(), code)
    assert (row["stdout"], row["stderr"]) == ("31\n", "")


def test_waiting_for_a_processor_is_not_held_against_a_thread_either():
    work = (
        "import threading, time\n"
        "def work():\n    while time.thread_time() < 0.3: pass\n"
        "t = threading.Thread(target=work); t.start(); t.join(); print(1)"
    )
    executor = isolated(wall_time_s=2.0, workers=2)
    rows = executor.execute(snippet_frame([work] * 16))
    assert rows["status"].to_list() == ["ok"] * 16


def test_time_in_which_the_machine_stood_still_is_not_held_against_a_snippet():
    """As where a virtual machine is paused: all of the sandbox stops, and the clock goes on."""
    others = set(children_named("bwrap"))
    executor = isolated(wall_time_s=3.0, workers=1)
    run_one(executor, "print(1)")
    (ours,) = set(children_named("bwrap")) - others
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run_one, executor, "import time; time.sleep(1); print(1)")
        time.sleep(0.5)
        inside = processes_under(ours)
        for pid in inside:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(4)
        for pid in reversed(inside):
            os.kill(pid, signal.SIGCONT)
        row = answer.result()
    assert (row["status"], row["stdout"]) == ("ok", "1\n")
    assert row["wall_s"] > 4


def test_an_interrupt_waits_only_for_what_is_in_flight():
    executor = isolated(workers=1)
    # Polars has put a handler of its own in place, which lets waiting go on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    interrupt = threading.Timer(1.0, signal.pthread_kill, [main, signal.SIGINT])
    interrupt.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        executor.execute(snippet_frame(["import time; time.sleep(0.5)"] * 400))
    assert time.monotonic() - started < 20  # all of them take 25


def test_lanes_that_died_while_idle_cost_nothing():
    executor = isolated(workers=1)
    codes = ["print(1)", "import numpy; print(1)", "import sympy; print(1)"]
    with lanes.Lane(executor._zygote) as lane:
        assert [lane.run([code]).status for code in codes] == ["ok"] * 3
        executor.close()
        time.sleep(1.0)  # until all inside has ended
        assert [lane.run([code]).status for code in codes] == ["ok"] * 3


def test_files_that_are_brought_can_be_read_and_not_written(tmp_path):
    (tmp_path / "data.txt").write_text("brought")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    executor = isolated(files_path=str(tmp_path))
    assert run_one(executor, "print(open('/files/data.txt').read())")["stdout"] == "brought\n"
    assert run_one(executor, "open('/files/data.txt', 'a')")["status"] == "error"


@pytest.mark.skipif(os.geteuid() != 0, reason="snippets of an ordinary user have its rights")
def test_files_that_others_may_not_read_are_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(ExecutorError, match=r"execution.files_path: others may not read"):
        SandboxExecutor(config_with(files_path=str(tmp_path / "closed")))


@pytest.mark.parametrize("backend", ["unsafe_local", "sandbox_fusion"])
def test_files_are_refused_where_no_sandbox_is(backend):
    with pytest.raises(ValidationError, match="files_path is only there for backend sandbox"):
        config_with(backend=backend, files_path="folder")


def test_nothing_is_left_running_once_it_is_closed():
    before = set(children_named("bwrap"))
    executor = isolated()
    executor.execute(snippet_frame(["print(1)"] * 3))
    assert len(set(children_named("bwrap")) - before) == 1
    executor.close()
    assert set(children_named("bwrap")) <= before


def test_nothing_is_left_running_once_it_is_forgotten():
    before = set(children_named("bwrap"))
    run_one(isolated(), "print(1)")
    gc.collect()
    assert set(children_named("bwrap")) <= before


def test_bwrap_that_fails_is_told_in_one_line(tmp_path):
    stand_in = tmp_path / "bwrap"
    stand_in.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create a namespace' >&2\nexit 1\n"
    )
    stand_in.chmod(stat.S_IRWXU)
    with pytest.raises(ExecutorError) as caught:
        SandboxExecutor(config_with(), bwrap=stand_in)
    message = str(caught.value)
    assert "No permissions to create a namespace" in message
    assert 'execution.backend="unsafe_local"' in message
    assert "\n" not in message


def test_missing_bwrap_is_told_in_one_line(tmp_path):
    with pytest.raises(ExecutorError, match="unsafe_local"):
        SandboxExecutor(config_with(), bwrap=tmp_path / "absent")


@pytest.mark.parametrize(
    ("breach", "told"),
    [
        ('print("reads files")', "trial snippet reads files"),
        ('print("")', "trial snippet"),
        ("raise SystemExit(1)", "trial snippet: error"),
    ],
)
def test_a_trial_that_is_not_isolated_is_refused(monkeypatch, breach, told):
    """The trial is let off its own attempts here: what it says decides."""
    monkeypatch.setattr(probe_module, "_PROBE", breach)
    with pytest.raises(ExecutorError, match=told):
        SandboxExecutor(config_with(memory_mib=500))  # not tried before


@pytest.mark.parametrize(
    "attempt",
    ["reads files", "writes files", "makes files in memory", "reaches the network"],
)
def test_a_trial_outside_the_sandbox_tells_each_breach(tmp_path, attempt):
    (tmp_path / "secret").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = probe_module._PROBE.format(
            secret=str(tmp_path / "secret"),
            prefix=str(tmp_path),
            port=listener.getsockname()[1],
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert attempt in done.stdout.strip().split(",")


@pytest.mark.parametrize(
    ("switch", "value", "told"),
    [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "max_user_namespaces=10000"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
    ],
)
def test_a_switch_that_is_off_is_named(monkeypatch, tmp_path, switch, value, told):
    _, words = bubblewrap._SWITCHES[switch]
    (tmp_path / "switch").write_text(f"{value}\n")
    monkeypatch.setattr(bubblewrap, "_SWITCHES", {str(tmp_path / "switch"): (value, words)})
    assert told in bubblewrap.what_is_missing("reason")
    (tmp_path / "switch").write_text("7\n")
    assert told not in bubblewrap.what_is_missing("reason")


def test_a_filter_that_the_kernel_does_not_take_is_named():
    assert "CONFIG_SECCOMP_FILTER" in bubblewrap.what_is_missing(
        "seccomp: Function not implemented"
    )


def test_unsafe_local_warns_each_time(caplog):
    for count in (1, 2):
        executor = make_executor(config_with(backend="unsafe_local"))
        assert isinstance(executor, UnsafeLocalExecutor)
        assert [r.getMessage() for r in caplog.records].count(UNSAFE) == count


@pytest.mark.parametrize(
    ("code", "status", "stdout"),
    [
        ("print(1)", "ok", "1\n"),
        ("import os; open('x', 'w'); print(os.listdir())", "ok", "['x']\n"),
        ("1/0", "error", ""),
        ("import time; print(1); time.sleep(60)", "timeout", "1\n"),
        ("x = bytearray(10**10)", "memory", ""),
        ("print(1)\0", "refused", ""),
    ],
)
def test_unsafe_local_gives_the_same_statuses(code, status, stdout):
    executor = make_executor(config_with(backend="unsafe_local", wall_time_s=2.0))
    row = run_one(executor, code)
    assert (row["status"], row["stdout"]) == (status, stdout)


def test_unsafe_local_cuts_endless_output():
    executor = make_executor(config_with(backend="unsafe_local", output_kib=1))
    row = run_one(executor, "while True: print('x' * 99)")
    assert (row["status"], len(row["stdout"])) == ("output_limit", 1024)
