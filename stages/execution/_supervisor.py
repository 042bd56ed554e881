"""The fork-server inside the isolation: runs one snippet at a time, each in a fresh child.

It is passed as text to a bare interpreter, so it knows only the standard library and the modules
passed with it. It reads length-prefixed JSON requests from descriptor 0 and answers in kind on
descriptor 1; the children hold neither.
"""

import gc
import json
import os
import struct
import sys
from typing import Any

from stages.execution._child import CLONE_NEWPID, NOTE_FD, check, isolate, libc, run_snippet
from stages.execution._watch import watch

_MNT_DETACH = 2
_KEYCTL_JOIN_SESSION_KEYRING, _KEYCTL_SETPERM, _KEY_SPEC_SESSION_KEYRING = 1, 5, -3
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}


def main(settings: dict[str, Any]) -> None:
    """Serves requests until the parent closes the connection.

    Args:
        settings: `limits` of a snippet, `path`, the folders of packages, and `drop_to`, the
            number of the user that the snippets of root become, or null.
    """
    if os.geteuid() == 0:
        # As root, bwrap covers /proc/sys, where the switch of each user namespace is. Where it
        # did not, there is nothing to take off.
        libc.umount2(b"/proc/sys", _MNT_DETACH)
    _lock_keyring()
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
    gc.collect()
    gc.freeze()  # leaves the pages of old objects unwritten, so that forks share them
    _answer({"ready": True})
    while (header := _read_exactly(4)) is not None:
        request = _read_exactly(struct.unpack("!I", header)[0])
        if request is None:
            break
        try:
            _answer(_fork_snippet(json.loads(request)["code"], settings, own_pids))
        except OSError as error:
            # A half-made child may be left: end, and let the parent start a fresh supervisor.
            sys.exit(f"cannot fork a snippet: {error}")


def _lock_keyring() -> None:
    # Snippets inherit the session keyring: a fresh one that nobody may read or write. Kernels
    # without keyrings, or filters that hide them, have nothing to lock.
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None and libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, 0, 0) > 0:
        libc.syscall(number, _KEYCTL_SETPERM, _KEY_SPEC_SESSION_KEYRING, 0)


def _fork_snippet(code: str, settings: dict[str, Any], own_pids: int) -> dict[str, Any]:
    pipes = [os.pipe() for _ in range(3)]
    # The next child is the first process of a new pid namespace: its end is the end of all its
    # descendants. The supervisor itself stays where it is.
    check(libc.unshare(CLONE_NEWPID), "unshare")
    pid = os.fork()
    if pid == 0:
        _become_snippet(code, settings, [write for _, write in pipes])
    check(libc.setns(own_pids, CLONE_NEWPID), "setns")
    for _, write in pipes:
        os.close(write)
    out, err, note = (read for read, _ in pipes)
    return watch(pid, out, err, note, settings["limits"])


def _become_snippet(code: str, settings: dict[str, Any], ends: list[int]) -> None:
    try:
        nothing = os.open("/dev/null", os.O_RDONLY)
        # Lifted out of the way first: dup2 would overwrite the ones that are still needed.
        lifted = [os.dup(fd) for fd in (nothing, *ends)]
        for target, fd in enumerate(lifted):
            os.dup2(fd, target)
        os.closerange(NOTE_FD + 1, 1 << 20)
        try:
            isolate(settings["limits"], settings["drop_to"])
        except (OSError, ValueError) as error:
            os.write(NOTE_FD, f"E {error}".encode())
        else:
            run_snippet(code, settings["path"])
    finally:
        os._exit(1)


def _read_exactly(count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        chunk = os.read(0, count - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def _answer(message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode()
    data = struct.pack("!I", len(payload)) + payload
    while data:
        data = data[os.write(1, data) :]
