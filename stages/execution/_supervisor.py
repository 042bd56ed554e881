"""The fork-server inside the isolation: warm interpreters that fork lanes, which fork snippets.

A fork costs the more the more memory it shares, so there is a chain of interpreters: the first has
imported nothing, and each forks the next, which imports one more of the modules that snippets
usually import. They serve no snippet themselves. Each is sent descriptors, passes on those that are
for a warmer one, and for the others forks a lane, which shares its memory. A lane runs one snippet
at a time, each in a fresh child, so a lane that dies costs one snippet, and lanes that wait for
hanging snippets hold up no others. No content ever comes into their memory, which snippets inherit:
a lane passes on the descriptors of the code and of the output without reading them.

It is passed as text to a bare interpreter, so it knows only the standard library and the modules
passed with it. Descriptor 0 is the connection with the parent: to the first interpreter it brings
the connections of lanes, to a lane the descriptors of snippets, each answered by length-prefixed
JSON; a byte without descriptors ends the snippet that runs. Children do not hold it.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import site
import socket
import struct
import sys
import time
from typing import Any, NoReturn

from stages.execution._child import (
    CLONE_NEWPID,
    CODE_FD,
    NOTE_FD,
    check,
    isolate,
    libc,
    run_snippet,
    size_bytes,
)
from stages.execution._seccomp import filter_code
from stages.execution._watch import watch

_MNT_DETACH = 2
_KEYCTL_JOIN_SESSION_KEYRING, _KEYCTL_SETPERM, _KEY_SPEC_SESSION_KEYRING = 1, 5, -3
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
_MS_RDONLY, _MS_NOSUID, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 8, 32, 4096
_FORK_ATTEMPTS, _FORK_PAUSE_S = 100, 0.1

_WARM_UP = {
    "numpy": "numpy.linalg.inv(numpy.eye(2)); numpy.random.seed(0)",
    "sympy": "sympy.simplify('sin(x)**2 + cos(x)**2'); sympy.solve('x**2 - 2')",
}
"""What loads the parts of a package that it only imports when they are first used."""


def main(settings: dict[str, Any]) -> None:
    """Forks lanes until the parent closes the connection.

    Args:
        settings: `limits` of a snippet, `path`, the folders of packages, `devices`, files of
            devices inside, `drop_to`, the number of the user that the snippets of root become, or
            null, and `preload`, names of modules.
    """
    if os.geteuid() == 0:
        # As root, bwrap covers /proc/sys, where the switch of each user namespace is. Where it
        # did not, there is nothing to take off.
        libc.umount2(b"/proc/sys", _MNT_DETACH)
    for name in settings["devices"]:
        # Else a snippet could change their times, for all to see.
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NOEXEC
        check(libc.mount(None, name.encode(), None, flags, None), f"mount {name}")
    _lock_keyring()
    site.setquit()  # bare interpreters have no exit() and quit()
    sys.path[:] = ["", *sys.path, *settings["path"]]
    with contextlib.suppress(OSError):  # a machine it knows no numbers of: told by the first child
        filter_code(processes=settings["limits"]["child_processes"])
    # Lanes and warmer interpreters are nobody's business once they have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control, cooler = socket.socket(fileno=os.dup(0)), None
    for name in settings["preload"]:
        ours, theirs = socket.socketpair()
        if os.fork() != 0:
            theirs.close()
            if not ours.recv(1):
                _answer({"failed": f"{name} cannot be imported: the interpreter ended"})
                os._exit(1)
            if cooler is not None:
                cooler.send(b"R")
            _serve(control, ours, settings)  # never returns
        ours.close()
        control.close()
        control = cooler = theirs
        problem = _warm_up(name)
        if problem is not None:
            _answer({"failed": problem})
            os._exit(1)
    _answer({"failed": None})
    if cooler is not None:
        cooler.send(b"R")
    _serve(control, None, settings)


def _serve(
    control: socket.socket, warmer: socket.socket | None, settings: dict[str, Any]
) -> NoReturn:
    """Forks a lane for every descriptor that comes with a 0; passes others on, counted down."""
    gc.collect()
    gc.freeze()  # leaves the pages of old objects unwritten, so that forks share them
    while True:
        sent, lanes, _, _ = socket.recv_fds(control, 1, 1)
        if not sent:
            os._exit(0)
        if warmer is not None and sent[0] > 0:
            # Where the warmer one has died this fails, and the lane's connection ends unanswered:
            # the parent starts another chain.
            socket.send_fds(warmer, [bytes([sent[0] - 1])], lanes)
        elif _fork() == 0:
            control.close()
            if warmer is not None:
                warmer.close()
            _become_lane(lanes[0], settings)
        os.close(lanes[0])


def _warm_up(name: str) -> str | None:
    """Imports a module; returns what is wrong with it, or None."""
    try:
        module = importlib.import_module(name)
        exec(_WARM_UP.get(name, ""), {name: module})
    except ModuleNotFoundError as error:
        return f"no module {error.name}"
    except BaseException as error:  # noqa: BLE001  # whatever it does, it is told as its doing
        return f"{name} cannot be imported: {type(error).__name__}: {error}".partition("\n")[0]
    return None


def _lock_keyring() -> None:
    # Snippets inherit the session keyring: a fresh one that nobody may read or write. Kernels
    # without keyrings, or filters that hide them, have nothing to lock.
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None and libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, 0, 0) > 0:
        libc.syscall(number, _KEYCTL_SETPERM, _KEY_SPEC_SESSION_KEYRING, 0)


def _become_lane(connection: int, settings: dict[str, Any]) -> NoReturn:
    """Serves requests until the parent closes this lane's connection."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(connection, 0)
        os.close(connection)
        own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        base_bytes = size_bytes()
        _answer({"ready": True})
        with socket.socket(fileno=os.dup(0)) as requests:
            while True:
                sent, fds, _, _ = socket.recv_fds(requests, 1, 3)
                if not sent:
                    break
                if len(fds) < 3:
                    continue  # it had ended already when it was to be ended
                try:
                    _answer(_fork_snippet(fds, settings, own_pids, base_bytes))
                except OSError as error:
                    # A half-made child may be left: end, and let the parent start a fresh lane.
                    os.write(2, f"cannot fork a snippet: {error}\n".encode())
                    os._exit(1)
    finally:
        os._exit(0)


def _fork_snippet(
    fds: list[int], settings: dict[str, Any], own_pids: int, base_bytes: int
) -> dict[str, Any]:
    """Runs one snippet to its end; `fds` are its code, standard output and standard error."""
    note, note_end = os.pipe()
    # The next child is the first process of a new pid namespace: its end is the end of all its
    # descendants. The lane itself stays where it is.
    check(libc.unshare(CLONE_NEWPID), "unshare")
    pid = _fork()
    if pid == 0:
        _become_snippet([*fds, note_end], settings, base_bytes)
    check(libc.setns(own_pids, CLONE_NEWPID), "setns")
    for fd in (*fds, note_end):
        os.close(fd)
    return watch(pid, note, settings["limits"], stop_fd=0)


def _fork() -> int:
    """Forks, after a while where there are too many processes at the moment."""
    for _ in range(_FORK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            return os.fork()
        time.sleep(_FORK_PAUSE_S)
    return os.fork()


def _become_snippet(ends: list[int], settings: dict[str, Any], base_bytes: int) -> NoReturn:
    try:
        nothing = os.open("/dev/null", os.O_RDONLY)
        code, out, err, note = ends
        # Lifted out of the way first: dup2 would overwrite the ones that are still needed.
        lifted = [os.dup(fd) for fd in (nothing, out, err, note, code)]
        for target, fd in enumerate(lifted):
            os.dup2(fd, target)
        os.closerange(CODE_FD + 1, 1 << 20)
        try:
            isolate(settings["limits"], settings["drop_to"], base_bytes)
        except (OSError, ValueError) as error:
            os.write(NOTE_FD, f"E {error}".encode())
        else:
            with open(CODE_FD, encoding="utf-8", newline="") as code_file:
                cells = json.load(code_file)
            run_snippet(cells, settings["limits"])
    finally:
        os._exit(1)


def _answer(message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode()
    data = struct.pack("!I", len(payload)) + payload
    while data:
        data = data[os.write(0, data) :]
