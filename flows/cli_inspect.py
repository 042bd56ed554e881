"""Commands that look into stored runs and change nothing.

Heavy modules are imported inside the commands: `--help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.catalogue import usual_split
from flows.cli_options import (
    DEFAULT_STORE,
    RunOption,
    StoreOption,
    chosen_run,
    write_frame,
)
from schemas.errors import StoreError

if TYPE_CHECKING:
    import polars as pl

    from flows.compare import Diff

EXCERPT_CHARS = 240
"""Most characters of a turn's text that are shown."""


def show(
    table: Annotated[str, typer.Argument(help="Name of a table, such as turns or advantages.")],
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None, typer.Option("--iteration", min=0, help="Only this iteration.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, evaluation or a benchmark.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="Rows to show.")] = 10,
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Columns to show, with commas between; left out, all."),
    ] = None,
) -> None:
    """Shows a table of a run: counts, schema and first rows.

    Example: turnledger show executions --iteration 3 -n 20 --columns status,stdout,stderr
    """
    import polars as pl

    from storage import Store, open_table, scan_errors

    opened = Store.open(store)
    name = chosen_run(opened, run)
    place = split or usual_split(table)
    frame = open_table(store, name, table, split=place, verify=True)
    if iteration is not None:
        frame = frame.filter(pl.col("iteration") == iteration)
    with scan_errors(f"{table} of {name}"):
        chosen = _chosen_columns(columns, frame.collect_schema().names(), table)
        counts = frame.group_by("iteration").agg(rows=pl.len()).sort("iteration").collect()
        first = frame.head(rows).select(chosen).collect()
        schema = frame.collect_schema()
    if iteration is not None and counts.is_empty():
        raise StoreError(f"{table} of {name} has no row of iteration {iteration}, {place}")
    told = ", ".join(f"{i}: {count}" for i, count in counts.rows())
    typer.echo(f"{table} of {name}, {place}: {counts['rows'].sum()} rows")
    if told:
        typer.echo(f"by iteration {told}")
    for column, kind in schema.items():
        typer.echo(f"  {column:24} {str(kind).partition('(categories')[0]}")
    width = Console().width
    with pl.Config(
        tbl_rows=rows,
        tbl_cols=max(4, width // 16),
        fmt_str_lengths=30,
        tbl_width_chars=width,
        tbl_hide_dataframe_shape=True,
    ):
        drawn = str(first)
    typer.echo(drawn)
    if "…" in drawn.splitlines()[1]:  # where Polars left out the columns in the middle
        typer.echo("not all columns have room: choose some, as in --columns task_id,turn_index")


def _chosen_columns(columns: str | None, there: list[str], table: str) -> list[str]:
    if columns is None:
        return [name for name in there if name != "run"]
    chosen = [name.strip() for name in columns.split(",")]
    for name in chosen:
        if name not in there:
            raise StoreError(f"{table} has no column {name}: it has {', '.join(there)}")
    return chosen


def diff(
    runs: Annotated[
        tuple[str, str], typer.Argument(metavar="A B", help="Names of the run before and after.")
    ],
    store: StoreOption = DEFAULT_STORE,
    table: Annotated[
        str,
        typer.Option(
            "--table",
            help="Table to compare: turns, executions, turn_rewards, shaped_rewards, advantages "
            "or evaluations.",
        ),
    ] = "advantages",
    column: Annotated[
        str | None,
        typer.Option("--column", help="Numeric column to compare, such as return."),
    ] = None,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, help="Only this iteration; left out, all in both."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, evaluation or a benchmark.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="Largest changes to show.")] = 10,
    to: Annotated[
        Path | None, typer.Option("--to", help="Parquet file to write all compared turns to.")
    ] = None,
) -> None:
    """Compares a table of two runs turn by turn.

    Says how many turns changed and how many changed sign, by turn index and by outcome, what
    each run pays for a longer trajectory and for a later turn, and shows the largest changes with
    the turn's text. Every difference is B - A. Times of execution never count.

    Example: turnledger diff small gamma-95 --column return --to changes.parquet
    """
    from flows import compare

    changes = compare.diff(
        *(store, *runs), table=table, column=column, iteration=iteration, split=split, largest=rows
    )
    console = Console()
    for told in _header(changes):
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    console.print(_counts(changes))
    if changes.column is not None:
        console.print(_values(changes))
    elif len(changes.columns):
        console.print(_columns(changes.columns))
    if len(changes.largest):
        console.print(f"Largest changes, of {changes.rows['changed'].sum()}", highlight=False)
    for row in changes.largest.iter_rows(named=True):
        for line in _change(row):
            console.print(line, soft_wrap=True)
    if to is not None:
        write_frame(changes.rows, to)
        console.print(f"rows        {to}", markup=False, highlight=False, soft_wrap=True)


def excerpt(text: str) -> str:
    """Returns the start of a text in one line, as characters that a terminal only shows.

    What a policy wrote can hold control characters and marks that turn the direction of writing;
    they are written as Python escapes.
    """
    start = text[:EXCERPT_CHARS]
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in start
    )
    return shown + ("..." if len(text) > EXCERPT_CHARS else "")


def _header(changes: "Diff") -> list[str]:
    from flows.compare import spans

    of_column = f", column {changes.column}" if changes.column is not None else ""
    lines = [
        f"{changes.table}{of_column}: A is {changes.a}, B is {changes.b}, "
        f"iterations {spans(changes.iterations)}"
    ]
    for run, iterations in ((changes.a, changes.only_a), (changes.b, changes.only_b)):
        if iterations:
            lines.append(f"only in {run}: iterations {spans(iterations)}")
    return lines


def _counts(changes: "Diff") -> Table:
    shown = ["turns", "changed", "flips", "only_a", "only_b"]
    heads = ["rows", "changed", "changed sign", "only A", "only B"]
    if changes.column is not None:
        shown += ["correlation", "mean_abs_difference", "max_abs_difference"]
        heads += ["corr.", "mean |B-A|", "max |B-A|"]
    return _by_part("What changed", changes.summary, dict(zip(heads, shown, strict=True)))


def _values(changes: "Diff") -> Table:
    shown = {
        "mean A": "mean_a",
        "mean B": "mean_b",
        "longer A": "turn_count_bias_a",
        "longer B": "turn_count_bias_b",
        "later A": "turn_index_bias_a",
        "later B": "turn_index_bias_b",
    }
    title = "Values, and the worth of one turn longer or later"
    return _by_part(title, changes.summary, shown)


def _by_part(title: str, summary: "pl.DataFrame", shown: dict[str, str]) -> Table:
    """Lays the columns of a summary out under their heads."""
    table = _table(title, "", *shown)
    for row in summary.iter_rows(named=True):
        table.add_row(_part(row), *(_number(row[name]) for name in shown.values()))
    return table


def _columns(columns: "pl.DataFrame") -> Table:
    table = _table("By column", "", "changed")
    for name, changed in columns.iter_rows():
        table.add_row(name, str(changed))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _part(row: dict[str, Any]) -> str:
    if row["part"] == "turn_index":
        return f"turn {row['turn_index']}"
    return str(row["outcome"]) if row["part"] == "outcome" else "all"


def _change(row: dict[str, Any]) -> list[Text]:
    """Returns the lines about one changed row; texts of others are never read as markup."""
    places = {"iteration": "iteration", "benchmark": "benchmark", "task_id": "task"}
    places |= {"sample_index": "sample", "turn_index": "turn"}
    where = "  ".join(
        f"{word} {excerpt(str(row[name]))}" for name, word in places.items() if name in row
    )
    lines = [Text(f"{where}  {_what(row)}", style="bold")]
    texts = {name: row[f"text_{name.lower()}"] for name in ("A", "B")}
    if texts["A"] == texts["B"]:
        texts = {" ": texts["A"]}
    for name, text in texts.items():
        if text is not None:
            lines.append(Text(f"  {name} {excerpt(text)}"))
    return lines


def _what(row: dict[str, Any]) -> str:
    outcomes = {row["outcome_a"]: None, row["outcome_b"]: None}
    outcome = " -> ".join(name for name in outcomes if name is not None)
    if not (row["in_a"] and row["in_b"]):
        return f"only in {'A' if row['in_a'] else 'B'}, {outcome}"
    if row["a"] is None and row["b"] is None:
        return f"changed {', '.join(row['changed_columns'])}, {outcome}"
    values = ("null" if value is None else f"{value:.6g}" for value in (row["a"], row["b"]))
    sign = ", changed sign" if row["flipped"] else ""
    return f"{' -> '.join(values)}{sign}, {outcome}"


def _number(value: float | None) -> str:
    """Writes a count, or a number with four decimals and no negative zero; null is a dash."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:z.4f}"
