"""Commands that look into a store: runs, show."""

from typing import Annotated

import typer
from rich.console import Console

from flows.cli_options import DEFAULT_STORE, RunOption, StoreOption, chosen_run
from schemas.errors import StoreError


def runs(store: StoreOption = DEFAULT_STORE) -> None:
    """Lists the runs of a store."""
    from rich.table import Table

    from storage import Store

    opened = Store.open(store)
    table = Table(box=None)
    for column in ("run", "status", "iterations", "changed (UTC)", "branched from", "message"):
        table.add_column(column, overflow="fold")
    for record in opened.runs():
        parent = record.parent
        origin = "" if parent is None else f"{parent.run} {parent.iteration} {parent.stage}"
        table.add_row(
            record.name,
            record.status,
            f"{record.iterations_done} of {record.config.get('iterations', '?')}",
            f"{record.updated_at:%Y-%m-%d %H:%M:%S}",
            " ".join([origin, *(parent.overrides if parent else [])]),
            record.message or "",
        )
    if table.row_count:
        Console().print(table)
    else:
        typer.echo(f"no run in {store}")


def show(
    table: Annotated[str, typer.Argument(help="Name of a table, such as turns or advantages.")],
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None, typer.Option("--iteration", min=0, help="Only this iteration.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="train or evaluation.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="Rows to show.")] = 10,
) -> None:
    """Shows a table of a run: counts, schema and first rows.

    Example: turnledger show turns --iteration 3 -n 20
    """
    import polars as pl

    from storage import Store, open_table

    opened = Store.open(store)
    name = chosen_run(opened, run)
    place = split or ("evaluation" if table == "evaluations" else "train")
    frame = open_table(store, name, table, split=place)
    if iteration is not None:
        frame = frame.filter(pl.col("iteration") == iteration)
    counts = frame.group_by("iteration").agg(rows=pl.len()).sort("iteration").collect()
    if iteration is not None and counts.is_empty():
        raise StoreError(f"{table} of {name} has no row of iteration {iteration}, {place}")
    told = ", ".join(f"{i}: {count}" for i, count in counts.rows())
    typer.echo(f"{table} of {name}, {place}: {counts['rows'].sum()} rows")
    if told:
        typer.echo(f"by iteration {told}")
    for column, kind in frame.collect_schema().items():
        typer.echo(f"  {column:24} {str(kind).partition('(categories')[0]}")
    width = Console().width
    with pl.Config(
        tbl_rows=rows,
        tbl_cols=max(4, width // 16),
        fmt_str_lengths=30,
        tbl_width_chars=width,
        tbl_hide_dataframe_shape=True,
    ):
        typer.echo(str(frame.head(rows).drop("run").collect()))
