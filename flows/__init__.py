"""Top floor: Prefect flows and tasks, the binding of stages to storage, the command line.

Sets defaults before Prefect and torch are imported: nothing is sent anywhere, a temporary server
has time to start on a busy machine, and threads of torch that wait do not spin. Values set in
the environment win.
"""

import os

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Waiting threads that spin take the core from the thread they wait for: on a busy machine of
    # two cores a training step took ten times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Set either way, tokenizers does not warn when the sandbox starts a process.
    "TOKENIZERS_PARALLELISM": "true",
}.items():
    os.environ.setdefault(_name, _value)
