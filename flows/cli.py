"""The command `turnledger`.

Heavy modules are imported inside the commands: `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli_inspect import diff_command
from schemas.errors import ConfigError, StoreError, TurnledgerError

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from flows.rerun import RerunStage
    from schemas.config import RunConfig
    from storage import RunParent, Store

HELP = """Trains language models that reason over several turns with a code tool (GTPO), as
separate stages over Parquet tables. Every stage can be cached, rerun and inspected alone.

Start with `turnledger quickstart`; look with `turnledger runs` and `turnledger show advantages`;
change one stage with `turnledger rerun advantages --set gamma=0.95`.
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False
)

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="TURNLEDGER_STORE", help="Folder of the store.")
]
RunOption = Annotated[
    str | None,
    typer.Option("--run", help="Name of the run; left out, the run that was changed last."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Changes one setting: section.key=value. Repeatable."),
]
DEFAULT_STORE = Path("turnledger-store")


@app.command()
def train(
    store: StoreOption = DEFAULT_STORE,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; left out, it is named by its settings."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with the sections of the config.")
    ] = None,
    overrides: SetOption = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Prints all settings as TOML and stops.")
    ] = False,
) -> None:
    """Trains a run, or continues it after its last finished stage.

    The sections of the config are problems, policy, cold_start, rollout, execution,
    turn_rewards, similarity, advantages, optimisation, evaluation and compute, beside the keys
    seed and iterations. `--show-config` lists every setting with its value.

    Example: turnledger train --run first --set iterations=5 --set advantages.estimator=grpo
    """
    settings = _read_config(config, overrides)
    if show_config:
        typer.echo(_as_toml(settings))
        return
    _train(store, run, settings)


@app.command()
def quickstart(
    store: StoreOption = DEFAULT_STORE,
    overrides: SetOption = None,
) -> None:
    """Trains the embedded tiny policy from nothing, in a few minutes on two cores.

    Prints held-out accuracy by iteration as a table and draws it, then says what to try next.
    Run again, it finds everything stored.
    """
    import time

    started = time.perf_counter()
    settings = _read_config(None, overrides)
    accuracy, run = _train(store, None, settings)
    from flows.report import accuracy_table, draw_accuracy

    console = Console()
    console.print(accuracy_table(accuracy))
    picture = store / f"run={run}" / "accuracy.png"
    draw_accuracy(accuracy, f"{run}: GTPO from the cold start", picture)
    last = settings.iterations
    command = Path(sys.argv[0])
    place = f"--store {store} --run {run}"
    read = f"storage.open_table('{store}', '{run}', 'turns').collect()"
    typer.echo(
        f"""picture     {picture}
tables      {store / f"run={run}"}/iteration=*/split=*/stage=*/
Look at a table:
  {command} show advantages {place} --iteration {last}
Change one stage; its rollouts are taken over, only what depends on it is computed:
  {command} rerun advantages {place} --iteration {last} --set gamma=0.95
Open any table of the run in Polars:
  {sys.executable} -c "import storage; print({read})"
"""
    )
    first, final = accuracy["avg_at_k"][0], accuracy["avg_at_k"][-1]
    typer.echo(
        f"quickstart: avg@{settings.evaluation.samples} {first:.2f} -> {final:.2f} "
        f"in {time.perf_counter() - started:.0f} s, store {store.absolute()}"
    )


@app.command()
def rerun(
    stage: Annotated[
        str,
        typer.Argument(
            help="First stage to compute: prompts, rollout, execution, turn_rewards, "
            "similarity, advantages, optimisation or evaluation."
        ),
    ],
    iteration: Annotated[int, typer.Option("--iteration", min=0, help="Iteration to branch.")],
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    into: Annotated[
        str | None, typer.Option("--into", help="Name of the branch; default RUN.1, RUN.2, ...")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Computes one stage of an iteration again, and what depends on it, into a branch.

    What stands before the stage is taken over as stored; the original run stays as it is. A key
    without a section belongs to the stage: `--set gamma=0.95` is advantages.gamma here.

    Example: turnledger rerun advantages --run first --iteration 3 --set gamma=0.95
    """
    from flows.rerun import ORDER

    known = next((name for name in ORDER if name == stage), None)
    if known is None:
        raise ConfigError(f"stage {stage} is unknown; stages: {', '.join(ORDER)}")
    _rerun(store, run, known, iteration, into, overrides or [])


@app.command()
def evaluate(
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, help="Policy to evaluate; left out, the last one."),
    ] = None,
    into: Annotated[
        str | None, typer.Option("--into", help="Name of the branch; default RUN.1, RUN.2, ...")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Evaluates a stored policy and prints its accuracy.

    With other settings than the run's, the result goes into a branch.

    Example: turnledger evaluate --run first --set samples=16 --set path=problems.jsonl
    """
    from storage import Store

    opened = Store.open(store)
    name = _chosen_run(opened, run)
    last = opened.run_record(name).iterations_done if iteration is None else iteration
    _rerun(store, name, "evaluation", last, into, overrides or [])


@app.command()
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


@app.command()
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
    name = _chosen_run(opened, run)
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


app.command("diff")(diff_command)


def main() -> None:
    """Runs the command; errors that a person can mend end in one line and exit code 1."""
    # What fails is told in one line here; Prefect's own log would add pages to it.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")
    try:
        app()
    except TurnledgerError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _read_config(path: Path | None, overrides: list[str] | None) -> "RunConfig":
    from schemas.config import parse_config

    text = ""
    if path is not None:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"config file {path} cannot be read: {reason}") from error
    return parse_config(text, overrides or [], name=str(path or "config"))


def _train(store: Path, run: str | None, config: "RunConfig") -> "tuple[pl.DataFrame, str]":
    """Trains and returns the accuracy by iteration and the name of the run."""
    from flows.report import accuracy_by_iteration
    from flows.sessions import check_inputs, default_run_name
    from storage import Store

    check_inputs(config)
    name = run or default_run_name(config)
    opened = Store.open(store, create=True)
    typer.echo(f"run {name} in {store}")

    def work() -> None:
        from flows.train import train as train_flow

        train_flow(str(opened.root), name, config)

    _in_session(opened, name, config, None, work)
    return accuracy_by_iteration(store, name), name


def _rerun(
    store: Path,
    run: str | None,
    stage: "RerunStage",
    iteration: int,
    into: str | None,
    overrides: list[str],
) -> None:
    """Runs a stage again into a branch and says what came of it."""
    from flows.report import accuracy_by_iteration, accuracy_table, changes_of_advantages
    from flows.rerun import find_policies
    from flows.sessions import branch_config, branch_name, check_inputs
    from storage import RunParent, Store

    opened = Store.open(store)
    source = _chosen_run(opened, run)
    old, config = branch_config(opened, source, stage, overrides)
    parent = RunParent(run=source, iteration=iteration, stage=stage, overrides=overrides)
    in_place = stage == "evaluation" and config == old and into is None
    name = source if in_place else into or branch_name(opened, source, parent, config)
    if name == source and not in_place:
        raise ConfigError(f"--into {into} is the run itself: name another one")
    find_policies(opened, source, iteration, stage)
    check_inputs(config)
    doing = f"evaluation of {source}" if stage == "evaluation" else f"rerun of {stage} in {source}"
    typer.echo(f"{doing}, iteration {iteration}, into {name}")

    def work() -> None:
        from flows.rerun import rerun as rerun_flow

        rerun_flow(str(opened.root), source, name, iteration, stage, config)

    _in_session(opened, name, config, None if in_place else parent, work)
    record = opened.run_record(name)
    done = max(record.iterations_done, iteration)
    opened.save_run(record.model_copy(update={"iterations_done": done}))
    if stage == "evaluation":
        accuracy = accuracy_by_iteration(store, name)
        Console().print(accuracy_table(accuracy))
    else:
        if stage != "optimisation":
            typer.echo(changes_of_advantages(store, source, name, iteration))
        typer.echo(f"before      {store / f'run={source}'}")
        typer.echo(f"after       {store / f'run={name}'}")
        table = "updates" if stage == "optimisation" else "advantages"
        typer.echo(f"Look: {Path(sys.argv[0])} show {table} --store {store} --run {name}")


def _in_session(
    store: "Store",
    run: str,
    config: "RunConfig",
    parent: "RunParent | None",
    work: "Callable[[], None]",
) -> None:
    """Does the work of a flow with progress, record and lock around it."""
    import signal

    from flows.progress import Display
    from flows.sessions import session, start_prefect

    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        with (
            session(store, run, config, parent=parent),
            Display(Console(), store, config.iterations) as display,
        ):
            start_prefect()
            work()
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted: the same command continues run {run}", err=True)
        raise typer.Exit(130) from error
    typer.echo(f"{display.computed} stage runs computed, {display.reused} found stored")


def _chosen_run(store: "Store", run: str | None) -> str:
    """Returns the named run, or the one that was changed last."""
    if run is not None:
        return store.run_record(run).name
    records = store.runs()
    if not records:
        raise StoreError(f"no run in {store.root}: `turnledger train` makes one")
    return max(records, key=lambda record: record.updated_at).name


def _as_toml(config: "RunConfig") -> str:
    """Writes settings as TOML; a null is a comment, as TOML has none."""
    import json

    lines = []
    values = config.model_dump(mode="json")
    scalars = {key: value for key, value in values.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    for name, section in {"": scalars, **sections}.items():
        lines += [f"\n[{name}]"] if name else []
        for key, value in section.items():
            lines.append(f"# {key} is unset" if value is None else f"{key} = {json.dumps(value)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
