"""A study: many trainings that are compared, each a run of the store, as many at once as fit.

Every training is the command `turnledger train` in a process of its own, so a study that was killed
goes on where it was, and whoever doubts one of its runs opens it as any other. Trainings of a task
and seed share their cold start through the ledger.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import polars as pl
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.futures import as_completed

from flows.binding import Place
from flows.plan import plan_training
from flows.report import accuracy_by_iteration
from flows.trainers import OnFact, Trainers
from schemas.config import RunConfig
from schemas.errors import StoreError
from schemas.study import Piece, StudyConfig
from stages.study import summarise_trainings
from stages.study.curves import CURVES_SCHEMA
from stages.study.differences import choose_rates
from storage import Store, open_table, scan_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training of a study."""

    run: str
    """Name of its run."""
    task: str
    arm: str
    seed: int
    learning_rate: float
    config: RunConfig


def training_of(
    study: StudyConfig, task: str, arm: str, seed: int, learning_rate: float
) -> Training:
    """Returns one training; pieces that ask for the same one share its run."""
    return Training(
        run=f"{study.name}-{task}-{arm}-{learning_rate:g}-s{seed}",
        task=task,
        arm=arm,
        seed=seed,
        learning_rate=learning_rate,
        config=study.config(task, arm, seed, learning_rate),
    )


def tuning_trainings(study: StudyConfig, pieces: Sequence[str]) -> list[Training]:
    """Returns the trainings that the learning rates of some pieces are chosen by."""
    named = [study.tuned(arm) for name in pieces for arm in arms_of(study.pieces[name])]
    return [
        training_of(study, study.tuning.task, arm, seed, rate)
        for seed in study.tuning.seeds
        for arm in dict.fromkeys(named)
        for rate in study.tuning.learning_rates
    ]


def piece_trainings(study: StudyConfig, piece: str, rates: Mapping[str, float]) -> list[Training]:
    """Returns the trainings of a piece, seed by seed, so that whole comparisons come early.

    Args:
        study: The study.
        piece: Name of the piece.
        rates: Arm to its learning rate, for arms with a rate of their own.
    """
    chosen = study.pieces[piece]
    return [
        training_of(study, task, arm, seed, rates[study.tuned(arm)])
        for seed in chosen.seeds
        for task in chosen.tasks
        for arm in arms_of(chosen)
    ]


def arms_of(piece: Piece) -> list[str]:
    """Returns the arms of a piece, the reference first."""
    return list(dict.fromkeys([piece.reference, *piece.arms]))


def starts_of(study: StudyConfig, trainings: Sequence[Training]) -> list[Training]:
    """Returns one training for each task and seed, up to its cold start.

    Trained before the others, which find its results; at the same time each would make its own.
    """
    first = {(one.task, one.seed): one for one in reversed(trainings)}
    return [
        Training(
            run=f"{study.name}-{one.task}-start-s{one.seed}",
            task=one.task,
            arm="start",
            seed=one.seed,
            learning_rate=one.learning_rate,
            config=one.config.model_copy(update={"iterations": 0}),
        )
        for one in first.values()
    ]


def is_trained(store: Store, one: Training) -> bool:
    """Says whether every result of a training is stored, by the code and settings of today."""
    if (
        not store.has_run(one.run)
        or store.run_record(one.run).iterations_done < one.config.iterations
    ):
        return False
    place = Place(store=store.url, run=one.run, iteration=0, verify=one.config.compute.verify)
    return plan_training(place, one.config).filter(pl.col("action") != "hit").is_empty()


@flow(name="study", persist_result=False)
def train_all(store: str, batches: list[list[Training]], on_fact: OnFact) -> None:
    """Trains runs, as many at once as the flow's task runner has threads.

    Args:
        store: Folder or address of an existing store.
        batches: What to train; one batch is done before the next begins.
        on_fact: Told what each training does; called from several threads.

    Raises:
        TurnledgerError: If a training fails; those that still run are ended, and go on next time.
    """
    with get_client(sync_client=True) as client:
        server = str(client.api_url)
    # Closed before the flow ends, which would wait for trainings that run.
    with closing(Trainers(store, server, on_fact)) as trainers:
        one_training = task(
            name="training",
            task_run_name="{run}",
            cache_policy=NO_CACHE,
            persist_result=False,
            # One that the machine failed goes on where it was.
            retries=1,
        )(trainers.train)
        for batch in batches:
            futures = [one_training.submit(one.run, one.config) for one in batch]
            for future in as_completed([*futures]):
                future.result()


def curves_of(store: Store, trainings: Sequence[Training]) -> pl.DataFrame:
    """Returns the learning curves of trainings; columns of `stages.study.curves.CURVES_SCHEMA`.

    Raises:
        StoreError: If one of them is not trained to its end, or damaged.
    """
    parts = [pl.DataFrame(schema=CURVES_SCHEMA)]
    for one in trainings:
        if not store.has_run(one.run):
            raise StoreError(f"{store.url} has no run {one.run}: train the study's piece first")
        parts.append(_curve(store, one))
    return pl.concat(parts)


def _curve(store: Store, one: Training) -> pl.DataFrame:
    with scan_errors(f"turns of {one.run}"):
        sampled = (
            open_table(store.url, one.run, "turns")
            .group_by("iteration")
            .agg(sampled=pl.col("token_ids").list.len().cast(pl.Int64).sum())
            .collect()
        )
    accuracy = accuracy_by_iteration(store.url, one.run).sort("iteration")
    if accuracy["iteration"].max() != one.config.iterations:
        raise StoreError(
            f"run {one.run} is not trained to its end: the same `turnledger study` goes on with it"
        )
    return (
        accuracy.join_where(
            sampled.rename({"iteration": "up_to"}), pl.col("up_to") <= pl.col("iteration")
        )
        .group_by("iteration")
        .agg(tokens=pl.col("sampled").sum())
        .join(accuracy, on="iteration", how="right", maintain_order="right")
        .select(
            task=pl.lit(one.task),
            arm=pl.lit(one.arm),
            seed=pl.lit(one.seed, pl.Int64),
            iteration="iteration",
            tokens=pl.col("tokens").fill_null(0),
            accuracy="avg_at_k",
            failed_calls="failed_tool_call_share",
            tool_calls="tool_calls",
            turns="turns",
        )
    )


def measured_updates(store: Store, trainings: Sequence[Training]) -> list[Place]:
    """Returns the updates whose gradient noise is measured: the first and the last of each.

    In the first all arms of a task and seed have the same policy and trajectories.
    """
    return [
        Place(store=store.url, run=one.run, iteration=iteration, verify=one.config.compute.verify)
        for one in trainings
        for iteration in sorted({1, one.config.iterations})
    ]


def tuned_rates(store: Store, trainings: Sequence[Training]) -> pl.DataFrame:
    """Returns what the tuning found: `arm`, `learning_rate`, `area`, and `chosen`.

    Args:
        store: Where the trainings are.
        trainings: As `tuning_trainings` returns them, all trained.
    """
    parts = []
    for arm in dict.fromkeys(one.arm for one in trainings):
        own = [one for one in trainings if one.arm == arm]
        # In place of the arm, whose rates are compared at equal budgets with each other only: what
        # is chosen for one arm does not depend on which others are tuned.
        named = pl.concat(
            curves_of(store, [one]).with_columns(arm=pl.lit(str(one.learning_rate))) for one in own
        )
        figures = summarise_trainings(named, {})
        parts.append(figures.with_columns(arm=pl.lit(arm), learning_rate=pl.col("arm").cast(float)))
    tuned = pl.concat(parts)
    chosen = choose_rates(tuned)
    return (
        tuned.group_by("arm", "learning_rate", maintain_order=True)
        .agg(pl.col("area").mean(), pl.col("final").mean(), seeds=pl.len())
        .with_columns(
            chosen=pl.col("learning_rate")
            == pl.col("arm").replace_strict(chosen, return_dtype=pl.Float64)
        )
        .sort("arm", "learning_rate")
    )


def rates_in(tuned: pl.DataFrame) -> dict[str, float]:
    """Returns the learning rate of each arm that was tuned."""
    return dict(tuned.filter("chosen").select("arm", "learning_rate").iter_rows())
