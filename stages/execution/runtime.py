"""What both executors share: how the bare interpreter is started, and with what limits."""

import inspect
import json
import sysconfig
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from schemas.config import ExecutionConfig

ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Sets of strings iterate in the same order in every snippet, so that runs repeat.
    "PYTHONHASHSEED": "0",
    # An arena for each thread would take 64 MiB of the address space, which is what is limited.
    "MALLOC_ARENA_MAX": "1",
    # Thread pools cost more than they give on small problems, and count against the limit.
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TMPDIR": "/tmp",
}
"""The whole environment of a snippet: nothing of the parent's is passed on."""


_BOOT = """
import json, sys, types
for name, source in json.loads(sys.argv[1]):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.main(json.loads(sys.argv[2]))
"""


class Source(NamedTuple):
    """A module as text."""

    name: str
    text: str


def sources_of(*modules: types.ModuleType) -> tuple[Source, ...]:
    """Returns modules as text, read now.

    To be called at import: an interpreter that is started later must not run what a file was
    edited to meanwhile.
    """
    return tuple(Source(module.__name__, inspect.getsource(module)) for module in modules)


def interpreter_command(
    interpreter: str, modules: Sequence[Source], settings: Mapping[str, Any]
) -> list[str]:
    """Returns the command that calls `main(settings)` of the last module, in a bare interpreter.

    Without site packages, the user's packages and the working directory on the path. The
    environment stays in use, which is ours from end to end: it fixes the hash seed.

    Args:
        interpreter: Path of the Python interpreter.
        modules: Modules in the order of their imports of each other. They are passed as text,
            so that the project's folder need not be readable inside.
        settings: What can be written as JSON.
    """
    options = ["-P", "-s", "-S", "-u", "-c", _BOOT]
    return [interpreter, *options, json.dumps(modules), json.dumps(settings)]


def site_packages() -> list[str]:
    """Returns the folders of installed packages that snippets may import from."""
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


_LIMITS = (
    *("wall_time_s", "cpu_time_s", "memory_mib", "output_kib", "file_size_mib", "threads"),
    *("child_processes", "show_last_value"),
)


def limits_of(config: ExecutionConfig) -> dict[str, Any]:
    """Returns the limits of one snippet, as the sandbox reads them."""
    return config.model_dump(mode="json", include={*_LIMITS})
