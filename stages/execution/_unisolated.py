"""Entry of a fresh interpreter that runs one snippet without isolation. Standard library only."""

import json
import os
import sys
from typing import Any, NoReturn

from stages.execution._child import limit_resources, run_snippet, size_bytes


def main(settings: dict[str, Any]) -> NoReturn:
    """Runs the cells that descriptor 0 holds in this process, with its limits only.

    Args:
        settings: `directory` to work in, `limits`, and `path`, the folders of packages.
    """
    with open(0, encoding="utf-8", newline="", closefd=False) as source:
        cells = json.load(source)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.setsid()
    os.chdir(settings["directory"])
    sys.path[:] = ["", *sys.path, *settings["path"]]
    limit_resources(settings["limits"], base_bytes=size_bytes(), processes=False)
    run_snippet(cells, settings["limits"])
