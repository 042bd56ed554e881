"""The command that shows where the time of a rollout went."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.cli_options import (
    DEFAULT_STORE,
    RunOption,
    StoreOption,
    check_output,
    chosen_run,
    write_outputs,
)

if TYPE_CHECKING:
    import polars as pl


def timeline(
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None, typer.Option("--iteration", min=0, help="Whose rollout; left out, the last.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train or evaluation.")] = "train",
    to: Annotated[
        Path | None, typer.Option("--to", help="Parquet file: a row a piece of work.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="PNG file: a lane a shard, what it did when.")
    ] = None,
) -> None:
    """Shows when a rollout generated and when it ran code.

    Shards alternate between the two and wait for nobody else, so one generates while another runs
    code. The share of generation says how busy the engine was: where it is low, more shards help.
    An engine with a prefix cache also tells how much of the contexts it found there.

    Example: turnledger timeline --run demo --iteration 3 --figure timeline.png
    """
    import polars as pl

    from flows.work_times import draw_timeline, prefix_cache_share, utilisation, work_times
    from storage import Store, table_iterations

    check_output(to, ".parquet")
    check_output(figure, ".png")
    name = chosen_run(Store.open(store), run)
    if iteration is None:
        iteration = max(table_iterations(store, name, "generation_times", split=split), default=0)
    times = work_times(store, name, iteration=iteration, split=split)
    seconds = float(times.select(pl.max("end_s")).item())
    title = f"{name}, rollout {split} {iteration}, {seconds:.1f} s"
    console = Console()
    console.print(_shares(utilisation(times), title))
    found = prefix_cache_share(times)
    if found is not None:
        asked = int(times["prompt_tokens"].sum())
        console.print(f"found in the prefix cache: {found:.0%} of {asked:,} context tokens")
    write_outputs(console, times, to, figure, lambda at: draw_timeline(times, title, at))


def _shares(told: "pl.DataFrame", title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("")
    for head in ("seconds", "of the time", "turns", "tokens", "tokens/s"):
        table.add_column(head, justify="right")
    for row in told.iter_rows(named=True):
        table.add_row(
            row["work"],
            f"{row['busy_s']:.1f}",
            f"{row['share']:.0%}",
            f"{row['turns']:,}",
            f"{row['tokens']:,}",
            f"{row['tokens_per_s']:,.0f}",
        )
    return table
