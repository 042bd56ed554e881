"""Runs a program and ends it, with all its processes, when the process that wanted it is gone.

Started as a program of its own: python keeper.py FD FOLDER COMMAND... where FD is the reading
end of a pipe that the owner holds open. However the owner ends, the pipe closes. The keeper then
kills the program's process group and removes the folder. It ends with the status of the program.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

LOOK_EVERY_S = 0.2
TRACKER_TIME_S = 5.0
"""How long the process that removes shared memory may take once the others are gone."""
_PR_SET_PDEATHSIG = 1
_TRACKER = b"multiprocessing.resource_tracker"


def main(fd: int, folder: str, command: list[str]) -> int:
    """Runs the command until it ends or the owner is gone; returns its status as a shell does."""
    owner = os.getppid()
    # This process has one thread, so the fork is safe, and the program dies with the process.
    program = subprocess.Popen(command, process_group=0, preexec_fn=_die_with_parent)  # noqa: PLW1509
    owned = True
    while owned and program.poll() is None:
        # A process forked off the owner may hold the pipe open; then the new parent tells.
        closed, _, _ = select.select([fd], [], [], LOOK_EVERY_S)
        owned = not closed and os.getppid() == owner
    _kill_group(program.pid)
    status = program.wait()
    if not owned or os.getppid() != owner:
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_group(group: int) -> None:
    """Kills a process group, the process that removes its shared memory last."""
    for pid in _members(group):
        if not _is_tracker(pid):
            _kill(pid)
    deadline = time.monotonic() + TRACKER_TIME_S
    # It ends by itself when nobody is left who could register more memory.
    while time.monotonic() < deadline and any(_is_tracker(pid) for pid in _members(group)):
        time.sleep(0.05)
    for pid in _members(group):
        _kill(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _members(group: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == group:
                found.append(int(name))
        except ProcessLookupError:
            continue
    return found


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return _TRACKER in file.read()
    except OSError:
        return False


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
