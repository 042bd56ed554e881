"""Top floor: Prefect flows and tasks, the binding of stages to storage, the command line.

Sets defaults for Prefect before it is imported: nothing is sent anywhere, and a temporary server
has time to start on a busy machine. Values set in the environment win.
"""

import os

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Set either way, tokenizers does not warn when the sandbox starts a process.
    "TOKENIZERS_PARALLELISM": "true",
}.items():
    os.environ.setdefault(_name, _value)
