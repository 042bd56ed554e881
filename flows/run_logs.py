"""What a flow run of a deployment prints: the log that its worker reads."""

import logging

from prefect.logging.handlers import PrefectConsoleHandler
from prefect.runtime import deployment


def outlive_reader() -> None:
    """Lets a flow run go on where the worker, or the process that serves, has died.

    That process reads what the flow run prints. Prefect prints with rich, which ends a process
    that nobody reads any more; the standard library drops the line. Prefect's server has the log
    in any case.
    """
    if deployment.id is None:
        return
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, PrefectConsoleHandler):
            plain = logging.StreamHandler(handler.stream)
            plain.setFormatter(handler.formatter)
            root.removeHandler(handler)
            root.addHandler(plain)
