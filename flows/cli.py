"""The command `turnledger`.

Heavy modules are imported inside the commands: `--help` answers at once.
"""

import inspect
import logging
import os
import sys
from collections.abc import Callable

import typer

from flows import (
    cli_benchmark,
    cli_estimators,
    cli_import,
    cli_inspect,
    cli_ledger,
    cli_page,
    cli_rerun,
    cli_runs,
    cli_serve,
    cli_size,
    cli_study,
    cli_timeline,
    cli_train,
)
from schemas.errors import TurnledgerError

HELP = """Trains language models that reason over several turns with a code tool (GTPO), as
separate stages over Parquet tables. Every stage can be cached, rerun and inspected alone.

Start with `turnledger quickstart`; look with `turnledger page` in a browser, or with
`turnledger runs` and `turnledger show advantages`; change one stage: `turnledger plan`,
`turnledger rerun advantages --set gamma=0.95`, then `turnledger diff` the two runs.
"""


def flowing(text: str) -> str:
    """Takes the line breaks out of paragraphs, so that help fills lines of any width."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


app = typer.Typer(
    help=flowing(HELP),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Flows": (
        cli_train.quickstart,
        cli_train.train,
        cli_rerun.plan,
        cli_rerun.rerun,
        cli_rerun.evaluate,
        cli_benchmark.benchmark,
        cli_study.study,
        cli_import.import_trajectories,
        cli_size.size,
        cli_serve.serve,
    ),
    "Runs": (cli_runs.runs, cli_runs.watch, cli_runs.publish),
    "Tables": (
        cli_inspect.show,
        cli_inspect.diff,
        cli_estimators.compare_estimators,
        cli_benchmark.contamination,
        cli_timeline.timeline,
        cli_ledger.lineage,
    ),
    "Looking": (cli_page.page, cli_page.report),
    "Store": (cli_ledger.drop, cli_ledger.gc, cli_ledger.export, cli_ledger.import_run),
}
NAMES: dict[Callable[..., None], str] = {cli_ledger.import_run: "import"}
"""Of commands whose functions cannot have that name."""

for panel, commands in PANELS.items():
    for command in commands:
        told = flowing(command.__doc__ or "")
        app.command(NAMES.get(command), help=told, rich_help_panel=panel)(command)


def main() -> None:
    """Runs the command; errors that a person can mend end in one line and exit code 1."""
    # What fails is told in one line here; Prefect's own log would add pages to it.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")
    for name in ("EventsWorker", "APILogWorker"):
        # Named after Prefect's classes, outside its loggers: on a busy machine they tell at the
        # exit how much they still have to send.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        app()
    except TurnledgerError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        # A path that no other place has told about: its name is too long, or it may not be read.
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {place}{error.strerror or error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
