"""Ctrl-C at bad moments: it is told as what it is, and the process ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.exceptions import TerminationSignal
from small_runs import SMALL, Cli, sets

from flows.interrupts import WAITS, interrupts_told, told_as_ctrl_c
from storage import Store
from tests.process_trees import alive, processes_below, wait_until

NEVER_ENDS = """
import atexit, sys, threading
from flows.interrupts import end_within

atexit.register(print, "cleaned up")
threading.Thread(target=threading.Event().wait).start()
end_within({time_s}, 130)
sys.exit(130)
"""


def throw(interrupt: BaseException) -> None:
    raise interrupt


def fail_while_handling(handled: BaseException) -> None:
    """Fails as a library does that makes an error of its own of what it met."""
    try:
        raise handled
    except (KeyboardInterrupt, TerminationSignal, OSError):
        raise ValueError("Task run is not set") from OSError("a reason of its own")


@pytest.mark.parametrize(
    ("handled", "told"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(), ValueError)]
)
def test_an_error_made_of_an_interrupt_is_an_interrupt(
    handled: BaseException, told: type[BaseException]
) -> None:
    with pytest.raises(told), interrupts_told():
        fail_while_handling(handled)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), TerminationSignal(signal.SIGTERM)])
@pytest.mark.parametrize("fail", [fail_while_handling, throw])
def test_a_command_ends_by_sigterm_as_by_ctrl_c(
    interrupt: BaseException, fail: Callable[[BaseException], None]
) -> None:
    with pytest.raises(KeyboardInterrupt), told_as_ctrl_c():
        fail(interrupt)


def test_a_process_ends_although_a_thread_does_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEVER_ENDS.format(time_s=0.5)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")


BLOCKED = """
import atexit, threading
from flows import interrupts

interrupts.CLOSING_TIME_S = 0.5
atexit.register(threading.Event().wait)
interrupts.end_within(0.2, 130)
threading.Event().wait()
"""


def test_a_process_ends_although_its_exit_waits_for_ever() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], timeout=60, check=False)
    assert done.returncode == 130


@pytest.mark.parametrize("mode", [[], ["--json"]], ids=["text", "json"])
def test_a_training_ends_as_by_ctrl_c_once_nobody_reads_it(
    cli: Cli, tmp_path: Path, mode: list[str]
) -> None:
    store = tmp_path / "store"
    options = [*sets(*SMALL, "cold_start.steps=1", "iterations=50"), *mode]
    training = cli.start("train", "--store", str(store), "--run", "small", *options)
    assert training.stdout is not None
    assert training.stderr is not None
    assert "small" in training.stdout.readline()
    training.stdout.close()
    stderr = training.stderr.read()
    assert training.wait(timeout=200) == 130
    assert stderr.splitlines() == [
        "nobody reads the output any more",
        "interrupted: the same command continues run small",
    ]
    assert Store.open(store).run_record("small").status == "interrupted"


SERVER_THAT_NEVER_ANSWERS = """#!/bin/sh
case "$1" in
    *turnledger_release.py) echo '{"version": "0.32.0"}' ;;
    *) exec sleep 600 ;;
esac
"""


def test_ctrl_c_waits_for_no_server_that_starts(cli: Cli, tmp_path: Path) -> None:
    store, python = tmp_path / "store", tmp_path / "python"
    python.write_text(SERVER_THAT_NEVER_ANSWERS)
    python.chmod(0o755)
    options = sets(*SMALL, "cold_start.steps=1", "rollout.engine=vllm", f"vllm.python={python}")
    training = cli.start("train", "--store", str(store), "--run", "small", *options)

    def server() -> set[int]:
        below = processes_below(training.pid)
        return {pid for pid, command in below.items() if command == "sleep 600"}

    assert wait_until(lambda: server() or training.poll() is not None, 200)
    started = server()
    os.killpg(training.pid, signal.SIGINT)  # as a terminal does
    _, stderr = training.communicate(timeout=60)
    assert (training.returncode, stderr.splitlines()) == (
        130,
        ["interrupted: the same command continues run small"],
    )
    assert started
    assert not alive(started)
    assert Store.open(store).run_record("small").status == "interrupted"


WAITING = """
import threading
from concurrent.futures import ThreadPoolExecutor
from flows import interrupts

interrupts.PATIENCE_S = 0.2
interrupts.end_at_second_interrupt()
with ThreadPoolExecutor() as pool:
    never = pool.submit(threading.Event().wait)
    print("began", flush=True)
    never.result()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_an_interrupt_waits_for_is_told_and_a_second_one_ends_it(
    number: signal.Signals,
) -> None:
    command = [sys.executable, "-c", WAITING]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stdout
    assert waiting.stderr
    try:
        assert waiting.stdout.readline() == "began\n"
        waiting.send_signal(number)
        assert waiting.stderr.readline() == WAITS.decode()
        waiting.send_signal(number)
        assert waiting.wait(60) == 130
    finally:
        waiting.kill()
    assert waiting.stderr.read() == "interrupted again: ended at once\n"


def test_a_second_ctrl_c_ends_a_training_as_the_first(cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = sets(*SMALL, "rollout.samples=5000")  # a turn takes minutes
    training = cli.start("train", "--json", "--store", str(store), "--run", "small", *settings)
    assert training.stdout
    assert training.stderr
    assert any('"rollout"' in line and '"started"' in line for line in training.stdout)
    os.killpg(training.pid, signal.SIGINT)
    told = training.stderr.readline()
    os.killpg(training.pid, signal.SIGINT)
    _, stderr = training.communicate(timeout=30)
    assert training.returncode == 130
    assert "Traceback" not in told + stderr
    assert Store.open(store).run_record("small").status == "interrupted"
