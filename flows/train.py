"""The training flow: cold start, then iterations of rollout, credit and optimisation.

The flow only names what depends on what; the tasks decide whether to compute. Within a rollout
the chains of the shards share nothing, so one shard executes code while another generates.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.binding import Place, open_store
from flows.task_inputs import Sampling, Shard, Trajectories
from flows.tasks import (
    advantages_task,
    cold_start_task,
    evaluation_task,
    execution_task,
    optimisation_task,
    problems_task,
    prompts_task,
    rollout_task,
    similarity_task,
    turn_rewards_task,
)
from schemas.config import ProblemsConfig, RunConfig
from schemas.errors import ProblemFileError
from schemas.refs import CheckpointRef, TableRef
from stages.randomness import derive_seed

SHARDS_AT_ONCE: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=8)
"""Tasks that wait for their inputs hold a thread, so there are more threads than cores."""


@flow(name="train", task_runner=SHARDS_AT_ONCE, persist_result=False)
def train(store: str, run: str, config: RunConfig) -> CheckpointRef:
    """Trains one run from the cold start to its last iteration.

    Every stage run that is stored already is verified and used, so a run that was interrupted
    continues after its last finished stage.

    Args:
        store: Path of an existing store.
        run: Name of the run.
        config: Everything that decides the result.

    Returns:
        Reference of the last policy.
    """
    problems = load_problem_sets(Place(store=store, run=run, iteration=0), config)
    first = start(Place(store=store, run=run, iteration=0), config)
    policy = first
    evaluate_policy(Place(store=store, run=run, iteration=0), policy, first, problems, config)
    for iteration in range(1, config.iterations + 1):
        place = Place(store=store, run=run, iteration=iteration)
        rolled_out = ask_and_roll_out(place, policy, first, problems, config)
        policy = learn(place, rolled_out, policy, config)
        if is_evaluated(iteration, config):
            evaluate_policy(place, policy, first, problems, config)
        record = open_store(store).run_record(run)
        done = max(record.iterations_done, iteration)
        open_store(store).save_run(
            record.model_copy(update={"iterations_done": done, "status": "running"})
        )
    return policy


def is_evaluated(iteration: int, config: RunConfig) -> bool:
    """Says whether the policy of an iteration is evaluated."""
    return iteration % config.evaluation.every == 0 or iteration in (0, config.iterations)


def load_problem_sets(first: Place, config: RunConfig) -> dict[str, TableRef | None]:
    """Returns the stored problem sets by split; null stands for the embedded families."""
    sets: dict[str, TableRef | None] = {"train": None, "evaluation": None}
    held_out = config.problems.model_copy(update={"path": config.evaluation.path})
    wanted: list[tuple[str, ProblemsConfig]] = [
        ("train", config.problems),
        ("evaluation", held_out),
    ]
    for split, section in wanted:
        if section.path is not None:
            place = first.model_copy(update={"split": split})
            sets[split] = problems_task(place, section)
    refuse_shared_problems(first.store, sets)
    return sets


def refuse_shared_problems(store: str, sets: dict[str, TableRef | None]) -> None:
    """Refuses to evaluate on problems that are trained on, by their text.

    Raises:
        ProblemFileError: If the sets share a problem; the first is named.
    """
    train, held_out = sets["train"], sets["evaluation"]
    if train is None or held_out is None:
        return
    words = pl.col("problem").str.to_lowercase().str.strip_chars().str.replace_all(r"\s+", " ")
    asked, kept = (
        open_store(store).scan(ref).with_columns(words=words) for ref in (train, held_out)
    )
    shared = kept.join(asked, on="words", how="semi").select("task_id").collect()
    if len(shared):
        raise ProblemFileError(
            f"{len(shared)} held-out problems are training problems too, first "
            f"{shared['task_id'][0]}: take them out of one of the files"
        )


def start(place: Place, config: RunConfig) -> CheckpointRef:
    """Returns the policy of the cold start."""
    checkpoint = cold_start_task(place, config).checkpoint
    if checkpoint is None:
        raise RuntimeError("the cold start stored no policy")
    return checkpoint


def ask_and_roll_out(
    place: Place,
    policy: CheckpointRef,
    first: CheckpointRef,
    problems: dict[str, TableRef | None],
    config: RunConfig,
) -> Trajectories:
    """Makes prompts and rolls them out; `first` is the policy whose tokenizer all share."""
    prompts = prompts_task(place, problems[place.split], first, config)
    return roll_out(place, prompts, policy, first, config)


def roll_out(
    place: Place,
    prompts: TableRef,
    policy: CheckpointRef,
    first: CheckpointRef,
    config: RunConfig,
) -> Trajectories:
    """Alternates rollout and execution, turn by turn, each shard at its own pace.

    All tasks are submitted at once; each waits for the tables it needs and for nothing else.
    """
    sampling = config.rollout
    if place.split == "evaluation":
        asked = config.evaluation
        sampling = sampling.model_copy(
            update={
                "samples": asked.samples,
                "shards": asked.shards,
                "temperature": asked.temperature,
            }
        )
    shards = min(sampling.shards, prompts.rows)
    # Evaluations share their seed, so that policies are compared on the same luck.
    luck = place.iteration if place.split == "train" else 0
    seed = derive_seed(config.seed, "rollout", place.split, luck)
    # Futures stand where tables are expected: Prefect waits for them and hands the tables over.
    turns: list[list[Any]] = [[] for _ in range(shards)]
    executions: list[list[Any]] = [[] for _ in range(shards)]
    for turn in range(sampling.max_turns):
        for index in range(shards):
            shard = Shard(index=index, of=shards)
            turns[index].append(
                rollout_task.submit(
                    place,
                    shard,
                    turn,
                    prompts,
                    list(turns[index]),
                    list(executions[index]),
                    policy,
                    Sampling(config=sampling, compute=config.compute, seed=seed),
                )
            )
            if turn < sampling.max_turns - 1:
                executions[index].append(
                    execution_task.submit(
                        place, shard, turn, turns[index][-1], first, config.execution
                    )
                )
    sampled = [future for chain in turns for future in chain]
    executed = [future for chain in executions for future in chain]
    tables = results_of(sampled + executed)
    return Trajectories(
        prompts=prompts,
        turns=tuple(tables[: len(sampled)]),
        executions=tuple(tables[len(sampled) :]),
    )


def learn(
    place: Place, rolled_out: Trajectories, policy: CheckpointRef, config: RunConfig
) -> CheckpointRef:
    """Scores, shapes and credits the turns, and updates the policy."""
    rewards = turn_rewards_task(place, rolled_out, config.turn_rewards)
    shaped = similarity_task(place, rolled_out, rewards, config.similarity)
    advantages = advantages_task(place, shaped, config.advantages)
    return update_policy(place, rolled_out, advantages, policy, config)


def update_policy(
    place: Place,
    rolled_out: Trajectories,
    advantages: TableRef,
    policy: CheckpointRef,
    config: RunConfig,
) -> CheckpointRef:
    """Returns the policy after the optimiser steps of an iteration."""
    seed = derive_seed(config.seed, "optimisation", place.iteration)
    output = optimisation_task(
        place, rolled_out, advantages, policy, config.optimisation, config.compute, seed
    )
    if output.checkpoint is None:
        raise RuntimeError("the optimisation stored no policy")
    return output.checkpoint


def evaluate_policy(
    place: Place,
    policy: CheckpointRef,
    first: CheckpointRef,
    problems: dict[str, TableRef | None],
    config: RunConfig,
) -> TableRef:
    """Evaluates a policy on held-out problems."""
    place = place.model_copy(update={"split": "evaluation"})
    rolled_out = ask_and_roll_out(place, policy, first, problems, config)
    return evaluation_task(place, rolled_out, config.evaluation, config.turn_rewards.grading_time_s)


def results_of(futures: Sequence[PrefectFuture[Any]]) -> list[Any]:
    """Waits for all and returns their results, or raises what the first failing task raised.

    A task whose input failed never ran; it says nothing about the cause and is passed over.
    """
    wait(list(futures))
    for future in futures:
        if future.state.is_failed() or future.state.is_crashed():
            future.result()
    return [future.result() for future in futures]
