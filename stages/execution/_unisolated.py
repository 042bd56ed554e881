"""Entry of a fresh interpreter that runs one snippet without isolation. Standard library only."""

import os
from typing import Any, NoReturn

from stages.execution._child import limit_resources, run_snippet


def main(settings: dict[str, Any]) -> NoReturn:
    """Runs the code that descriptor 0 holds in this process, with its limits only.

    Args:
        settings: `directory` to work in, `limits`, and `path`, the folders of packages.
    """
    with open(0, encoding="utf-8", newline="", closefd=False) as source:
        code = source.read()
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.setsid()
    os.chdir(settings["directory"])
    limit_resources(settings["limits"], processes=False)
    run_snippet(code, settings["path"])
