"""The command that takes trajectories of other projects in."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli_options import DEFAULT_STORE, StoreOption

if TYPE_CHECKING:
    from flows.foreign_report import Imported

ROWS_BETWEEN_SIGNS = 1_000


class FormatName(StrEnum):
    """Formats of `stages.foreign.FORMATS`, and to find out which."""

    AUTO = "auto"
    TURNS = "turns"
    VERL = "verl"
    TRL = "trl"
    VERIFIERS = "verifiers"


def import_trajectories(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="JSONL or Parquet file.")],
    run: Annotated[str, typer.Option("--run", help="Name of the run to make.")],
    format_name: Annotated[
        FormatName, typer.Option("--format", help="Whose file it is; auto looks at its rows.")
    ] = FormatName.AUTO,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Makes a run of rollouts from elsewhere, to score, shape and credit them here.

    `turns` is JSONL with problem, gold and turns of text, code and output; `verl` its rollout or
    validation dump; `trl` the Parquet of log_completions; `verifiers` its results.jsonl. Rows
    with the same problem become one group. A row that cannot be used, such as one without a gold
    answer, goes to rejected_trajectories with the reason. The same file again changes nothing.

    Imported turns have no log-probabilities, so they cannot be trained on.

    Example: turnledger import-trajectories dump/3.jsonl --run theirs; then
    turnledger rerun turn_rewards --run theirs --iteration 1 --until advantages
    """
    from flows.foreign_report import report_of
    from flows.foreign_runs import TrajectoryFile, import_file
    from storage import Store

    wanted = None if format_name is FormatName.AUTO else format_name.value
    try:
        with _row_counter() as on_row:
            file = TrajectoryFile.find(path, wanted, on_row)
            opened = Store.open(store, create=True)
            is_new = import_file(opened, run, file)
    except KeyboardInterrupt as error:
        typer.echo("interrupted: the same command begins again", err=True)
        raise typer.Exit(130) from error
    done = "imported into" if is_new else "is unchanged and stored already in"
    typer.echo(f"{path} ({file.format_name}) {done} run {run} of {opened.url}")
    report = report_of(opened, run)
    for line in report.lines():
        typer.echo(line)
    _tell_next(opened.url, run, report)


def _tell_next(url: str, run: str, report: "Imported") -> None:
    command, place = Path(sys.argv[0]), f"--store {shlex.quote(url)} --run {run}"
    if report.rejected.height:
        typer.echo(f"Rejected: {command} show rejected_trajectories {place}")
    typer.echo(f"Look: {command} show turns {place}")
    typer.echo(f"Credit: {command} rerun turn_rewards {place} --iteration 1 --until advantages")


@contextmanager
def _row_counter() -> Iterator[Callable[[int], None]]:
    """Shows in a terminal how many rows are read; gives what takes the number of each."""
    console = Console()
    if not console.is_terminal:
        yield lambda row: None
        return
    with console.status("reading") as status:

        def on_row(row: int) -> None:
            if row % ROWS_BETWEEN_SIGNS == 0:
                status.update(f"{row:,} rows read")

        yield on_row
