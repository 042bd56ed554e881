"""Which processes descend from one, and which of them still run."""

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def processes_below(parent: int) -> dict[int, str]:
    """Returns the processes that descend from one, with their names."""
    listed = subprocess.run(
        ["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    found: dict[int, str] = {}
    wanted = {parent}
    while wanted:
        below = {int(pid): name for pid, above, name in rows if int(above) in wanted}
        found |= below
        wanted = set(below)
    return found


def alive(pids: set[int]) -> set[int]:
    """Returns those that run; what nobody has waited for yet is dead all the same."""
    found = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found |= {pid} if state != "Z" else set()
    return found


def wait_until(holds: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False
