"""Commands that change one thing: rerun, evaluate, and plan, which only asks."""

import shlex
import sys
from dataclasses import dataclass
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
from schemas.errors import ConfigError, TurnledgerError

if TYPE_CHECKING:
    import polars as pl

    from flows.binding import Place
    from flows.catalogue import Scope
    from flows.reporters import Reporter
    from schemas.config import RunConfig
    from storage import RunParent, Store

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


@dataclass(frozen=True, slots=True)
class _Rerun:
    """A rerun as asked for."""

    store: "Store"
    source: str
    into: str | None
    iteration: int
    scope: "Scope"
    overrides: list[str]
    old: "RunConfig"
    config: "RunConfig"

    @property
    def in_place(self) -> bool:
        """Whether an evaluation adds to its run, since it changes nothing."""
        return self.scope.first == "evaluation" and self.config == self.old and self.into is None


def _asked(
    stage: str,
    store: str,
    run: str | None,
    iteration: int,
    into: str | None,
    overrides: list[str] | None,
    until: str | None,
    only: bool | None,
) -> _Rerun:
    from flows.catalogue import Scope, check_stage
    from flows.sessions import branch_config
    from storage import Store

    scope = Scope.of(check_stage(stage), last_stage(stage, until, only))
    opened = Store.open(store)
    source = chosen_run(opened, run)
    changes = overrides or []
    old, config = branch_config(opened, source, scope, changes)
    return _Rerun(opened, source, into, iteration, scope, changes, old, config)


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


def _plan_rerun(asked: _Rerun) -> "pl.DataFrame":
    from flows.binding import Place
    from flows.plan import plan_rerun
    from flows.sessions import refuse_left_over

    into = _target(asked)
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


def _target(asked: _Rerun) -> str:
    """Returns the run that takes the results."""
    from flows.sessions import branch_name

    if asked.in_place:
        return asked.source
    if asked.into == asked.source:
        raise ConfigError(f"--into {asked.into} is the run itself: name another one")
    return asked.into or branch_name(asked.store, asked.source, _parent(asked), asked.config)


def _parent(asked: _Rerun) -> "RunParent":
    from flows.catalogue import ORDER
    from storage import RunParent

    until = None if asked.scope.last == ORDER[-1] else asked.scope.last
    return RunParent(
        run=asked.source,
        iteration=asked.iteration,
        stage=asked.scope.first,
        until=until,
        overrides=asked.overrides,
    )


def _rerun(asked: _Rerun, told: "Reporter", *, refresh: bool = False) -> None:
    """Runs stages again into a branch and says what came of it."""
    from flows.binding import Place
    from flows.failed_branches import note_refused_branch

    opened, source, scope = asked.store, asked.source, asked.scope
    is_evaluation = scope.first == "evaluation"
    in_place, parent, name = asked.in_place, _parent(asked), _target(asked)
    old = Place(store=opened.url, run=source, iteration=asked.iteration)
    try:
        _check(asked, old)
    except TurnledgerError as error:
        if asked.into is not None:
            note_refused_branch(opened, name, asked.config, parent, error)
        raise
    doing = "evaluation of" if is_evaluation else f"rerun of {scope.first} in"
    told.say(f"{doing} {source}, iteration {asked.iteration}, into {name}")

    changes: list[dict[str, Any]] = []

    def work() -> None:
        from flows.rerun import rerun as rerun_flow
        from flows.sessions import start_prefect
        from flows.train import note_iteration

        start_prefect()
        changes[:] = rerun_flow(
            *(opened.url, source, name, asked.iteration, scope.first),
            config=asked.config,
            until=parent.until,
            refresh=refresh,
        )
        if scope.needs("optimisation") and not in_place:  # then the branch holds the policy
            note_iteration(old.model_copy(update={"run": name}))

    in_session(opened, name, asked.config, parent, work, told, in_place=in_place)
    _tell_rerun(asked, name, changes, told)


def _check(asked: _Rerun, old: "Place") -> None:
    """Refuses a rerun that would fail later, before anything is started."""
    from flows.outside import PROBLEM_PATHS
    from flows.rerun import check_source, reads_problems
    from flows.sessions import check_inputs

    scope = asked.scope
    check_source(asked.store, old, scope, asked.config)
    reads = PROBLEM_PATHS if reads_problems(old, scope, asked.config) else ()
    check_inputs(
        asked.config,
        old.at(0),
        reads=reads,
        samples=scope.samples,
        runs_code=scope.runs_code,
        shapes=scope.computes("similarity"),
    )


def _tell_rerun(asked: _Rerun, name: str, changes: list[dict[str, Any]], told: "Reporter") -> None:
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
