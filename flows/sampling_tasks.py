"""Stage tasks up to the trajectories: problems, cold start, prompts, rollout, execution.

Each function describes a stage run; the closure inside reads the inputs, hands frames to the
stage and names what comes back.
"""

from collections.abc import Callable, Mapping

import dataframely as dy
import polars as pl

from flows.binding import Place, Produced, StageRun
from flows.catalogue import ENGINE_MODULES
from flows.imitated import (
    IMITATION_LIBRARIES,
    IMITATION_MODULES,
    cold_start_settings,
    imitated_examples,
    imitated_inputs,
)
from flows.metered_engine import MeteredEngine
from flows.outside import given_policy, problem_file, readable_files
from flows.resources import dialogue_of, engine_of, executor_of, on_torch_thread
from flows.stage_tasks import stage_task
from flows.task_inputs import (
    Sampling,
    Shard,
    Trajectories,
    numbered,
    read_prompts,
    read_trajectories,
    read_turns,
    tell_progress,
)
from flows.work_times import WorkTimer
from schemas.cold_start_tables import ColdStartExamples
from schemas.config import DialogueFormat, ExecutionConfig, ProblemsConfig, RunConfig
from schemas.refs import CheckpointRef, Ref, StageOutput, TableRef
from schemas.tables import Problems, TurnRewards, Turns
from stages.cold_start import start_policy
from stages.cold_start.imitation import start_by_imitation
from stages.cold_start.start import Policy
from stages.dialogue import Dialogue
from stages.execution import execute_turns
from stages.further_groups import further_groups
from stages.prompts import (
    embedded_problems,
    further_embedded_problems,
    make_prompts,
    pick_further_problems,
    pick_problems,
)
from stages.randomness import derive_seed
from stages.rollout import roll_out_turn
from stages.rollout.vllm_server import release_of
from stages.shards import take_shard
from storage import load_problems
from storage.checkpoints import load_given_policy, save_policy


@stage_task("problems {place.split}")
def problems_task(place: Place, config: ProblemsConfig, known: Place) -> StageRun:
    """Loads a problem file into the store, with its rejected rows beside it.

    `known` is where its problems may be stored already, should the file be gone.
    """
    name, file = problem_file(known, config)

    def compute() -> Produced:
        loaded = load_problems(
            file.uri,
            problem_field=config.problem_field,
            answer_field=config.answer_field,
            id_field=config.id_field,
        )
        return Produced(tables={"problems": loaded.problems, "rejected_problems": loaded.rejected})

    return StageRun(
        place=place,
        slot=place.slot("problems"),
        # The name becomes part of the rows: their source, and their ids where they have none.
        config={**config.model_dump(exclude={"path", "levels"}), "source": name},
        inputs={"file": file},
        compute=compute,
    )


@stage_task("cold start")
def cold_start_task(place: Place, config: RunConfig) -> StageRun:
    """Makes the first policy: embedded or given, started on demonstrations."""
    slot = place.slot("cold_start")
    seed = derive_seed(config.seed, "cold_start")

    def on_step(step: int, loss: float) -> None:
        if step % 10 == 0:
            tell_progress(slot, f"step {step} of {config.cold_start.steps}, loss {loss:.2f}")

    imitated = imitated_inputs(place, config)

    def compute() -> Produced:
        given = None
        if config.policy.path is not None:
            given = load_given_policy(config.policy.path, device=config.compute.device)
        if imitated:
            return _imitation(place, config, imitated, given, seed, on_step)
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

    inputs = dict(imitated)
    if config.policy.path is not None:
        inputs["policy"] = given_policy(place, config.policy.path)
    return StageRun(
        place=place,
        slot=slot,
        modules=IMITATION_MODULES if imitated else (),
        libraries=IMITATION_LIBRARIES if imitated else (),
        config={
            **cold_start_settings(config),
            "policy": config.policy.model_dump(mode="json", exclude={"path"}),
            "levels": list(config.problems.levels),
            "observation_chars": config.execution.observation_chars,
            "dialogue": config.rollout.dialogue,
        },
        inputs=inputs,
        seed=seed,
        compute=compute,
    )


def _imitation(
    place: Place,
    config: RunConfig,
    imitated: Mapping[str, Ref],
    given: Policy | None,
    seed: int,
    on_step: Callable[[int, float], None],
) -> Produced:
    """Starts a policy on trajectories in place of demonstrations."""

    def examples_for(dialogue: Dialogue, context: int) -> dy.DataFrame[ColdStartExamples]:
        return imitated_examples(place, imitated, config, dialogue, context)

    started = on_torch_thread(
        config.compute,
        lambda: start_by_imitation(
            config,
            config.optimisation,
            given=given,
            examples_for=examples_for,
            seed=seed,
            on_step=on_step,
        ),
    )
    return Produced(
        tables={"cold_start_examples": started.examples, "cold_start_updates": started.updates},
        checkpoint_writer=lambda folder: save_policy(
            folder, started.model, started.tokenizer, None
        ),
        policy_version=0,
    )


@stage_task("prompts {place.split} {place.iteration}")
def prompts_task(
    place: Place,
    problems: TableRef | None,
    tokenizer: CheckpointRef,
    config: RunConfig,
) -> StageRun:
    """Picks the problems of an iteration or of an evaluation and makes their prompts."""
    train = place.split == "train"
    count = config.rollout.prompts if train else config.evaluation.problems
    wanted = count if train or problems is None else min(count, problems.rows)
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
            known = Problems.validate(place.open().read(problems))
            picked = pick_problems(known, wanted, iteration=iteration, seed=seed)
        dialogue = dialogue_of(place.store, tokenizer, config.rollout.dialogue)
        return Produced(tables={"prompts": make_prompts(picked, encode=dialogue.encode_prompts)})

    inputs: dict[str, Ref] = {"tokenizer": tokenizer}
    if problems is not None:
        inputs["problems"] = problems
    return StageRun(
        place=place,
        slot=place.slot("prompts"),
        config={
            "prompts": count,
            "iteration": iteration,
            "split": place.split,
            "levels": list(config.problems.levels),
            "dialogue": config.rollout.dialogue,
        },
        inputs=inputs,
        seed=seed,
        compute=compute,
        rows={"prompts": wanted},
    )


@stage_task("prompts {place.split} {place.iteration} round {round_index}")
def further_prompts_task(
    place: Place,
    round_index: int,
    asked: list[TableRef],
    rewards: list[StageOutput],
    problems: TableRef | None,
    tokenizer: CheckpointRef,
    config: RunConfig,
) -> StageRun:
    """Picks problems in place of groups that are all right or all wrong; none if enough are not.

    `asked` are the prompts of all earlier rounds, `rewards` what became of them.
    """
    seed = derive_seed(config.seed, "further_prompts", place.iteration, round_index)
    scored = [output.tables["turn_rewards"] for output in rewards]

    def compute() -> Produced:
        before = read_prompts(place, asked)
        outcomes = TurnRewards.validate(pl.concat(place.open().read(ref) for ref in scored))
        count = further_groups(outcomes, wanted=config.rollout.prompts)
        if problems is None:
            picked = further_embedded_problems(
                count, before, levels=config.problems.levels, seed=seed
            )
        else:
            known = Problems.validate(place.open().read(problems))
            picked = pick_further_problems(known, count, before, seed=seed)
        dialogue = dialogue_of(place.store, tokenizer, config.rollout.dialogue)
        prompts = make_prompts(picked, encode=dialogue.encode_prompts, round_index=round_index)
        return Produced(tables={"prompts": prompts})

    inputs: dict[str, Ref] = {"tokenizer": tokenizer, **numbered("asked", asked)}
    if problems is not None:
        inputs["problems"] = problems
    return StageRun(
        place=place,
        slot=place.slot("prompts", shard=round_index),
        modules=("stages.further_groups",),
        config={
            "prompts": config.rollout.prompts,
            "round": round_index,
            "levels": list(config.problems.levels),
            "dialogue": config.rollout.dialogue,
        },
        inputs={**inputs, **numbered("turn_rewards", scored)},
        seed=seed,
        compute=compute,
    )


@stage_task("rollout {place.split} {place.iteration} shard {shard.number} turn {turn}")
def rollout_task(
    place: Place,
    shard: Shard,
    turn: int,
    prompts: TableRef,
    turns: list[StageOutput],
    executions: list[StageOutput],
    policy: CheckpointRef,
    sampling: Sampling,
) -> StageRun:
    """Samples one turn of every open trajectory of a shard, from all that it did before."""
    history = Trajectories.of([prompts], turns, executions)

    def compute() -> Produced:
        asked, said, observed = read_trajectories(place, history)
        dialogue = dialogue_of(place.store, policy, sampling.config.dialogue)
        timer = WorkTimer()
        with engine_of(place.store, policy, sampling) as opened:
            engine = MeteredEngine(opened)

            def roll_out() -> dy.DataFrame[Turns]:
                with timer:
                    return roll_out_turn(
                        take_shard(asked, shard.index, shard.of),
                        said,
                        observed,
                        engine=engine,
                        dialogue=dialogue,
                        config=sampling.config,
                        seed=sampling.seed,
                        turn_index=turn,
                        first_sample=shard.first_sample,
                    )

            # Shards that are with a server wait there together; it batches them.
            is_served = sampling.config.engine == "vllm"
            sampled = roll_out() if is_served else on_torch_thread(sampling.compute, roll_out)
        times = engine.with_prompts(timer.row(shard.number, turn, sampled["token_ids"]))
        return Produced(tables={"turns": sampled, "generation_times": times})

    by_engine, versions = {}, {}
    if sampling.config.engine == "vllm":
        by_engine["dtype"] = sampling.vllm.dtype
        versions["vllm"] = release_of(sampling.vllm).version
    return StageRun(
        place=place,
        slot=place.slot("rollout", shard=shard.number, turn=turn),
        modules=ENGINE_MODULES[sampling.config.engine],
        versions=versions,
        config={
            **sampling.config.model_dump(
                mode="json",
                exclude={"prompts", "shards", "max_turns", "stale", "resample_rounds"},
            ),
            **by_engine,
            **shard.model_dump(exclude={"before"}),
            "turn": turn,
        },
        inputs={**history.inputs(), "policy": policy},
        seed=sampling.seed,
        compute=compute,
    )


@stage_task(
    "execution {place.split} {place.iteration} shard {shard.number} turn {turn}", scales_out=True
)
def execution_task(
    place: Place,
    shard: Shard,
    turn: int,
    rolled_out: list[StageOutput],
    tokenizer: CheckpointRef,
    config: ExecutionConfig,
    dialogue_format: DialogueFormat,
) -> StageRun:
    """Runs the code of one turn of a shard and makes the observations, in that format.

    `rolled_out` are the turns up to this one: where state is replayed, all of them count.
    """
    *before, turns = (output.tables["turns"] for output in rolled_out)
    earlier = before if config.state == "replayed" else []

    def compute() -> Produced:
        dialogue = dialogue_of(place.store, tokenizer, dialogue_format)
        said, before, executor = (
            read_turns(place, [turns]),
            read_turns(place, earlier),
            executor_of(config),
        )
        with WorkTimer() as timer:
            executed = execute_turns(
                said,
                executor=executor,
                config=config,
                encode_observation=dialogue.encode_observations,
                earlier=before,
            )
        times = timer.row(shard.number, turn, executed["observation_token_ids"])
        return Produced(tables={"executions": executed, "execution_times": times})

    return StageRun(
        place=place,
        slot=place.slot("execution", shard=shard.number, turn=turn),
        config={
            **config.model_dump(mode="json", exclude={"workers", "files_path", "fusion_url"}),
            "dialogue": dialogue_format,
        },
        inputs={
            "turns": turns,
            **numbered("earlier", earlier),
            **readable_files(config),
            "tokenizer": tokenizer,
        },
        compute=compute,
    )
