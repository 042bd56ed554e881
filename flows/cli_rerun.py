"""Commands that change one thing: rerun, evaluate, and plan, which only asks."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_options import (
    DEFAULT_STORE,
    ConfigOption,
    IntoOption,
    JsonOption,
    OnlyOption,
    QuietOption,
    RunOption,
    SetOption,
    StoreOption,
    UntilOption,
    chosen_run,
    last_stage,
    settings_of,
    write_frame,
)
from flows.cli_train import in_session
from schemas.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from flows.asked import AskedRerun
    from flows.reporters import Reporter

IterationOption = Annotated[int, typer.Option("--iteration", min=0, help="Iteration to branch.")]


def rerun(  # noqa: PLR0913, PLR0917, options of the command line
    stage: Annotated[
        str,
        typer.Argument(
            help="First stage to compute: prompts, rollout, execution, turn_rewards, "
            "similarity, advantages, optimisation or evaluation."
        ),
    ],
    iteration: IterationOption,
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    into: IntoOption = None,
    overrides: SetOption = None,
    only: OnlyOption = None,
    until: UntilOption = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Compute the stage even if its result is stored.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Computes one stage of an iteration again, and what depends on it, into a branch.

    What stands before the stage is taken over as stored; the original run stays as it is. A key
    without a section belongs to the stage: `--set gamma=0.95` is advantages.gamma here. Up to the
    advantages no model is opened and no code is executed.

    Example: turnledger rerun turn_rewards --from-run first --iteration 3 --until advantages
    """
    from flows.reporters import reporter

    with reporter(quiet=quiet, as_json=as_json) as told:
        asked = _asked(stage, store, run, iteration, into, overrides, until, only)
        _rerun(asked, told, refresh=refresh)


def evaluate(
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, help="Policy to evaluate; left out, the last one."),
    ] = None,
    into: IntoOption = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluates a stored policy and prints its accuracy.

    With other settings than the run's, the result goes into a branch.

    Example: turnledger evaluate --run first --set samples=16 --set path=problems.jsonl
    """
    from flows.reporters import reporter
    from storage import Store

    with reporter(quiet=quiet, as_json=as_json) as told:
        if iteration is None:
            opened = Store.open(store)
            iteration = opened.run_record(chosen_run(opened, run)).iterations_done
        _rerun(_asked("evaluation", store, run, iteration, into, overrides, None, None), told)


def plan(  # noqa: PLR0913, PLR0917, options of the command line
    stage: Annotated[
        str | None, typer.Argument(help="Plans a rerun of this stage; left out, a training.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, help="Iteration to rerun; of a training, to show."),
    ] = None,
    into: IntoOption = None,
    only: OnlyOption = None,
    until: UntilOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="A line for each shard and turn, also for hits.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option("--to", help="Parquet file to write the whole plan to.")
    ] = None,
) -> None:
    """Says what `train`, or a rerun of STAGE, would find stored, what it would run, and why.

    Nothing is run or written. Stage runs of several shards and turns share a line where they
    agree. `depends` is said of a stage whose input would be made anew: should that come out as
    it was, its stored result serves.

    Example: turnledger plan advantages --run first --iteration 3 --set gamma=0.95
    """
    from flows.plan_report import plan_lines

    if stage is None:
        if only is not None or until is not None:
            raise ConfigError("--only, --downstream and --until belong to the plan of a rerun")
        planned = _plan_training(store, run, config, overrides)
        if iteration is not None:
            of_all = sorted(planned["iteration"].unique())
            if iteration not in of_all:
                raise ConfigError(
                    f"iteration {iteration} is not in the plan, which goes from {of_all[0]} to "
                    f"{of_all[-1]}: a branch begins after its iteration, and `--set iterations=N` "
                    "plans further"
                )
            planned = planned.filter(iteration=iteration)
    else:
        if iteration is None:
            raise ConfigError("the plan of a rerun needs --iteration")
        if config is not None:
            raise ConfigError("a rerun takes the settings of its run: --set changes some of them")
        planned = _plan_rerun(_asked(stage, store, run, iteration, into, overrides, until, only))
    if to is not None:
        write_frame(planned, to)
    for line in plan_lines(planned, everything=everything):
        typer.echo(line)


def _asked(
    stage: str,
    store: str,
    run: str | None,
    iteration: int,
    into: str | None,
    overrides: list[str] | None,
    until: str | None,
    only: bool | None,
) -> "AskedRerun":
    from flows.asked import AskedRerun
    from storage import Store

    opened = Store.open(store)
    return AskedRerun.of(
        opened,
        chosen_run(opened, run),
        stage=stage,
        iteration=iteration,
        until=last_stage(stage, until, only),
        into=into,
        overrides=overrides or [],
    )


def _plan_training(
    store: str, run: str | None, config: Path | None, overrides: list[str] | None
) -> "pl.DataFrame":
    from flows.binding import Place
    from flows.failed_branches import refuse_failed_branch
    from flows.plan import plan_training
    from flows.sessions import (
        default_run_name,
        refuse_imported,
        refuse_left_over,
        refuse_other_settings,
    )
    from storage import Store

    opened = Store.open(store)
    name = run
    if name is None and config is None and not overrides:
        name = chosen_run(opened, None)
    settings = settings_of(opened, name, config, overrides)
    name = name or default_run_name(settings)
    refuse_left_over(opened, name)
    refuse_imported(opened, name)
    refuse_failed_branch(opened, name)
    if opened.has_run(name):
        if opened.has_results(name):
            refuse_other_settings(opened, opened.run_record(name), settings)
        typer.echo(f"plan of run {name} in {store}")
    else:
        known = ", ".join(opened.run_names()) or "none"
        typer.echo(f"plan of a new run {name} in {store}, which holds {known}")
    place = Place(store=opened.url, run=name, iteration=0, verify=settings.compute.verify)
    return plan_training(place, settings)


def _plan_rerun(asked: "AskedRerun") -> "pl.DataFrame":
    from flows.binding import Place
    from flows.plan import plan_rerun
    from flows.sessions import refuse_left_over

    into = asked.target()
    refuse_left_over(asked.store, into)
    told = f"rerun of {asked.scope.first} in {asked.source}, iteration {asked.iteration}"
    typer.echo(f"plan of a {told}, into {into}")
    old = Place(
        store=asked.store.url,
        run=asked.source,
        iteration=asked.iteration,
        verify=asked.config.compute.verify,
    )
    return plan_rerun(old, old.model_copy(update={"run": into}), asked.scope, asked.config)


def _rerun(asked: "AskedRerun", told: "Reporter", *, refresh: bool = False) -> None:
    """Runs stages again into a branch and says what came of it."""
    asked.check()
    asked.in_target(lambda name: _rerun_into(name, asked, told, refresh=refresh))


def _rerun_into(name: str, asked: "AskedRerun", told: "Reporter", *, refresh: bool) -> None:
    source, scope = asked.source, asked.scope
    doing = "evaluation of" if scope.first == "evaluation" else f"rerun of {scope.first} in"
    told.say(f"{doing} {source}, iteration {asked.iteration}, into {name}")

    changes: list[dict[str, Any]] = []

    def work() -> None:
        from flows.prefect_server import prefect_started

        with prefect_started():
            changes[:] = asked.compute(name, refresh=refresh)

    in_session(asked.store, name, asked.config, asked.parent, work, told, in_place=asked.in_place)
    _tell_rerun(asked, name, changes, told)


def _tell_rerun(
    asked: "AskedRerun", name: str, changes: list[dict[str, Any]], told: "Reporter"
) -> None:
    """Says what a rerun changed, and where to look."""
    from flows.catalogue import STAGES
    from flows.report import accuracy_by_iteration, accuracy_table, changes_line

    url, scope = asked.store.url, asked.scope
    if scope.first == "evaluation":
        told.show(accuracy_table(accuracy_by_iteration(url, name)))
        return
    if changes:
        told.say(changes_line(changes[0], asked.iteration))
        counts = {name: changes[0][name] for name in ("turns", "changed", "flips")}
        told.facts("changes", {"iteration": asked.iteration, "source": asked.source, **counts})
    told.say(f"before      {url}/run={asked.source}")
    told.say(f"after       {url}/run={name}")
    is_credited = scope.computes("advantages")
    last = scope.last if scope.is_one_stage or scope.last != "evaluation" else "optimisation"
    table = "advantages" if is_credited else STAGES[last].tables[0]
    command = Path(sys.argv[0])
    place = f"--store {shlex.quote(url)}"
    told.say(f"Look: {command} show {table} {place} --run {name}")
    if is_credited and changes:
        told.say(f"Compare: {command} diff {asked.source} {name} {place}")
