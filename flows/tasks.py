"""The stages as Prefect tasks: references and a config in, references out.

A task reads its input tables, hands frames to the stage, and stores what comes back. Only the
execution of code is retried, and only when the machine failed it: all else fails the same way
again.
"""

from pathlib import Path
from typing import Any

import polars as pl
from prefect import task
from prefect.client.schemas.objects import State

from flows.binding import Place, Produced, freeze_code, open_store, run_stage
from flows.resources import dialogue_of, engine_of, executor_of, on_torch_thread
from flows.task_inputs import (
    OPTIONS,
    Sampling,
    Shard,
    Trajectories,
    foreign_ref,
    read_trajectories,
    read_turns,
    table_of,
    tell_progress,
)
from schemas.config import (
    AdvantagesConfig,
    ComputeConfig,
    EvaluationConfig,
    ExecutionConfig,
    OptimisationConfig,
    ProblemsConfig,
    RunConfig,
    SimilarityConfig,
    TurnRewardsConfig,
)
from schemas.errors import ExecutorError
from schemas.refs import CheckpointRef, Ref, StageOutput, TableRef
from schemas.tables import (
    Advantages,
    Problems,
    ShapedRewards,
    TurnRewards,
)
from stages.advantages import estimate_advantages
from stages.cold_start import start_policy
from stages.evaluation import evaluate
from stages.execution import execute_turns
from stages.optimisation import make_batch, optimise
from stages.prompts import embedded_problems, make_prompts, pick_problems
from stages.randomness import derive_seed
from stages.rollout import roll_out_turn
from stages.shards import take_shard
from stages.similarity import shape_rewards
from stages.turn_rewards import score_turns
from storage import load_problems
from storage.checkpoints import load_optimiser_state, load_policy, save_policy
from storage.digests import files_below
from storage.problem_sources import find_source

freeze_code()


def is_executor_failure(task: object, run: object, state: State[Any]) -> bool:
    """Says whether a task failed because the machine could not run code, which may pass."""
    return isinstance(state.data, ExecutorError)


@task(task_run_name="problems", **OPTIONS)
def problems_task(place: Place, config: ProblemsConfig) -> TableRef:
    """Loads a problem file into the store, with its rejected rows beside it."""
    path = config.path
    if path is None:
        raise ValueError("embedded problems are drawn by the prompts stage")
    source = find_source(Path(path))

    def compute() -> Produced:
        loaded = load_problems(
            path,
            problem_field=config.problem_field,
            answer_field=config.answer_field,
            id_field=config.id_field,
        )
        return Produced(tables={"problems": loaded.problems, "rejected_problems": loaded.rejected})

    output = run_stage(
        place,
        place.slot("problems"),
        # The name becomes part of the rows: their source, and their ids where they have none.
        config={**config.model_dump(exclude={"path", "levels"}), "source": source.name},
        inputs={"file": foreign_ref(path, source.files)},
        compute=compute,
    )
    return output.tables["problems"]


@task(task_run_name="cold start", **OPTIONS)
def cold_start_task(place: Place, config: RunConfig) -> StageOutput:
    """Makes the first policy: embedded or given, started on demonstrations."""
    slot = place.slot("cold_start")
    seed = derive_seed(config.seed, "cold_start")

    def on_step(step: int, loss: float) -> None:
        if step % 10 == 0:
            tell_progress(slot, f"step {step} of {config.cold_start.steps}, loss {loss:.2f}")

    def compute() -> Produced:
        given = None
        if config.policy.path is not None:
            given = load_policy(config.policy.path, device=config.compute.device)
        started = on_torch_thread(
            config.compute, lambda: start_policy(config, given=given, seed=seed, on_step=on_step)
        )
        return Produced(
            tables={
                "demonstrations": started.demonstrations,
                "cold_start_updates": started.updates,
            },
            checkpoint_writer=lambda folder: save_policy(
                folder, started.model, started.tokenizer, None
            ),
            policy_version=0,
        )

    inputs: dict[str, Ref] = {}
    if config.policy.path is not None:
        folder = Path(config.policy.path)
        files = [folder / name for name in files_below(folder)]
        inputs["policy"] = foreign_ref(config.policy.path, files)
    return run_stage(
        place,
        slot,
        config={
            **config.cold_start.model_dump(mode="json"),
            "policy": config.policy.model_dump(mode="json", exclude={"path"}),
            "levels": list(config.problems.levels),
            "observation_chars": config.execution.observation_chars,
        },
        inputs=inputs,
        seed=seed,
        compute=compute,
    )


@task(task_run_name="prompts {place.split} {place.iteration}", **OPTIONS)
def prompts_task(
    place: Place,
    problems: TableRef | None,
    tokenizer: CheckpointRef,
    config: RunConfig,
) -> TableRef:
    """Picks the problems of an iteration or of an evaluation and makes their prompts."""
    train = place.split == "train"
    count = config.rollout.prompts if train else config.evaluation.problems
    iteration = place.iteration if train else 1
    seed = derive_seed(config.seed, "prompts", place.split)

    def compute() -> Produced:
        if problems is None:
            picked = embedded_problems(
                count,
                split="train" if train else "held_out",
                levels=config.problems.levels,
                seed=derive_seed(seed, iteration),
            )
        else:
            known = Problems.validate(open_store(place.store).read(problems))
            wanted = count if train else min(count, len(known))
            picked = pick_problems(known, wanted, iteration=iteration, seed=seed)
        dialogue = dialogue_of(place.store, tokenizer)
        return Produced(tables={"prompts": make_prompts(picked, encode=dialogue.encode_prompts)})

    inputs: dict[str, Ref] = {"tokenizer": tokenizer}
    if problems is not None:
        inputs["problems"] = problems
    output = run_stage(
        place,
        place.slot("prompts"),
        config={
            "prompts": count,
            "iteration": iteration,
            "split": place.split,
            "levels": list(config.problems.levels),
        },
        inputs=inputs,
        seed=seed,
        compute=compute,
    )
    return output.tables["prompts"]


@task(task_run_name="rollout {place.iteration} shard {shard.index} turn {turn}", **OPTIONS)
def rollout_task(
    place: Place,
    shard: Shard,
    turn: int,
    prompts: TableRef,
    turns: list[TableRef],
    executions: list[TableRef],
    policy: CheckpointRef,
    sampling: Sampling,
) -> TableRef:
    """Samples one turn of every open trajectory of a shard, from all that it did before."""
    history = Trajectories(prompts=prompts, turns=tuple(turns), executions=tuple(executions))

    def compute() -> Produced:
        asked, said, observed = read_trajectories(place.store, history)
        engine, dialogue = engine_of(place.store, policy, sampling.compute)
        sampled = on_torch_thread(
            sampling.compute,
            lambda: roll_out_turn(
                take_shard(asked, shard.index, shard.of),
                said,
                observed,
                engine=engine,
                dialogue=dialogue,
                config=sampling.config,
                seed=sampling.seed,
                turn_index=turn,
            ),
        )
        return Produced(tables={"turns": sampled})

    output = run_stage(
        place,
        place.slot("rollout", shard=shard.index, turn=turn),
        config={
            **sampling.config.model_dump(mode="json", exclude={"prompts", "shards", "max_turns"}),
            **shard.model_dump(),
            "turn": turn,
        },
        inputs={**history.inputs(), "policy": policy},
        seed=sampling.seed,
        compute=compute,
    )
    return output.tables["turns"]


@task(
    task_run_name="execution {place.iteration} shard {shard.index} turn {turn}",
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=is_executor_failure,
    **OPTIONS,
)
def execution_task(
    place: Place,
    shard: Shard,
    turn: int,
    turns: TableRef,
    tokenizer: CheckpointRef,
    config: ExecutionConfig,
) -> TableRef:
    """Runs the code of one turn of a shard and makes the observations."""

    def compute() -> Produced:
        dialogue = dialogue_of(place.store, tokenizer)
        executed = execute_turns(
            read_turns(place.store, [turns]),
            executor=executor_of(config),
            config=config,
            encode_observation=dialogue.encode_observations,
        )
        return Produced(tables={"executions": executed})

    output = run_stage(
        place,
        place.slot("execution", shard=shard.index, turn=turn),
        config=config.model_dump(mode="json", exclude={"workers"}),
        inputs={"turns": turns, "tokenizer": tokenizer},
        compute=compute,
    )
    return output.tables["executions"]


@task(task_run_name="turn rewards {place.iteration}", **OPTIONS)
def turn_rewards_task(
    place: Place, rolled_out: Trajectories, config: TurnRewardsConfig
) -> TableRef:
    """Scores every turn of the batch."""
    return table_of(
        place,
        "turn_rewards",
        config,
        rolled_out.inputs(),
        lambda: score_turns(*read_trajectories(place.store, rolled_out), config),
    )


@task(task_run_name="similarity {place.iteration}", **OPTIONS)
def similarity_task(
    place: Place,
    rolled_out: Trajectories,
    turn_rewards: TableRef,
    config: SimilarityConfig,
) -> TableRef:
    """Shapes the rewards of wrong trajectories by resemblance to right ones."""

    def compute() -> pl.DataFrame:
        rewards = TurnRewards.validate(open_store(place.store).read(turn_rewards))
        return shape_rewards(read_turns(place.store, rolled_out.turns), rewards, config)

    turns = {k: ref for k, ref in rolled_out.inputs().items() if k.startswith("turns.")}
    return table_of(
        place,
        "similarity",
        config,
        {**turns, "turn_rewards": turn_rewards},
        compute,
        table="shaped_rewards",
    )


@task(task_run_name="advantages {place.iteration}", **OPTIONS)
def advantages_task(place: Place, shaped_rewards: TableRef, config: AdvantagesConfig) -> TableRef:
    """Credits every turn."""

    def compute() -> pl.DataFrame:
        rewards = ShapedRewards.validate(open_store(place.store).read(shaped_rewards))
        return estimate_advantages(rewards, config)

    return table_of(place, "advantages", config, {"shaped_rewards": shaped_rewards}, compute)


@task(task_run_name="optimisation {place.iteration}", **OPTIONS)
def optimisation_task(
    place: Place,
    rolled_out: Trajectories,
    advantages: TableRef,
    policy: CheckpointRef,
    config: OptimisationConfig,
    compute_config: ComputeConfig,
    seed: int,
) -> StageOutput:
    """Updates the policy and stores the next checkpoint."""
    slot = place.slot("optimisation")

    def compute() -> Produced:
        store = open_store(place.store)
        credit = Advantages.validate(store.read(advantages))
        batch = make_batch(*read_trajectories(place.store, rolled_out), credit)
        folder = store.path(policy)
        model, tokenizer = load_policy(folder, device=compute_config.device)
        updates, state = on_torch_thread(
            compute_config,
            lambda: optimise(
                model,
                batch,
                config,
                optimiser_state=load_optimiser_state(folder),
                seed=seed,
                on_step=lambda step, steps: tell_progress(slot, f"step {step} of {steps}"),
            ),
        )
        return Produced(
            tables={"updates": updates},
            checkpoint_writer=lambda out: save_policy(out, model, tokenizer, state),
            policy_version=policy.policy_version + 1,
        )

    return run_stage(
        place,
        slot,
        config=config.model_dump(mode="json"),
        inputs={**rolled_out.inputs(), "advantages": advantages, "policy": policy},
        seed=seed,
        compute=compute,
    )


@task(task_run_name="evaluation {place.iteration}", **OPTIONS)
def evaluation_task(
    place: Place,
    rolled_out: Trajectories,
    config: EvaluationConfig,
    grading_time_s: float,
) -> TableRef:
    """Grades the samples of a policy on held-out problems."""
    benchmark = "held_out" if config.path is None else config.path.rstrip("/").split("/")[-1]
    return table_of(
        place,
        "evaluation",
        {"benchmark": benchmark, "grading_time_s": grading_time_s},
        rolled_out.inputs(),
        lambda: evaluate(
            *read_trajectories(place.store, rolled_out),
            benchmark=benchmark,
            grading_time_s=grading_time_s,
        ),
        table="evaluations",
    )
