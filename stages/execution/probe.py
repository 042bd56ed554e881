"""A trial of the sandbox before it is used: real work, and what must be denied."""

import os
import socket
import tempfile

from schemas.categories import ExecutionStatus
from schemas.errors import ExecutorError
from stages.execution.bubblewrap import what_is_missing
from stages.execution.lanes import Lane, Zygote

_PROBE = """
import fractions, os, socket
assert fractions.Fraction(1, 2) == 0.5
breaches = []
for name, attempt in {{
    "reads files": lambda: open({secret!r}),
    "writes files": lambda: open(os.path.join({prefix!r}, "breach"), "w"),
    "makes files in memory": lambda: os.memfd_create("breach"),
    "reaches the network": lambda: socket.create_connection(("127.0.0.1", {port}), timeout=2),
}}.items():
    try:
        attempt()
    except OSError:
        continue
    breaches.append(name)
print(",".join(breaches) or "isolated")
"""


def probe(zygote: Zygote) -> None:
    """Runs a trial snippet that does real work and attempts what must be denied.

    Raises:
        ExecutorError: If it cannot be run, or is not denied something; it names what.
    """
    with (
        tempfile.NamedTemporaryFile() as secret,
        socket.create_server(("127.0.0.1", 0)) as listener,
        Lane(zygote) as lane,
    ):
        port = listener.getsockname()[1]
        prefix = os.path.dirname(os.__file__)
        outcome = lane.run([_PROBE.format(secret=secret.name, prefix=prefix, port=port)])
    if outcome.status != ExecutionStatus.OK:
        words = outcome.stderr.strip().rpartition("\n")[2]
        raise ExecutorError(what_is_missing(f"trial snippet: {outcome.status} {words}".strip()))
    if outcome.stdout != "isolated\n":
        raise ExecutorError(what_is_missing(f"trial snippet {outcome.stdout.strip()}"))
