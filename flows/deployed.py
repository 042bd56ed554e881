"""Flows to deploy: what the commands do, session and checks included, for Prefect to start.

`prefect.yaml` and `turnledger serve` make deployments of them. Their parameters are the settings
themselves, so that Prefect's form shows every setting and its server refuses impossible values
before anything is started.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.asked import AskedRerun, checked_training, holding
from flows.cli_options import DEFAULT_STORE, chosen_run
from flows.nightly import NIGHTS, publish_idle_night, publish_night, tonight
from flows.report import accuracy_line, changes_line
from flows.run_logs import outlive_reader
from schemas.config import RunConfig
from storage import Store

DEFAULTS = RunConfig()


@flow(name="train-session", persist_result=False)
def train(
    store: str = DEFAULT_STORE, run: str | None = None, config: RunConfig = DEFAULTS
) -> State[None]:
    """Trains a run, or continues it after its last finished stage.

    Args:
        store: Folder of the store, or s3://bucket/prefix.
        run: Name of the run; left out, it is named by its settings.
        config: Settings of the run.

    Raises:
        TurnledgerError: If the run cannot be used, or the training fails.
    """
    outlive_reader()
    opened, name = checked_training(store, run, config)
    _train(opened, name, config)
    return Completed(message=accuracy_line(opened.url, name))


def _train(store: Store, run: str, config: RunConfig) -> None:
    from flows.train import train as train_flow  # and torch with it: seconds that few runs need

    with holding(store, run, config):
        train_flow(store.url, run, config)


@flow(name="evaluate-session", persist_result=False)
def evaluate(
    store: str = DEFAULT_STORE,
    run: str | None = None,
    iteration: int | None = None,
    overrides: tuple[str, ...] = (),
    into: str | None = None,
) -> State[None]:
    """Evaluates a stored policy; with other settings than the run's, into a branch.

    Args:
        store: Folder of the store, or s3://bucket/prefix.
        run: Name of the run; left out, the run that was changed last.
        iteration: Policy to evaluate; left out, the last one.
        overrides: Changed settings, such as `samples=16`.
        into: Name of the branch; left out, the next free one.

    Raises:
        TurnledgerError: If there is no such run or policy, or the evaluation fails.
    """
    outlive_reader()
    opened = Store.open(store)
    source = chosen_run(opened, run)
    if iteration is None:
        iteration = opened.run_record(source).iterations_done
    asked = AskedRerun.of(
        opened, source, stage="evaluation", iteration=iteration, into=into, overrides=overrides
    )
    name, _ = _rerun(asked)
    return Completed(message=accuracy_line(opened.url, name))


@flow(name="rerun-session", persist_result=False)
def rerun(
    stage: str,
    iteration: int,
    store: str = DEFAULT_STORE,
    run: str | None = None,
    overrides: tuple[str, ...] = (),
    until: str | None = None,
    into: str | None = None,
    refresh: bool = False,
) -> State[None]:
    """Computes one stage of an iteration again, and what depends on it, into a branch.

    Args:
        stage: First stage to compute, such as `turn_rewards`.
        iteration: Iteration to branch.
        store: Folder of the store, or s3://bucket/prefix.
        run: Name of the run; left out, the run that was changed last.
        overrides: Changed settings, such as `gamma=0.95`.
        until: Last stage to compute; left out, all that depend on the first.
        into: Name of the branch; left out, the next free one.
        refresh: Whether to compute the stage even if its result is stored.

    Raises:
        TurnledgerError: If there is nothing to rerun, or it fails.
    """
    outlive_reader()
    opened = Store.open(store)
    asked = AskedRerun.of(
        opened,
        chosen_run(opened, run),
        stage=stage,
        iteration=iteration,
        until=until,
        into=into,
        overrides=overrides,
    )
    name, changes = _rerun(asked, refresh=refresh)
    said = f"; {changes_line(changes[0], iteration)}" if changes else ""
    return Completed(message=f"{stage} of {asked.source} rerun into {name}{said}")


def _rerun(asked: AskedRerun, *, refresh: bool = False) -> tuple[str, list[dict[str, Any]]]:
    asked.check()

    def work(name: str) -> tuple[str, list[dict[str, Any]]]:
        with holding(asked.store, name, asked.config, asked.parent, in_place=asked.in_place):
            return name, asked.compute(name, refresh=refresh)

    return asked.in_target(work)


@flow(name="nightly", persist_result=False)
def nightly(
    store: str = DEFAULT_STORE, series: str = NIGHTS, config: RunConfig = DEFAULTS
) -> State[None]:
    """Trains on the problems that arrived, from the last policy of the night before.

    Args:
        store: Folder of the store, or s3://bucket/prefix.
        series: First part of the names of its runs: `nightly-0001`, `nightly-0002`, ...
        config: Settings of every night; `problems.path` is the folder in which problems arrive.

    Raises:
        TurnledgerError: If the run of the night cannot be used, or the training fails.
    """
    outlive_reader()
    opened = Store.open(store, create=True)
    night = tonight(opened, series, config)
    if night.is_idle:
        publish_idle_night(opened, night)
        return Completed(name="NothingNew", message=night.told)
    checked_training(store, night.run, night.config)
    _train(opened, night.run, night.config)
    publish_night(opened, night)
    return Completed(message=accuracy_line(opened.url, night.run))
