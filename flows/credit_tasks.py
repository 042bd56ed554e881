"""Stage tasks from the trajectories on: rewards, similarity, advantages, optimisation, evaluation.

Each function describes a stage run; the closure inside reads the inputs, hands frames to the
stage and names what comes back.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl

from flows.binding import Place, Produced, StageRun
from flows.catalogue import MEASURE_LIBRARIES
from flows.learning import Job
from flows.learning_processes import update_policy
from flows.outside import embedding_model
from flows.resources import embedding_of, on_torch_thread
from flows.stage_tasks import stage_task
from flows.task_inputs import (
    Shard,
    Trajectories,
    UpdateStart,
    numbered,
    read_trajectories,
    read_turns,
    tell_progress,
)
from schemas.config import (
    AdvantagesConfig,
    ComputeConfig,
    EvaluationConfig,
    SimilarityConfig,
    TurnRewardsConfig,
)
from schemas.optimisation import OptimisationConfig
from schemas.refs import Ref, StageOutput, TableRef
from schemas.tables import (
    Advantages,
    ShapedRewards,
    TurnRewards,
)
from stages.advantages import estimate_advantages
from stages.evaluation import evaluate
from stages.optimisation import make_batch, refuse_other_policies
from stages.shards import take_shard
from stages.similarity import require_measure, shape_rewards
from stages.turn_rewards import score_turns


@stage_task("turn rewards {place.iteration} shard {shard.number}", scales_out=True)
def turn_rewards_task(
    place: Place,
    shard: Shard,
    prompts: TableRef,
    turns: list[StageOutput],
    executions: list[StageOutput],
    config: TurnRewardsConfig,
) -> StageRun:
    """Scores every turn of a shard."""
    rolled_out = Trajectories.of([prompts], turns, executions)

    def compute() -> Produced:
        asked, said, observed = read_trajectories(place, rolled_out)
        asked = take_shard(asked, shard.index, shard.of)
        return Produced(tables={"turn_rewards": score_turns(asked, said, observed, config)})

    return StageRun(
        place=place,
        slot=place.slot("turn_rewards", shard=shard.number),
        config=config.model_dump(mode="json"),
        inputs=rolled_out.inputs(),
        compute=compute,
    )


@stage_task("similarity {place.iteration} shard {shard.number}", scales_out=True)
def similarity_task(
    place: Place,
    shard: Shard,
    turns: list[StageOutput],
    rewards: StageOutput,
    config: SimilarityConfig,
    compute_config: ComputeConfig,
) -> StageRun:
    """Shapes the rewards of a shard's wrong trajectories by resemblance to right ones."""
    said = [output.tables["turns"] for output in turns]
    turn_rewards = rewards.tables["turn_rewards"]
    require_measure(config)
    model = embedding_model(config)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return on_torch_thread(
            compute_config, lambda: embedding_of(model["embedding"], compute_config)(texts)
        )

    def compute() -> Produced:
        scored = TurnRewards.validate(place.open().read(turn_rewards))
        shaped = shape_rewards(read_turns(place, said), scored, config, embed)
        return Produced(tables={"shaped_rewards": shaped})

    return StageRun(
        place=place,
        slot=place.slot("similarity", shard=shard.number),
        config=config.model_dump(mode="json", exclude={"embedding_path"}),
        inputs={**numbered("turns", said), "turn_rewards": turn_rewards, **model},
        libraries=MEASURE_LIBRARIES.get(config.measure, ()),
        needs_device=config.measure == "embedding",
        compute=compute,
    )


@stage_task("advantages {place.iteration}")
def advantages_task(place: Place, shaped: list[StageOutput], config: AdvantagesConfig) -> StageRun:
    """Credits every turn of the batch; a batch is normalised as a whole where that is asked for."""
    rewards = [output.tables["shaped_rewards"] for output in shaped]

    def compute() -> Produced:
        frames = [place.open().read(ref) for ref in rewards]
        rows = ShapedRewards.validate(pl.concat([ShapedRewards.create_empty(), *frames]))
        return Produced(tables={"advantages": estimate_advantages(rows, config)})

    return StageRun(
        place=place,
        slot=place.slot("advantages"),
        config=config.model_dump(mode="json"),
        inputs=numbered("shaped_rewards", rewards),
        compute=compute,
    )


@stage_task("optimisation {place.iteration}")
def optimisation_task(
    place: Place,
    rolled_out: Trajectories,
    advantages: TableRef,
    start: UpdateStart,
    config: OptimisationConfig,
    compute_config: ComputeConfig,
) -> StageRun:
    """Updates the policy and stores the next checkpoint; none if a guard stopped the update."""
    slot = place.slot("optimisation")
    before = start.policy

    def compute() -> Produced:
        store = place.open()
        credit = Advantages.validate(store.read(advantages))
        prompts, turns, executions = read_trajectories(place, rolled_out)
        refuse_other_policies(turns, start.sampler_version)
        batch = make_batch(prompts, turns, executions, credit)
        job = Job(
            policy=store.path(before),
            reference=None if start.reference is None else store.path(start.reference),
            batch=batch,
            config=config,
            seed=start.seed,
            iteration=place.iteration,
            iterations=start.iterations,
        )
        told = partial(tell_progress, slot)
        update, writer = on_torch_thread(
            compute_config, lambda: update_policy(job, compute_config, told)
        )
        return Produced(
            tables={
                "updates": update.updates,
                "turn_updates": update.turn_updates,
                "optimisation_faults": update.faults,
            },
            checkpoint_writer=writer,
            policy_version=None if writer is None else before.policy_version + 1,
        )

    inputs: dict[str, Ref] = {
        **rolled_out.inputs(),
        "advantages": advantages,
        "policy": before,
    }
    if start.reference is not None:
        inputs["reference"] = start.reference
    settings = config.model_dump(mode="json")
    if config.warmup_iterations or config.schedule != "constant":
        settings["iteration"] = place.iteration
    if config.schedule != "constant":
        settings["iterations"] = start.iterations
    return StageRun(
        place=place,
        slot=slot,
        config=settings,
        inputs=inputs,
        seed=start.seed,
        libraries=("peft",) if config.lora_rank else (),
        compute=compute,
    )


@stage_task("evaluation {place.iteration}")
def evaluation_task(
    place: Place,
    rolled_out: Trajectories,
    config: EvaluationConfig,
    grading_time_s: float,
) -> StageRun:
    """Grades the samples of a policy on held-out problems."""
    benchmark = "held_out" if config.path is None else config.path.rstrip("/").split("/")[-1]

    def compute() -> Produced:
        graded = evaluate(
            *read_trajectories(place, rolled_out),
            benchmark=benchmark,
            grading_time_s=grading_time_s,
        )
        return Produced(tables={"evaluations": graded})

    return StageRun(
        place=place,
        slot=place.slot("evaluation"),
        config={"benchmark": benchmark, "grading_time_s": grading_time_s},
        inputs=rolled_out.inputs(),
        compute=compute,
    )


@stage_task("{place.split} {place.iteration} shard {shard.number}")
def benchmark_task(
    place: Place,
    shard: Shard,
    prompts: TableRef,
    turns: list[StageOutput],
    executions: list[StageOutput],
    grading_time_s: float,
) -> StageRun:
    """Grades a shard of samples of a policy on a benchmark."""
    rolled_out = Trajectories.of([prompts], turns, executions)

    def compute() -> Produced:
        graded = evaluate(
            *read_trajectories(place, rolled_out),
            benchmark=place.split,
            grading_time_s=grading_time_s,
        )
        return Produced(tables={"evaluations": graded})

    return StageRun(
        place=place,
        slot=place.slot("evaluation", shard=shard.number),
        config={"benchmark": place.split, "grading_time_s": grading_time_s},
        inputs=rolled_out.inputs(),
        compute=compute,
    )
