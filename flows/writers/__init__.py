"""Figures of a run for other systems, through their own clients; the store stays the ledger.

A writer is a subscriber of what a run stores: it may come after the fact, beside a training or
every night, and asks its target first what is there, so that nothing is added twice.
"""

import importlib
import importlib.util
from collections.abc import Callable

from flows.writers.points import Header
from flows.writers.protocol import Writer
from schemas.errors import ConfigError

KINDS = {
    "tensorboard": "tensorboard:FOLDER",
    "mlflow": "mlflow:URI",
    "wandb": "wandb:PROJECT",
}
"""Kind of a target to how it is written; each is an extra of that name, and a module here."""


def open_writer(target: str, header: Header) -> Writer:
    """Opens a target for the figures of a run.

    Args:
        target: As in `KINDS`, such as `tensorboard:figures`.
        header: What is known of the run beside its figures.

    Raises:
        ConfigError: If the target is of no known kind, or its client is not installed.
        TurnledgerError: If the target cannot be reached.
    """
    kind, _, place = target.partition(":")
    if kind not in KINDS or not place:
        raise ConfigError(f"--to {target} is unknown: write {', '.join(KINDS.values())}")
    if importlib.util.find_spec(kind) is None:
        raise ConfigError(f"{kind} is not installed: pip install 'turnledger[{kind}]'")
    make: Callable[[str, Header], Writer] = importlib.import_module(
        f"flows.writers.to_{kind}"
    ).open_target
    return make(place, header)
