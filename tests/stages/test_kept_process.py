"""Programs below a keeper: who ends them, and what is left of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.kept_process import KeptProcess
from tests.process_trees import alive, processes_below, wait_until

CHILD = "import time; time.sleep(99)"
SERVER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
OWNER = f"""
import os, pathlib, subprocess, sys, time
from stages.kept_process import KeptProcess
kept = KeptProcess(
    [sys.executable, "-c", {SERVER!r}],
    pathlib.Path(sys.argv[1]),
    environment=dict(os.environ),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
if sys.argv[2] == "forked" and os.fork() == 0:
    time.sleep(60)  # keeps the pipe open
time.sleep(99)
"""


def owner_of(folder: Path, how: str) -> tuple[subprocess.Popen[bytes], dict[int, str]]:
    """Starts a process with a program below a keeper; returns it with all below it."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(folder), how])
    count = 3 + (how == "forked")  # keeper, server, its child, and what was forked off
    assert wait_until(lambda: len(processes_below(owner.pid)) == count, 60)
    return owner, processes_below(owner.pid)


@pytest.mark.parametrize("how", ["plain", "forked"])
def test_a_killed_owner_takes_its_program_along(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    owner, below = owner_of(folder, how)
    forked = {pid for pid, name in below.items() if "os.fork" in name}
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert wait_until(lambda: not alive(set(below) - forked), 60)
    assert not folder.exists()
    for pid in forked:
        os.kill(pid, signal.SIGKILL)


def test_a_stopped_program_is_ended_too(tmp_path: Path) -> None:
    owner, below = owner_of(tmp_path / "none", "plain")
    for pid, name in below.items():
        if "keeper.py" not in name:
            os.kill(pid, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    assert wait_until(lambda: not alive(set(below)), 60)


def kept(program: str, folder: Path) -> KeptProcess:
    return KeptProcess(
        [sys.executable, "-c", program],
        folder,
        environment=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def test_the_end_of_a_running_program_is_the_end_of_what_it_started(tmp_path: Path) -> None:
    process = kept(SERVER, tmp_path)
    assert wait_until(lambda: len(processes_below(process.keeper.pid)) == 2, 60)
    below = set(processes_below(process.keeper.pid))
    assert process.end() == 128 + signal.SIGKILL
    # A killed process is gone when the kernel comes to it, which is not at once under load.
    assert wait_until(lambda: not alive(below), 10)
    assert not tmp_path.exists()


def test_what_a_program_said_and_its_status_are_there_after_its_end(tmp_path: Path) -> None:
    process = kept("print('said'); raise SystemExit(3)", tmp_path)
    assert process.keeper.stdout is not None
    with process.keeper.stdout as output:
        assert output.read() == "said\n"
    assert process.end() == 3


def test_a_program_that_cannot_be_started_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(TypeError):
        KeptProcess([None], tmp_path, environment={}, stdout=1, stderr=2)  # type: ignore[list-item]
    assert len(os.listdir("/proc/self/fd")) == len(before)
