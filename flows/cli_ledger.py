"""Commands about the ledger itself: lineage."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli_options import DEFAULT_STORE, RunOption, StoreOption, chosen_run


def lineage(
    table: Annotated[str, typer.Argument(help="Name of a table, such as advantages, or `policy`.")],
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, help="Iteration; left out, the last that has it."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train or evaluation.")] = "train",
    deep: Annotated[
        bool, typer.Option("--deep", help="Go on behind policies, back to the cold start.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option("--to", help="Parquet file to write the graph's edges to.")
    ] = None,
) -> None:
    """Shows what a table was made from: its parents, back to prompts, settings and policy.

    Example: turnledger lineage advantages --run first --iteration 3
    """
    from flows.lineage_report import lineage_lines
    from storage import Store
    from storage.lineage import find_table, trace

    opened = Store.open(store)
    refs = find_table(opened, chosen_run(opened, run), table, iteration=iteration, split=split)
    traced = trace(opened, refs, through_policies=deep)
    if to is not None:
        traced.frame().write_parquet(to)
    console = Console()
    for line in lineage_lines(traced):
        # The settings at the end of a line are the part that a narrow terminal can miss.
        typer.echo(line[: console.width] if console.is_terminal else line)
