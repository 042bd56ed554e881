"""The command that puts all estimators side by side on a stored run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

    from flows.estimators import SideBySide


def compare_estimators(
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None, typer.Option("--iteration", min=0, help="Only this iteration; left out, all.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", help="Task whose turns are shown with every estimator's credit."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Parquet file: a row a turn, a column an estimator.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="PNG file: mean advantages, and who agrees.")
    ] = None,
) -> None:
    """Credits the stored rewards of a run by every estimator, side by side.

    Shows what each pays for a longer trajectory and for a later turn at equal outcome, in standard
    deviations of its own advantages, and how far it agrees with GTPO. Nothing is sampled, executed
    or stored: the run stays as it is.

    Example: turnledger compare-estimators --run small --figure estimators.png
    """
    from flows.estimators import draw_estimators, estimators_of
    from storage import Store

    check_output(to, ".parquet")
    check_output(figure, ".png")
    compared = estimators_of(store, chosen_run(Store.open(store), run), iteration=iteration)
    console = Console()
    for name, reason in compared.left_out.items():
        console.print(f"{name} is left out: {reason}", markup=False, highlight=False)
    chosen = None if group is None else compared.group(group)
    console.print(_summary(compared))
    if not any(compared.summary["credited"].fill_null(0)):
        console.print("no turn is credited: every group has one trajectory, or equal outcomes")
    if chosen is not None:
        console.print(_group(chosen, compared.names, console.width))
    write_outputs(console, compared.credit, to, figure, lambda at: draw_estimators(compared, at))


def _summary(compared: "SideBySide") -> Table:
    from flows.compare import spans

    turns = compared.credit.height
    word = "iteration" if len(compared.iterations) == 1 else "iterations"
    title = f"{compared.run}, {word} {spans(compared.iterations)}, {turns} turns"
    table = Table(title=title, title_justify="left", box=None)
    heads = {
        "credited": "credited",
        "longer": "turn_count_bias",
        "later": "turn_index_bias",
        "corr.": "correlation",
        "same sign": "same_sign",
    }
    table.add_column("")
    for head in heads:
        table.add_column(head, justify="right")
    for row in compared.summary.iter_rows(named=True):
        table.add_row(row["estimator"], *(_number(row[name]) for name in heads.values()))
    return table


def _group(rows: "pl.DataFrame", names: Any, width: int) -> Table:
    """Lays one group out: a row an estimator, a column a turn, as far as the terminal is wide."""
    first = rows.row(0, named=True)
    table = Table(
        title=f"group {first['task_id']}, iteration {first['iteration']}",
        title_justify="left",
        box=None,
        caption="columns are sample.turn; right trajectories are marked +",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    places = (width - max(map(len, names)) - 4) // 8
    shown = rows.head(max(1, places))
    for row in shown.iter_rows(named=True):
        mark = "+" if row["outcome"] == "right" else ""
        table.add_column(
            f"{row['sample_index']}.{row['turn_index']}{mark}", justify="right", no_wrap=True
        )
    for name in names:
        table.add_row(name, *(_number(value) for value in shown[name]))
    if shown.height < rows.height:
        more = rows.height - shown.height
        table.caption = f"{table.caption}; {more} more turns in a wider terminal, or in --to"
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"
