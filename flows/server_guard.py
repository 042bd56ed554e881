"""Ends a server when the process that started it is gone, however it ended.

Started as a program of its own: python server_guard.py OWNER SERVER, both process ids. A server
that its owner ends is not touched.
"""

import os
import signal
import sys
import time
from pathlib import Path

LOOK_EVERY_S = 0.5
END_TIME_S = 5.0
"""How long the server may take to end before it is killed."""


def main(owner: int, server: int) -> None:
    """Returns when the server has ended."""
    begun = _started(server)
    while begun is not None and _started(server) == begun:
        if os.getppid() != owner:
            _end(server, begun)
            return
        time.sleep(LOOK_EVERY_S)


def _end(server: int, begun: str) -> None:
    deadline = time.monotonic() + END_TIME_S
    os.kill(server, signal.SIGTERM)
    while _started(server) == begun:
        if time.monotonic() > deadline:
            os.kill(server, signal.SIGKILL)
            return
        time.sleep(0.05)


def _started(pid: int) -> str | None:
    """Returns when a process began, by which it is told from a later one of its number."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state[0] == "Z" else state[19]


if __name__ == "__main__":
    # Nobody but the end of its owner or of the server ends it: not Ctrl-C, nor a closed terminal.
    for signal_number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    main(int(sys.argv[1]), int(sys.argv[2]))
