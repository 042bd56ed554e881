"""The server's process without vLLM: what is refused before a start, and who ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.config import VllmConfig
from schemas.errors import EngineError
from stages.rollout.vllm_server import _KEEPER, _cause, release_of
from tests.process_trees import alive, processes_below, wait_until

CHILD = "import time; time.sleep(99)"
SERVER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
OWNER = f"""
import os, subprocess, sys, time
reading, writing = os.pipe()
keeper = [sys.executable, "-I", "-S", {str(_KEEPER)!r}, str(reading), sys.argv[1]]
subprocess.Popen([*keeper, sys.executable, "-c", {SERVER!r}], pass_fds=(reading,))
if sys.argv[2] == "forked":
    os.close(reading)
    if os.fork() == 0:
        time.sleep(60)  # keeps the pipe open
time.sleep(99)
"""


@pytest.mark.parametrize("how", ["plain", "forked"])
def test_a_killed_owner_takes_its_server_along(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(folder), how])
    count = 3 + (how == "forked")  # keeper, server, its child, and what was forked off
    assert wait_until(lambda: len(processes_below(owner.pid)) == count)
    below = processes_below(owner.pid)
    forked = {pid for pid, name in below.items() if "os.fork" in name}
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert wait_until(lambda: not alive(set(below) - forked))
    assert not folder.exists()
    for pid in forked:
        os.kill(pid, signal.SIGKILL)


def test_a_stopped_server_is_ended_too(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "none"), "plain"])
    assert wait_until(lambda: len(processes_below(owner.pid)) == 3)
    below = processes_below(owner.pid)
    for pid, name in below.items():
        if "keeper.py" not in name:
            os.kill(pid, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    assert wait_until(lambda: not alive(set(below)))


@pytest.mark.parametrize(
    ("python", "match"),
    [
        ("nowhere/python", "nowhere/python is no program: `make vllm` builds"),
        (sys.executable, "has no package vllm"),
        ("/bin/false", "has no package vllm"),
    ],
)
def test_a_python_without_vllm_is_refused_in_one_line(python: str, match: str) -> None:
    with pytest.raises(EngineError, match=match) as raised:
        release_of(VllmConfig(python=python))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "log", "cause"),
    [
        (1, "Error in x\nOSError: [Errno 98] address already in use\n", "status 1: OSError: [Err"),
        (137, "", "it was killed (signal 9); if memory ran out, lower vllm.kv_cache_gib or"),
        (
            1,
            "torch.OutOfMemoryError: CUDA out of memory. Tried\nRuntimeError: Engine core "
            "initialization failed. See root cause above.\n",
            "status 1: torch.OutOfMemoryError: CUDA out of memory. Tried; if memory ran out",
        ),
    ],
)
def test_the_cause_of_an_end_is_told_from_status_and_log(status: int, log: str, cause: str) -> None:
    assert _cause(status, log).startswith(cause)
