"""Commands that tell of runs to persons and to other systems: runs, watch, publish."""

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_options import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, chosen_run
from schemas.errors import StoreError, TurnledgerError

if TYPE_CHECKING:
    from flows.reporters import Reporter
    from flows.watching import RunState
    from storage import RunRecord, Store

HEADS = ("run", "status", "iteration", "accuracy", "changed")


def runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Lists the runs of a store: state, iterations, last accuracy, and when they changed.

    A run is `running` while a process holds it; one whose process is gone is `interrupted`. In a
    bucket a holder that died on another machine still counts; `turnledger watch` finds out.

    Example: turnledger runs --store turnledger-store
    """
    from flows.watching import run_states
    from storage import Store

    opened = Store.open(store)
    states, damaged = run_states(opened), opened.damaged_runs()
    if as_json:
        for state in states:
            typer.echo(json.dumps(_values(state)))
        for name, problem in damaged.items():
            typer.echo(json.dumps({"run": name, "status": "damaged", "message": problem}))
        return
    if not states and not damaged:
        typer.echo(f"no run in {store}")
        return
    rows = [(_cells(state), _notes(state.record)) for state in states]
    rows += [((name, "damaged", "", "", ""), [problem]) for name, problem in damaged.items()]
    for line in _lines(rows, shutil.get_terminal_size().columns):
        typer.echo(line)


def watch(
    run: Annotated[
        str | None, typer.Argument(help="Name of the run; left out, the one that changed last.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Follows a run that another process works on, from any machine that reaches the store.

    Tells what is stored already and then what comes, until the run ends. A run that is not there
    yet is waited for. Exit code 0: finished. 1: failed. 130: interrupted, or Ctrl-C here, which
    the run does not notice.

    Example: turnledger watch nightly --store s3://team/ledger
    """
    from flows.reporters import reporter
    from storage import Store

    with reporter(quiet=quiet, as_json=as_json) as told:
        opened = Store.open(store)
        try:
            record = _followed(opened, run or chosen_run(opened, None), told)
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
        if record.status == "failed":
            raise TurnledgerError(f"run {record.name} failed: {record.message or 'no reason told'}")
        if record.status == "interrupted":
            typer.echo(f"run {record.name} was interrupted", err=True)
            raise typer.Exit(130)
        told.say(f"run {record.name} is finished")


def publish(
    to: Annotated[
        str,
        typer.Option("--to", help="Where to: tensorboard:FOLDER, mlflow:URI or wandb:PROJECT."),
    ],
    run: Annotated[
        str | None, typer.Argument(help="Name of the run; left out, the one that changed last.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    follow: Annotated[bool, typer.Option("--follow", help="Goes on until the run ends.")] = False,
) -> None:
    """Adds the figures of a run to TensorBoard, MLflow or W&B, through their own clients.

    Figures are the columns of the table updates, by optimiser step, and what rollouts and
    evaluations came to, by iteration. What is there already is not added again, so the command
    may be repeated, after a training or beside it. The settings of the run go with them.

    Example: turnledger publish nightly --to mlflow:http://mlflow.example:5000 --follow
    """
    from flows.publishing import publish as publish_run
    from storage import Store

    opened = Store.open(store)
    name = run or chosen_run(opened, None)
    try:
        done = publish_run(opened, name, to, until_end=follow)
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    typer.echo(f"{done.added} figures of run {name} added to {to}, {done.known} were there")


def _followed(store: "Store", run: str, told: "Reporter") -> "RunRecord":
    """Tells of a run until it ends, and returns its record."""
    from flows.sessions import stored_config
    from flows.watching import follow, wait_for_run

    if not store.has_run(run):
        told.say(f"run {run} is not in {store.url} yet: waiting for it")
    record = wait_for_run(store, run)
    told.say(f"run {run} in {store.url}: {record.status}")
    try:
        # What a branch will do is not in its record: one stage again, or a training from there.
        config = None if record.parent is not None else stored_config(record)
    except StoreError:
        config = None  # of another version: its results can be told all the same
    with told.of_run(store, run, config):
        return follow(store, run, told.on_event)


def _values(state: "RunState") -> dict[str, object]:
    """Returns what the JSON line of a run says."""
    record, found = state.record, state.evaluation
    return {
        "run": record.name,
        "status": record.status,
        "iterations_done": record.iterations_done,
        "iterations": record.config.get("iterations"),
        "evaluated_iteration": None if found is None else found.iteration,
        "avg_at_k": None if found is None else found.avg_at_k,
        "updated_at": record.updated_at.isoformat().replace("+00:00", "Z"),
        "parent": None if record.parent is None else record.parent.model_dump(),
        "imported_from": record.imported_from,
        "message": record.message,
    }


def _cells(state: "RunState") -> tuple[str, ...]:
    record, found = state.record, state.evaluation
    accuracy = "-" if found is None or found.avg_at_k is None else f"{found.avg_at_k:.2f}"
    done = f"{record.iterations_done} of {record.config.get('iterations', '?')}"
    return record.name, record.status, done, accuracy, f"{_duration(state.age_s())} ago"


def _notes(record: "RunRecord") -> list[str]:
    """Returns what is said below a run: where it comes from, and why it failed."""
    notes = [f"imported from {record.imported_from}"] if record.imported_from else []
    if record.parent is not None:
        parent = record.parent
        said = f"from {parent.run}, iteration {parent.iteration}, {parent.stage}"
        notes.append(": ".join([said, *([" ".join(parent.overrides)] if parent.overrides else [])]))
    return [*notes, *([record.message] if record.message else [])]


def _lines(rows: list[tuple[tuple[str, ...], list[str]]], width: int) -> list[str]:
    """Lays runs out: a line each where the width takes it, else the name on a line of its own."""
    from flows.cli_inspect import excerpt

    cells = [HEADS, *(row for row, _ in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADS))]
    is_narrow = sum(widths) + 2 * (len(HEADS) - 1) > width
    lines = [] if is_narrow else [_in_columns(HEADS, widths)]
    for row, notes in rows:
        if is_narrow:
            lines += [row[0], f"  {'  '.join(cell for cell in row[1:] if cell)}"]
        else:
            lines.append(_in_columns(row, widths))
        for note in notes:
            lines += textwrap.wrap(
                excerpt(note), max(20, width), initial_indent="    ", subsequent_indent="    "
            )
    return lines


def _in_columns(cells: tuple[str, ...], widths: list[int]) -> str:
    """Writes cells in columns; iterations and accuracy to the right."""
    sides = ("<", "<", ">", ">", "<")
    shown = (f"{c:{side}{w}}" for c, side, w in zip(cells, sides, widths, strict=True))
    return "  ".join(shown).rstrip()


def _duration(seconds: float) -> str:
    """Writes how long ago something was, in its largest unit."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size or (unit != "days" and seconds >= size):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
