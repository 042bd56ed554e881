"""Commands that train: train, quickstart."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_options import (
    DEFAULT_STORE,
    ConfigOption,
    JsonOption,
    QuietOption,
    SetOption,
    StoreOption,
    as_toml,
    read_config,
    settings_of,
)
from schemas.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from flows.reporters import Reporter
    from schemas.config import RunConfig
    from storage import RunParent, Store

REFRESHED_STAGES = typer.Option(
    "--refresh", help="Stage to compute even if its results are stored. Repeatable."
)


def train(
    store: StoreOption = DEFAULT_STORE,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; left out, it is named by its settings."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    refresh: Annotated[list[str] | None, REFRESHED_STAGES] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Prints all settings as TOML and stops.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Trains a run, or continues it after its last finished stage.

    The sections of the config are problems, policy, cold_start, rollout, execution,
    turn_rewards, similarity, advantages, optimisation, evaluation, vllm and compute, beside the
    keys seed and iterations. `--show-config` lists every setting with its value. A run that exists
    keeps its settings; a branch goes on after the iteration that was rerun.

    Example: turnledger train --run first --set iterations=5 --set advantages.estimator=grpo
    """
    from flows.asked import existing_store
    from flows.reporters import reporter

    with reporter(quiet=quiet, as_json=as_json) as told:
        settings = settings_of(existing_store(store), run, config, overrides)
        if show_config:
            typer.echo(as_toml(settings))
            return
        _train(store, run, settings, _known_stages(refresh or []), told)


def quickstart(
    store: StoreOption = DEFAULT_STORE,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Trains the embedded tiny policy from nothing, in a few minutes on two cores.

    Prints held-out accuracy by iteration as a table and draws it, then says what to try next.
    Run again, it finds everything stored.
    """
    from flows.reporters import reporter

    with reporter(quiet=quiet, as_json=as_json) as told:
        _quickstart(store, overrides, told)


def _quickstart(store: str, overrides: list[str] | None, told: "Reporter") -> None:
    started = time.perf_counter()
    settings = read_config(None, overrides)
    accuracy, run = _train(store, None, settings, (), told)
    from flows.report import accuracy_table, draw_accuracy
    from storage.layout import PICTURE_FILE

    told.show(accuracy_table(accuracy))
    is_remote = "://" in store
    picture = Path(f"{run}.png") if is_remote else Path(store) / f"run={run}" / PICTURE_FILE
    draw_accuracy(accuracy, f"{run}: GTPO from the cold start", picture)
    last = settings.iterations
    command = Path(sys.argv[0])
    place = f"--store {shlex.quote(store)} --run {run}"
    read = f"storage.open_table('{store}', '{run}', 'turns').collect()"
    told.say(
        f"""picture     {picture}
tables      {store}/run={run}/iteration=*/split=*/stage=*/
Look at a table:
  {command} show advantages {place} --iteration {last}
Ask what a change would run, and why:
  {command} plan advantages {place} --iteration {last} --set gamma=0.95
Change one stage; its rollouts are taken over, only what depends on it is computed:
  {command} rerun advantages {place} --iteration {last} --set gamma=0.95
Open any table of the run in Polars:
  {sys.executable} -c "import storage; print({read})"
"""
    )
    first, final = accuracy["avg_at_k"][0], accuracy["avg_at_k"][-1]
    where = store if is_remote else Path(store).absolute()
    told.say(
        f"quickstart: avg@{settings.evaluation.samples} {first:.2f} -> {final:.2f} "
        f"in {time.perf_counter() - started:.0f} s, store {where}"
    )


def _known_stages(stages: list[str]) -> tuple[str, ...]:
    from flows.catalogue import STAGES

    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"stage {stage} is unknown; stages: {', '.join(STAGES)}")
    return tuple(stages)


def _train(
    store: str,
    run: str | None,
    config: "RunConfig",
    refresh: tuple[str, ...],
    told: "Reporter",
) -> "tuple[pl.DataFrame, str]":
    """Trains and returns the accuracy by iteration and the name of the run."""
    from flows.asked import checked_training
    from flows.binding import Place
    from flows.report import accuracy_by_iteration

    opened, name = checked_training(store, run, config)
    told.say(f"{'run' if opened.has_run(name) else 'new run'} {name} in {store}")

    def work() -> None:
        from flows.prefect_server import has_prefect_server, prefect_started
        from flows.stored_training import go_through_stored
        from flows.train import train as train_flow

        place = Place(
            store=opened.url, run=name, iteration=0, verify=config.compute.verify, refresh=refresh
        )
        if not has_prefect_server() and go_through_stored(place, config):
            return
        with prefect_started():
            train_flow(opened.url, name, config, refresh)

    in_session(opened, name, config, None, work, told)
    return accuracy_by_iteration(store, name), name


def in_session(
    store: "Store",
    run: str,
    config: "RunConfig",
    parent: "RunParent | None",
    work: Callable[[], None],
    told: "Reporter",
    *,
    in_place: bool = False,
) -> None:
    """Does the work of a flow with progress, record and lock around it.

    Args:
        store: Where the run is.
        run: Name of the run.
        config: Settings of the flow.
        parent: Where a branch comes from, whose stage is run again; null for a training.
        work: What is done.
        told: Who tells what happens.
        in_place: Whether the work adds to a run that exists and leaves its state as it is.

    Raises:
        TurnledgerError: If the run cannot be used, or the work fails.
    """
    from flows.asked import holding
    from flows.events import listening
    from flows.interrupts import (
        END_TIME_S,
        end_at_second_interrupt,
        end_within,
        told_as_ctrl_c,
    )
    from flows.prefect_server import check_prefect_home

    check_prefect_home()
    is_told = end_at_second_interrupt()
    try:
        with (
            holding(store, run, config, parent, in_place=in_place),
            told.of_run(store, run, None if parent else config, _begin(store, run)),
            listening(told.on_event),
            told_as_ctrl_c(),
        ):
            work()
    except KeyboardInterrupt as error:
        is_told.set()
        typer.echo(f"interrupted: the same command continues run {run}", err=True)
        end_within(END_TIME_S, 130)
        raise typer.Exit(130) from error
    told.say(f"{told.computed} stage runs computed, {told.reused} found stored")


def _begin(store: "Store", run: str) -> int:
    """Returns the iteration that a training of a run begins after."""
    parent = store.run_record(run).parent
    return 0 if parent is None else parent.iteration
