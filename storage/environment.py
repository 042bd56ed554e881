"""What computed a result: versions and machine, without names of host, user or folders."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_SOURCES = Path(__file__).resolve().parent.parent
_GIT_TIMEOUT_S = 5


class Environment(BaseModel):
    """What computed the result. Names no host, no user and no folder.

    Null stands in results of a version that did not note the value.
    """

    model_config = ConfigDict(frozen=True)

    turnledger: str
    """Version of this package."""
    code_version: str | None = None
    """That version; for sources in a git checkout with commit and `-dirty` behind a plus."""
    python: str
    cpus: int | None
    machine: str | None = None
    """Processor architecture, such as `x86_64`."""
    system: str | None = None
    """Operating system with its release."""
    memory_mib: int | None = None
    """Memory of the machine, MiB."""
    libraries: dict[str, str]
    """Distribution to version."""

    @classmethod
    def current(cls, libraries: Mapping[str, str]) -> "Environment":
        """Returns this process's environment, with the library versions that are handed in."""
        own = {name: _version(name) for name in ("dataframely", "polars")}
        return cls(
            turnledger=_version("turnledger"),
            code_version=code_version(),
            python=platform.python_version(),
            cpus=os.cpu_count(),
            machine=platform.machine(),
            system=f"{platform.system()} {platform.release()}",
            memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            libraries=dict(sorted({**own, **libraries}.items())),
        )


@functools.cache
def code_version(sources: Path = _SOURCES) -> str:
    """Returns the package's version and, where `sources` is a git checkout, its commit.

    Taken once a process, which goes on with the modules it has. Without git, or with a checkout
    that git does not trust, the version alone is returned.
    """
    version = _version("turnledger")
    # Sources that are installed somewhere below a foreign checkout do not belong to it.
    if _git(sources, "rev-parse", "--show-toplevel") != str(sources):
        return version
    commit = _git(sources, "describe", "--always", "--dirty")
    return f"{version}+{commit}" if commit else version


def _git(folder: Path, *arguments: str) -> str:
    """Returns what git prints; nothing where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
