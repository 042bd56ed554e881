"""Rollouts of whole iterations: shards side by side, and rounds of further groups.

A round asks problems in place of groups whose outcomes are all equal, which teach nothing. Every
round that may be asked is: one that turns out not to be needed has no prompts, and its stage runs
are empty. So the stage runs of an iteration follow from the settings alone, and a plan, a rerun or
a changed reward rule never meets results of a round that is no longer there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefect.futures import PrefectFuture, wait

from flows.binding import Place
from flows.credit_tasks import similarity_task, turn_rewards_task
from flows.sampling_tasks import (
    execution_task,
    further_prompts_task,
    prompts_task,
    rollout_task,
)
from flows.task_inputs import Sampling, Shard, Trajectories
from schemas.config import RunConfig
from schemas.refs import CheckpointRef, StageOutput, TableRef
from stages.randomness import derive_seed

ProblemSets = dict[str, TableRef | None]
"""Stored problem sets by split; null stands for the embedded families."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The stage runs of one shard's rollout, in the order of the turns."""

    prompts: TableRef
    """Of all shards of its round."""
    shard: Shard
    turns: list[Any]
    """Outputs of rollout, or futures of them: Prefect waits for these where they are passed."""
    executions: list[Any]
    """Outputs of execution, or futures of them; one less than turns."""


def ask(
    place: Place, tokenizer: CheckpointRef, problems: ProblemSets, config: RunConfig
) -> TableRef:
    """Makes the prompts of an iteration or of an evaluation."""
    return prompts_task(place, problems[place.split], tokenizer, config).tables["prompts"]


def sampling_of(place: Place, config: RunConfig) -> Sampling:
    """Returns how the rollouts of a place are sampled."""
    rollout = config.rollout
    if place.split != "train":
        asked = config.evaluation
        rollout = rollout.model_copy(
            update={
                "samples": asked.samples,
                "shards": asked.shards,
                "temperature": asked.temperature,
                "top_p": asked.top_p,
                "top_k": asked.top_k,
            }
        )
    # Evaluations share their seed, so that policies are compared on the same luck.
    luck = place.iteration if place.split == "train" else 0
    seed = derive_seed(config.seed, "rollout", place.split, luck)
    return Sampling(config=rollout, compute=config.compute, vllm=config.vllm, seed=seed)


def shards_of(wanted: int, groups: int) -> list[Shard]:
    """Returns the shards of the first round; none is empty."""
    count = min(wanted, groups)
    return [Shard(index=index, of=count) for index in range(count)]


def further_shards(wanted: int, before: int) -> list[Shard]:
    """Returns the shards of a further round, whose groups may be few or none.

    Args:
        wanted: Shards of a round.
        before: Shards of all earlier rounds.
    """
    return [Shard(index=index, of=wanted, before=before) for index in range(wanted)]


def submit_rollout(
    place: Place,
    prompts: TableRef,
    shards: Sequence[Shard],
    policy: CheckpointRef,
    first: CheckpointRef,
    config: RunConfig,
) -> list[Chain]:
    """Alternates rollout and execution, turn by turn, each shard at its own pace.

    All tasks are submitted at once; each waits for the tables it needs and for nothing else.
    `first` is the policy whose tokenizer all share.
    """
    sampling = sampling_of(place, config)
    chains = [Chain(prompts, shard, [], []) for shard in shards]
    for turn in range(sampling.config.max_turns):
        for chain in chains:
            said, seen = list(chain.turns), list(chain.executions)
            chain.turns.append(
                rollout_task.submit(place, chain.shard, turn, prompts, said, seen, policy, sampling)
            )
            if turn < sampling.config.max_turns - 1:
                chain.executions.append(
                    execution_task.submit(
                        place,
                        chain.shard,
                        turn,
                        list(chain.turns),
                        first,
                        config.execution,
                        config.rollout.dialogue,
                    )
                )
    return chains


def submit_rounds(
    place: Place,
    chains: Sequence[Chain],
    problems: ProblemSets,
    policy: CheckpointRef,
    first: CheckpointRef,
    config: RunConfig,
) -> tuple[list[Chain], list[Any]]:
    """Has a rollout scored, and further groups rolled out and scored in place of equal ones.

    Args:
        place: The iteration.
        chains: Its first round.
        problems: Where further problems are picked.
        policy: The policy that samples.
        first: The policy whose tokenizer all share.
        config: Settings of the run; `rollout.resample_rounds` bounds the rounds.

    Returns:
        The chains of all rounds, and futures of their rewards in the same order.
    """
    chains, rewards = list(chains), submit_rewards(place, chains, config)
    for round_index in range(1, config.rollout.resample_rounds + 1):
        _, scored = gathered(chains, rewards)
        prompts = further_prompts_task(
            place, round_index, _prompts_of(chains), scored, problems["train"], first, config
        ).tables["prompts"]
        shards = further_shards(config.rollout.shards, before=len(chains))
        further = submit_rollout(place, prompts, shards, policy, first, config)
        chains += further
        rewards = [*scored, *submit_rewards(place, further, config)]
    return chains, rewards


def submit_rewards(place: Place, chains: Iterable[Chain], config: RunConfig) -> list[Any]:
    """Has every shard scored; returns futures in the order of the chains."""
    return [
        turn_rewards_task.submit(
            place, chain.shard, chain.prompts, chain.turns, chain.executions, config.turn_rewards
        )
        for chain in chains
    ]


def submit_shaping(
    place: Place, chains: Sequence[Chain], rewards: Sequence[Any], config: RunConfig
) -> list[Any]:
    """Has the rewards of every shard shaped; returns futures in the order of the chains."""
    return [
        similarity_task.submit(
            place, chain.shard, chain.turns, scored, config.similarity, config.compute
        )
        for chain, scored in zip(chains, rewards, strict=True)
    ]


def gathered(
    chains: Sequence[Chain], *later: Sequence[Any]
) -> tuple[Trajectories, list[StageOutput]]:
    """Waits for a rollout and what was submitted after it.

    Returns:
        References to the whole rollout, and the outputs of the last of `later`, if any.
    """
    turns = [output for chain in chains for output in chain.turns]
    executions = [output for chain in chains for output in chain.executions]
    # In the order of their dependence, so that the cause of a failure is met first.
    results = results_of([*turns, *executions, *(output for part in later for output in part)])
    said, seen = results[: len(turns)], results[len(turns) : len(turns) + len(executions)]
    last = len(later[-1]) if later else 0
    return Trajectories.of(_prompts_of(chains), said, seen), results[len(results) - last :]


def results_of(outputs: Sequence[Any]) -> list[Any]:
    """Waits for all futures and returns their results, or raises what the first failing one did.

    A task whose input failed never ran; it says nothing about the cause and is passed over.
    Outputs that are there already are returned as they are.
    """
    futures = [output for output in outputs if isinstance(output, PrefectFuture)]
    wait(futures)
    for future in futures:
        if future.state.is_failed() or future.state.is_crashed():
            future.result()
    return [o.result() if isinstance(o, PrefectFuture) else o for o in outputs]


def _prompts_of(chains: Iterable[Chain]) -> list[TableRef]:
    """Returns the prompts of each round, once."""
    return list({chain.prompts.uri: chain.prompts for chain in chains}.values())
