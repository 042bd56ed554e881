"""Commands about the ledger itself: lineage, drop, gc, export, import."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flows.catalogue import usual_split
from flows.cli_options import (
    DEFAULT_STORE,
    RunOption,
    StoreOption,
    chosen_run,
    write_frame,
)

if TYPE_CHECKING:
    from storage.backend import Waste


def lineage(
    table: Annotated[str, typer.Argument(help="Name of a table, such as advantages, or `policy`.")],
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, help="Iteration; left out, the last that has it."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, evaluation or a benchmark.")
    ] = None,
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
    place = split or usual_split(table)
    refs = find_table(opened, chosen_run(opened, run), table, iteration=iteration, split=place)
    traced = trace(opened, refs, through_policies=deep)
    if to is not None:
        write_frame(traced.frame(), to)
    console = Console()
    for line in lineage_lines(traced):
        # The settings at the end of a line are the part that a narrow terminal can miss.
        typer.echo(line[: console.width] if console.is_terminal else line)


def drop(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    store: StoreOption = DEFAULT_STORE,
    undo: Annotated[
        bool, typer.Option("--undo", help="Brings a dropped run back, until gc has removed it.")
    ] = False,
) -> None:
    """Takes a run off the books, so that gc can free what it alone has.

    Nothing is deleted yet. Branches of the run hold all that they build on, and stay.

    Example: turnledger drop first; turnledger gc --dry-run; turnledger drop first --undo
    """
    from storage import Store
    from storage.garbage import drop_run, find_garbage, restore_run

    opened = Store.open(store)
    if undo:
        restore_run(opened, run)
        typer.echo(f"run {run} is back")
        return
    before = find_garbage(opened).bytes
    drop_run(opened, run)
    freed = find_garbage(opened).bytes - before
    typer.echo(
        f"run {run} dropped: `turnledger gc` frees {freed:,} bytes of it; "
        f"`turnledger drop {run} --undo` brings it back until then"
    )


def gc(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Lists, and removes nothing.")] = False,
) -> None:
    """Removes what no run refers to: dropped runs, replaced results, what killed processes left.

    Refused while any run of the store is being trained. A file that a run still shares is counted
    with 0 bytes: only its other name goes. Files that the store did not make are left alone.

    Example: turnledger gc --dry-run
    """
    from storage import Store
    from storage.garbage import find_garbage, refuse_while_trained, remove_garbage

    opened = Store.open(store)
    refuse_while_trained(opened)
    waste = find_garbage(opened)
    if waste.items:
        Console().print(_garbage_table(waste))
    for line in waste.spared:
        typer.echo(line)
    if not waste.items:
        typer.echo(f"nothing to remove in {opened.url}")
        return
    told = f"{waste.files:,} files, {waste.bytes:,} bytes"
    if dry_run:
        typer.echo(f"{told}: `turnledger gc` removes them")
        return
    with _progress("files") as progress:
        done = 0

        def removed() -> None:
            nonlocal done
            done += 1
            progress(done, waste.files)

        remove_garbage(opened, waste, removed)
    typer.echo(f"{told} removed")


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make.")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Copies a run into a new store of its own, which needs nothing of this one.

    The folder can be archived, moved, opened by every command with --store, and imported into
    another store. Every byte is verified on the way.

    Example: turnledger export first /archive/first
    """
    from storage import Store
    from storage.transfer import export_run

    opened = Store.open(store)
    with _progress("results") as progress:
        export_run(opened, run, folder, progress)
    typer.echo(f"run {run} exported to {folder.absolute()}")


def import_run(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Exported folder, or any other store.")
    ],
    store: StoreOption = DEFAULT_STORE,
    name: Annotated[
        str | None, typer.Option("--as", help="Other name for the run; left out, its own.")
    ] = None,
) -> None:
    """Takes the runs of an exported folder into a store.

    Every byte is verified on the way. Killed halfway, the same command finishes. A training or a
    rerun in the store finds the results and computes nothing again.

    Example: turnledger import /archive/first --as theirs --store s3://ledger/team
    """
    from storage import Store
    from storage.transfer import import_runs

    source = Store.open(folder)
    opened = Store.open(store, create=True)
    with _progress("results") as progress:
        names = import_runs(source, opened, name, progress)
    typer.echo(f"imported into {opened.url}: {', '.join(names)}")


def _garbage_table(waste: "Waste") -> Table:
    table = Table(box=None)
    table.add_column("kind")
    table.add_column("uri", overflow="fold")
    table.add_column("files", justify="right")
    table.add_column("bytes", justify="right")
    for item in waste.items:
        table.add_row(item.kind, item.uri, f"{len(item.files):,}", f"{item.bytes:,}")
    return table


@contextmanager
def _progress(of_what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar in a terminal; gives what takes the number that is done, and that of all."""
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(of_what), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda done, of: bar.update(task, completed=done, total=of)
