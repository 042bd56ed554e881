"""Rerun: one stage of one iteration again, with changed settings or code, into a branch.

A branch is a run of its own that remembers where it came from. What stands before the stage is
taken over as it is stored, whatever code made it: a changed reward rule costs no rollout. What
depends on the stage within the iteration is computed again. The original stays.
"""

from typing import Literal, get_args

from prefect import flow

from flows.binding import Place, adopt, open_store
from flows.task_inputs import Trajectories
from flows.tasks import (
    advantages_task,
    similarity_task,
    turn_rewards_task,
)
from flows.train import (
    SHARDS_AT_ONCE,
    ask_and_roll_out,
    evaluate_policy,
    load_problem_sets,
    roll_out,
    update_policy,
)
from schemas.config import RunConfig
from schemas.errors import StoreError
from schemas.refs import CheckpointRef, StageOutput, TableRef
from storage import Slot, Store

RerunStage = Literal[
    "prompts",
    "rollout",
    "execution",
    "turn_rewards",
    "similarity",
    "advantages",
    "optimisation",
    "evaluation",
]
ORDER: tuple[RerunStage, ...] = get_args(RerunStage)
"""Stages of an iteration, each before those that depend on it."""


@flow(name="rerun", task_runner=SHARDS_AT_ONCE, persist_result=False)
def rerun(
    store: str, source: str, into: str, iteration: int, stage: RerunStage, config: RunConfig
) -> None:
    """Computes a stage of an iteration, and what depends on it, in the run `into`.

    Args:
        store: Path of the store.
        source: Run that is branched.
        into: Run that receives the results; may be `source` itself for an evaluation.
        iteration: Iteration to run again.
        stage: First stage to compute.
        config: Settings of the branch.

    Raises:
        StoreError: If the source holds no results of the stages before.
    """
    old = Place(store=store, run=source, iteration=iteration)
    new = Place(store=store, run=into, iteration=iteration)
    first, policy = find_policies(open_store(store), source, iteration, stage)
    if stage != "evaluation":
        policy = _learn_again(old, new, stage, policy, first, config)
    was_evaluated = _is_stored(store, old.model_copy(update={"split": "evaluation"}))
    if stage == "evaluation" or was_evaluated:
        problems = load_problem_sets(new.model_copy(update={"iteration": 0}), config)
        evaluate_policy(new, policy, first, problems, config)


def _learn_again(
    old: Place,
    new: Place,
    stage: RerunStage,
    before: CheckpointRef,
    first: CheckpointRef,
    config: RunConfig,
) -> CheckpointRef:
    def is_kept(other: RerunStage) -> bool:
        return ORDER.index(other) < ORDER.index(stage)

    def kept(name: str, table: str) -> TableRef:
        return _adopted(old.slot(name), new, new.slot(name)).tables[table]

    if is_kept("execution"):
        rolled_out = _adopt_trajectories(old, new, config)
    elif is_kept("prompts"):
        rolled_out = roll_out(new, kept("prompts", "prompts"), before, first, config)
    else:
        problems = load_problem_sets(new.model_copy(update={"iteration": 0}), config)
        rolled_out = ask_and_roll_out(new, before, first, problems, config)
    if is_kept("turn_rewards"):
        rewards = kept("turn_rewards", "turn_rewards")
    else:
        rewards = turn_rewards_task(new, rolled_out, config.turn_rewards)
    if is_kept("similarity"):
        shaped = kept("similarity", "shaped_rewards")
    else:
        shaped = similarity_task(new, rolled_out, rewards, config.similarity)
    if is_kept("advantages"):
        advantages = kept("advantages", "advantages")
    else:
        advantages = advantages_task(new, shaped, config.advantages)
    return update_policy(new, rolled_out, advantages, before, config)


def _adopt_trajectories(old: Place, new: Place, config: RunConfig) -> Trajectories:
    """Takes over prompts, turns and executions of an iteration."""
    prompts = _adopted(old.slot("prompts"), new, new.slot("prompts")).tables["prompts"]
    shards = min(config.rollout.shards, prompts.rows)
    turns, executions = [], []
    for shard in range(shards):
        for turn in range(config.rollout.max_turns):
            output = _adopted(
                old.slot("rollout", shard=shard, turn=turn),
                new,
                new.slot("rollout", shard=shard, turn=turn),
            )
            turns.append(output.tables["turns"])
            if turn < config.rollout.max_turns - 1:
                output = _adopted(
                    old.slot("execution", shard=shard, turn=turn),
                    new,
                    new.slot("execution", shard=shard, turn=turn),
                )
                executions.append(output.tables["executions"])
    return Trajectories(prompts=prompts, turns=tuple(turns), executions=tuple(executions))


def _adopted(source: Slot, place: Place, target: Slot) -> StageOutput:
    output = adopt(place, source, target)
    if output is None:
        raise StoreError(f"nothing usable is stored in {source.uri}: rerun an earlier stage")
    return output


def find_policies(
    store: Store, source: str, iteration: int, stage: RerunStage
) -> tuple[CheckpointRef, CheckpointRef]:
    """Returns what a rerun starts from: the policy of the cold start, and the one to work on.

    An evaluation works on the policy that the iteration made, the other stages on the one that
    it began with. A branch holds only what was computed or taken over for it; the rest is found
    in the run that it was branched off.

    Raises:
        StoreError: If a policy is missing, or if the iteration has no such stage.
    """
    first = _policy_of(store, source, 0)
    if stage == "evaluation":
        return first, _policy_of(store, source, iteration)
    if iteration == 0:
        raise StoreError("iteration 0 holds only the cold start: it has no stage to rerun")
    prompts = Slot(run=source, iteration=iteration, split="train", stage="prompts")
    if store.manifest(prompts) is None:
        raise StoreError(f"run {source} holds no rollout of iteration {iteration}")
    return first, _policy_of(store, source, iteration - 1)


def _policy_of(store: Store, run: str, iteration: int) -> CheckpointRef:
    """Returns the policy that an iteration of a run, or of the run it came from, made."""
    stage = "cold_start" if iteration == 0 else "optimisation"
    holder: str | None = run
    while holder is not None:
        slot = Slot(run=holder, iteration=iteration, split="train", stage=stage)
        manifest = store.manifest(slot)
        checkpoint = None if manifest is None else manifest.output(slot.uri).checkpoint
        if checkpoint is not None:
            return checkpoint
        parent = store.run_record(holder).parent
        holder = None if parent is None else parent.run
    raise StoreError(f"run {run} holds no policy of iteration {iteration}: train it that far")


def _is_stored(store: str, place: Place) -> bool:
    return open_store(store).manifest(place.slot("evaluation")) is not None
