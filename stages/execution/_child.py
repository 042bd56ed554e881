"""The process of one snippet: gives up its rights, then runs the code as a main module.

Standard library only: this runs in a bare interpreter. Descriptor 3 is the note pipe that
`_watch` describes.
"""

import ast
import atexit
import builtins
import contextlib
import ctypes
import importlib.util
import io
import linecache
import os
import random
import resource
import struct
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, Final, NoReturn

from stages.execution._seccomp import install as install_filter

NOTE_FD: Final = 3
CLONE_NEWPID: Final = 0x20000000

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_SNIPPET_NAME = "<snippet>"
_STACK_BYTES = 8 << 20

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
libc.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]
libc.syscall.argtypes = [ctypes.c_long] * 4
libc.syscall.restype = ctypes.c_long


def run_snippet(cells: list[str], limits: dict[str, Any]) -> NoReturn:
    """Runs code as a main module and ends the process as a Python interpreter would.

    Expects the standard streams in place and the note pipe on descriptor 3; never returns.

    Args:
        cells: The code, and before it the cells whose state it finds; what those print is lost.
        limits: `show_last_value`, whether the value of a last expression is printed if nothing
            else was.
    """
    exit_code = 1
    try:
        stdout, raw = _replace_streams()
        sys.argv = [_SNIPPET_NAME]
        _seed(cells[-1])
        module = types.ModuleType("__main__")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        # Closed by exec; the lane takes what follows in this pipe for no more than `M`.
        os.set_inheritable(NOTE_FD, False)
        os.write(NOTE_FD, b"R")
        for cell in cells[:-1]:
            _replay(cell, module)
        before = raw.count

        def show(value: object) -> None:
            if value is None or not limits["show_last_value"]:
                return
            with contextlib.suppress(ValueError):  # the snippet closed it
                stdout.flush()
                if raw.count == before:
                    stdout.write(f"{value!r}\n")

        exit_code = _exit_code_of(cells[-1], module, show)
        threading._shutdown()  # type: ignore[attr-defined]  # joins the threads of the snippet
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(exit_code)


def _seed(code: str) -> None:
    """Seeds the shared generators by the code: the same code draws the same numbers again."""
    random.seed(code)
    number = random.getrandbits(32)
    random.seed(code)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(number)
    else:
        sys.meta_path.insert(0, _SeedsWhenImported(number))


class _SeedsWhenImported:
    """Finder that seeds `numpy.random` once it has been imported, by whomever."""

    def __init__(self, number: int) -> None:
        self._number = number

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "numpy.random":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_seed(module: types.ModuleType) -> None:
                run(module)
                module.seed(self._number)

            spec.loader.exec_module = run_and_seed  # type: ignore[method-assign]
        return spec


def _replay(cell: str, module: types.ModuleType) -> None:
    """Runs a cell of an earlier turn for its state, with its output thrown away."""
    kept = [os.dup(fd) for fd in (1, 2)]
    nothing = os.open("/dev/null", os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(nothing, fd)
    # It ended as it did in its own turn: what it left behind is what counts.
    with contextlib.suppress(BaseException):
        exec(compile(cell, _SNIPPET_NAME, "exec"), module.__dict__)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    for fd, was in zip((1, 2), kept, strict=True):
        os.dup2(was, fd)
    for fd in (nothing, *kept):
        os.close(fd)


def limit_resources(limits: dict[str, Any], *, base_bytes: int, processes: bool) -> None:
    """Sets the resource limits of the calling process, for good.

    Args:
        limits: `memory_mib`, `cpu_time_s`, `file_size_mib` and `threads`. The memory is what comes
            on top of `base_bytes`.
        base_bytes: Size of the interpreter, with all that it has imported.
        processes: Whether to limit processes too. Without a user namespace of its own that
            would count everything the user runs.
    """
    memory = base_bytes + (limits["memory_mib"] << 20)
    values = {
        resource.RLIMIT_AS: memory,
        # Hard as well as soft: the first process of a pid namespace ignores SIGXCPU.
        resource.RLIMIT_CPU: limits["cpu_time_s"],
        resource.RLIMIT_FSIZE: limits["file_size_mib"] << 20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_STACK: min(_STACK_BYTES, memory),
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if processes:
        values[resource.RLIMIT_NPROC] = limits["threads"]
    for name, wanted in values.items():
        hard = resource.getrlimit(name)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (value, value))


def size_bytes() -> int:
    """Returns the size of this process in its address space."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def isolate(limits: dict[str, Any], drop_to: int | None, base_bytes: int) -> None:
    """Takes every right away from the calling process, a fresh child in a new pid namespace.

    Args:
        limits: As `limit_resources` and `install_filter` take them.
        drop_to: Number of the user to become, where root started all this.
        base_bytes: Size of the interpreter, beyond which the limit on memory counts.
    """
    # A group of its own: kill(0) reaches the group across pid namespaces.
    os.setsid()
    if drop_to is not None:
        os.setgroups([])
        os.setresgid(drop_to, drop_to, drop_to)
        os.setresuid(drop_to, drop_to, drop_to)
        # The change of user gave /proc/self to root, and the maps are to be written there.
        check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWIPC), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    # A further user namespace would give back the right to mount, and unbounded tmpfs with it.
    _write("/proc/sys/user/max_user_namespaces", "0")
    _write("/proc/self/oom_score_adj", "1000")
    flags = _MS_NOSUID | _MS_NODEV
    # For tmpfs a size of 0 means no limit.
    size, read_only = max(limits["file_size_mib"] << 20, 4096), limits["file_size_mib"] == 0
    options = f"size={size},nr_inodes=4096,mode=700".encode()
    tmp_flags = flags | (_MS_RDONLY if read_only else 0)
    check(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", tmp_flags, options), "mount /tmp")
    check(
        libc.mount(b"tmpfs", b"/proc", b"tmpfs", flags | _MS_RDONLY | _MS_NOEXEC, b"size=4096"),
        "mount over /proc",
    )
    os.chdir("/tmp")
    _drop_capabilities()
    limit_resources(limits, base_bytes=base_bytes, processes=True)
    install_filter(processes=limits["child_processes"])


def _drop_capabilities() -> None:
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")
    capability = 0
    while libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    check(libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class _Counted(io.FileIO):
    """Counts how often something is written to a descriptor."""

    count = 0

    def write(self, data: Any) -> int:
        self.count += 1
        return super().write(data) or 0


def _replace_streams() -> tuple[io.TextIOWrapper, _Counted]:
    """Puts fresh standard streams in place; returns the standard output and what it writes to."""
    # Lines are passed on as they are printed, so that a snippet killed later has shown them.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    raw = _Counted(1, "wb", closefd=False)
    stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", line_buffering=True)
    sys.stdout = stdout
    sys.stderr = _error_stream()
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    return stdout, raw


def _error_stream() -> io.TextIOWrapper:
    raw = open(2, "wb", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _exit_code_of(code: str, module: types.ModuleType, show: Callable[[object], None]) -> int:
    linecache.cache[_SNIPPET_NAME] = (len(code), None, code.splitlines(True), _SNIPPET_NAME)
    try:
        tree = ast.parse(code, _SNIPPET_NAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, _SNIPPET_NAME, "exec"), module.__dict__)
        if isinstance(last, ast.Expr):
            expression = compile(ast.Expression(last.value), _SNIPPET_NAME, "eval")
            show(eval(expression, module.__dict__))
    except SystemExit as stop:
        return _exit_code(stop.code)
    except MemoryError as error:
        with contextlib.suppress(OSError):
            os.write(NOTE_FD, b"M")
        _print_error(error)
        return 1
    except BaseException as error:  # noqa: BLE001  # as the interpreter: report it, end with 1
        _print_error(error)
        return 1
    return 0


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(OSError, ValueError):
        _error_stream().write(f"{code}\n")
    return 1


def _print_error(error: BaseException) -> None:
    # The snippet may have closed or replaced sys.stderr; descriptor 2 is what is read.
    with contextlib.suppress(OSError, ValueError, MemoryError):
        frames = error.__traceback__.tb_next if error.__traceback__ else None  # without ours
        traceback.print_exception(type(error), error, frames, file=_error_stream())
