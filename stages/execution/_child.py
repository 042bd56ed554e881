"""The process of one snippet: gives up its rights, then runs the code.

Standard library only: this runs in a bare interpreter. Descriptor 3 is the note pipe that
`_watch` describes.
"""

import contextlib
import ctypes
import os
import resource
import struct
from typing import Any, Final, NoReturn

from stages.execution._cells import run_cells
from stages.execution._seccomp import install as install_filter

NOTE_FD: Final = 3
CODE_FD: Final = 4
CLONE_NEWPID: Final = 0x20000000

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_STACK_BYTES = 8 << 20

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
libc.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]
libc.syscall.argtypes = [ctypes.c_long] * 4
libc.syscall.restype = ctypes.c_long


def run_snippet(cells: list[str], limits: dict[str, Any]) -> NoReturn:
    """Runs code and ends the process; what `_watch` is told goes through the note pipe.

    Args:
        cells: As `run_cells` takes them.
        limits: `show_last_value`.
    """
    # Closed by exec; the lane takes what follows in this pipe for no more than `M`.
    os.set_inheritable(NOTE_FD, False)
    run_cells(
        cells,
        show_last_value=limits["show_last_value"],
        on_ready=lambda: _note(b"R"),
        on_memory_error=lambda: _note(b"M"),
    )


def _note(letter: bytes) -> None:
    with contextlib.suppress(OSError):  # the snippet closed it
        os.write(NOTE_FD, letter)


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
