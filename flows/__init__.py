"""Top floor: Prefect flows and tasks, the binding of stages to storage, the command line.

Sets defaults before Prefect and torch are imported: nothing is sent anywhere, a temporary server
has time to start on a busy machine, and waiting threads of torch soon stop spinning. Values set
in the environment win.
"""

import os

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # A waiting thread that spins takes the core from the thread it waits for: beside other work a
    # training step took ten times as long. Spinning briefly keeps the speed of an idle machine,
    # which OMP_WAIT_POLICY=PASSIVE halves.
    "GOMP_SPINCOUNT": "10000",
    # Set either way, tokenizers does not warn when the sandbox starts a process.
    "TOKENIZERS_PARALLELISM": "true",
}.items():
    os.environ.setdefault(_name, _value)
