"""Rerun: stages of one iteration again, with changed settings or code, into a branch.

A branch is a run of its own that remembers where it came from. What stands before the first stage
is taken over as it is stored, whatever code made it: a changed reward rule costs no rollout. The
branch holds all that it builds on, so it can be trained on, exported, and outlive its origin,
which stays as it is.
"""

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.adoption import adopt, taken_over, taken_policy
from flows.artifacts import EventLog, publish_accuracy, publish_changes, publish_iteration
from flows.binding import Place
from flows.catalogue import ORDER, Scope
from flows.clusters import scaled_out
from flows.compare import diff
from flows.credit_tasks import advantages_task
from flows.device_limits import held, limits_of
from flows.events import listening
from flows.policies import stored_policy
from flows.resources import server_given_up_on_interrupt
from flows.rollouts import (
    Chain,
    ProblemSets,
    ask,
    gathered,
    results_of,
    sampling_of,
    shards_of,
    submit_rewards,
    submit_rollout,
    submit_rounds,
    submit_shaping,
)
from flows.sampling_tasks import execution_task, rollout_task
from flows.sessions import refuse_imported
from flows.stored_rollouts import (
    stored_chains,
    stored_turns,
    taken_prompts,
    taken_shards,
    taken_turns,
)
from flows.train import (
    SHARDS_AT_ONCE,
    evaluate_policy,
    load_problem_sets,
    sampler_of,
    update_policy,
)
from schemas.config import RunConfig
from schemas.errors import StoreError
from schemas.refs import CheckpointRef, StageOutput, TableRef
from storage import Store

Policies = Mapping[int, CheckpointRef | None]
"""Iteration to its policy; null where the source has none, which only some stages need."""


@flow(name="rerun", task_runner=SHARDS_AT_ONCE, persist_result=False)
def rerun(
    store: str,
    source: str,
    into: str,
    iteration: int,
    stage: str,
    config: RunConfig,
    until: str | None = None,
    refresh: bool = False,
) -> list[dict[str, Any]]:
    """Computes a stage of an iteration, and what depends on it, in the run `into`.

    Args:
        store: Folder or address of the store.
        source: Run that is branched.
        into: Run that receives the results; may be `source` itself for an evaluation.
        iteration: Iteration to run again.
        stage: First stage to compute.
        config: Settings of the branch.
        until: Last stage to compute; the same as `stage` computes it alone. Null computes all
            that depends on it within the iteration; an evaluation only if there was one.
        refresh: Whether to compute the first stage even if its result is stored.

    Returns:
        How the advantages differ from those of the source, as rows of `flows.compare.Diff.summary`;
        empty if they were not computed, or the source has none.

    Raises:
        StoreError: If the source lacks results that the rerun builds on.
    """
    scope = Scope.of(stage, until)
    old = Place(store=store, run=source, iteration=iteration, verify=config.compute.verify)
    new = old.model_copy(update={"run": into, "refresh": (stage,) if refresh else ()})
    log = EventLog()
    embeds = scope.computes("similarity") and config.similarity.measure == "embedding"
    learns = embeds or scope.computes("optimisation")
    with (
        listening(log.note),
        held(new, limits_of(config, samples=scope.samples, learns=learns)),
        scaled_out(config.compute),
        server_given_up_on_interrupt(),
    ):
        rerunning(old, new, scope, config)
    publish_iteration(new, log.take(iteration))
    changes: list[dict[str, Any]] = []
    had_credit = old.open().manifest(old.slot("advantages")) is not None
    if scope.computes("advantages") and had_credit and source != into:
        changes = diff(store, source, into, iteration=iteration, largest=0).summary.to_dicts()
        publish_changes(new, changes, source)
    if new.open().manifest(new.of_evaluation().slot("evaluation")) is not None:
        publish_accuracy(new)
    return changes


def rerunning(old: Place, new: Place, scope: Scope, config: RunConfig) -> None:
    """Does the work of `rerun`, stage by stage."""
    check_source(old.open(), old, scope, config)
    if not reads_problems(old, scope, config):
        # Training the branch needs them; their files may be gone by then.
        for was, place in ((old, new), (old.of_evaluation(), new.of_evaluation())):
            adopt(place, was.at(0).slot("problems"), place.at(0).slot("problems"))
    first = taken_policy(old.at(0), new.at(0))
    if scope.first == "evaluation":
        policy = taken_policy(old, new)
    else:
        taken = {
            number: taken_policy(old.at(number), new.at(number))
            for number in {old.iteration - 1, sampler_of(old.iteration, config)} - {0}
        }
        policies = {0: first, **taken}
        policy = _learn_again(old, new, scope, policies, config)
    if _evaluates(old, scope):
        problems = load_problem_sets(new.at(0), config, old.at(0))
        evaluate_policy(new, _needed(policy, old), _needed(first, old), problems, config)


def reads_problems(old: Place, scope: Scope, config: RunConfig) -> bool:
    """Says whether a rerun reads the problem sets."""
    return reads_training_problems(scope, config) or _evaluates(old, scope)


def reads_training_problems(scope: Scope, config: RunConfig) -> bool:
    """Says whether a rerun picks problems, in the first round or in further ones."""
    asks_again = asks_rounds(scope) and config.rollout.resample_rounds > 0
    return scope.computes("prompts") or asks_again


def asks_rounds(scope: Scope) -> bool:
    """Says whether a rerun asks its own further rounds: where it samples and scores.

    Else those of the source are taken over as they are, also where other rewards would have
    asked more or fewer: no turn is sampled for a changed reward rule.
    """
    samples = scope.computes("rollout") or scope.computes("execution")
    return samples and scope.computes("turn_rewards")


def _evaluates(old: Place, scope: Scope) -> bool:
    was_evaluated = old.open().manifest(old.of_evaluation().slot("evaluation")) is not None
    return scope.first == "evaluation" or (scope.computes("evaluation") and was_evaluated)


def check_source(store: Store, old: Place, scope: Scope, config: RunConfig) -> None:
    """Refuses a rerun of what there is not, before anything is written.

    Raises:
        StoreError: If so, saying what is missing.
    """
    first, last = ORDER.index(scope.first), ORDER.index(scope.last)
    if first < ORDER.index("turn_rewards") or last > ORDER.index("advantages"):
        refuse_imported(store, old.run)
    if scope.first != "evaluation":
        if old.iteration == 0:
            raise StoreError("iteration 0 holds only the cold start: it has no stage to rerun")
        if store.manifest(old.slot("prompts")) is None:
            raise StoreError(f"run {old.run} holds no rollout of iteration {old.iteration}")
        for stage in ORDER[: ORDER.index(scope.first)]:
            if stage == "execution":
                continue  # with a single turn there is none
            # The first shard and turn stand for all.
            shard = 0 if stage in ("rollout", "turn_rewards", "similarity") else None
            turn = 0 if stage == "rollout" else None
            if store.manifest(old.slot(stage, shard=shard, turn=turn)) is None:
                raise StoreError(
                    f"run {old.run} holds no {stage} of iteration {old.iteration}: rerun an "
                    "earlier stage"
                )
    _check_policies(store, old, scope, config)


def _check_policies(store: Store, old: Place, scope: Scope, config: RunConfig) -> None:
    try:
        for iteration in _policies_needed(old.iteration, scope, config):
            stored_policy(store, old.run, iteration)
    except StoreError as error:
        if scope.first in ("turn_rewards", "similarity", "advantages"):
            raise StoreError(f"{error}; with --until advantages no policy is needed") from error
        raise


def _policies_needed(iteration: int, scope: Scope, config: RunConfig) -> list[int]:
    """Returns the iterations whose policies a rerun builds on; 0 is the cold start."""
    if scope.first == "evaluation":
        return [0, iteration]
    # The tokenizer is that of the cold start.
    needed = [0] if ORDER.index(scope.first) <= ORDER.index("execution") else []
    samples = scope.first == "execution" and not scope.is_one_stage
    if samples or scope.computes("rollout"):
        needed.append(sampler_of(iteration, config))
    if scope.computes("optimisation"):
        needed += [iteration - 1] + ([0] if config.optimisation.reference_kl else [])
    return needed


def _learn_again(
    old: Place,
    new: Place,
    scope: Scope,
    policies: Policies,
    config: RunConfig,
) -> CheckpointRef | None:
    """Computes the stages of the scope; returns the new policy, null if it ends before."""
    problems: ProblemSets = {"train": None}
    if reads_training_problems(scope, config):
        problems = load_problem_sets(new.at(0), config, old.at(0))
    if scope.computes("prompts"):
        prompts = ask(new, _needed(policies[0], old), problems, config)
    else:
        prompts = taken_prompts(old, new, 0)
    if not scope.needs("rollout"):
        return None
    if asks_rounds(scope):
        sampler = _needed(policies[sampler_of(old.iteration, config)], old)
        begun = _begun(old, new, prompts, policies, config)
        first = _needed(policies[0], old)
        chains, rewards = submit_rounds(new, begun, problems, sampler, first, config)
    else:
        chains = _chains(old, new, scope, prompts, policies, config)
        rewards = _rewards(old, new, scope, chains, config)
    shaped: list[StageOutput] = []
    if scope.computes("similarity"):
        shaped = submit_shaping(new, chains, rewards, config)
    elif scope.needs("similarity"):
        shaped = taken_shards(old, new, "similarity", chains)
    rolled_out, shaped = gathered(chains, rewards, shaped)
    if not scope.needs("advantages"):
        return None
    if scope.computes("advantages"):
        advantages = advantages_task(new, shaped, config.advantages)
    else:
        advantages = taken_over(old.slot("advantages"), new, new.slot("advantages"))
    if not scope.computes("optimisation"):
        return None
    before = _needed(policies[old.iteration - 1], old)
    reference = _needed(policies[0], old) if config.optimisation.reference_kl else None
    return update_policy(new, rolled_out, advantages, before, reference, config)


def _rewards(
    old: Place, new: Place, scope: Scope, chains: list[Chain], config: RunConfig
) -> list[StageOutput]:
    """Returns the rewards of every shard, computed or taken over; none if nothing needs them."""
    if scope.computes("turn_rewards"):
        return submit_rewards(new, chains, config)
    return taken_shards(old, new, "turn_rewards", chains) if scope.needs("turn_rewards") else []


def _begun(
    old: Place, new: Place, prompts: TableRef, policies: Policies, config: RunConfig
) -> list[Chain]:
    """Has the first round of a rollout made again."""
    sampler = _needed(policies[sampler_of(old.iteration, config)], old)
    shards = shards_of(config.rollout.shards, prompts.rows)
    return submit_rollout(new, prompts, shards, sampler, _needed(policies[0], old), config)


def _chains(
    old: Place,
    new: Place,
    scope: Scope,
    prompts: TableRef,
    policies: Policies,
    config: RunConfig,
) -> list[Chain]:
    """Returns the rollout: taken over, begun again, or one of its two stages alone."""
    if scope.is_one_stage and scope.first == "rollout":
        sampler = _needed(policies[sampler_of(old.iteration, config)], old)
        return _sampled_alone(old, new, sampler, config)
    if scope.is_one_stage and scope.first == "execution":
        return _executed_alone(old, new, _needed(policies[0], old), config)
    if scope.computes("rollout") or scope.computes("execution"):
        return _begun(old, new, prompts, policies, config)
    return [
        Chain(
            taken_prompts(old, new, stored.round_index),
            stored.shard,
            taken_turns(old, new, "rollout", stored.shard, stored.turns),
            taken_turns(old, new, "execution", stored.shard, stored.turns - 1),
        )
        for stored in stored_chains(old)
    ]


def _sampled_alone(old: Place, new: Place, policy: CheckpointRef, config: RunConfig) -> list[Chain]:
    """Samples every turn again, each on the turns and observations that are stored before it."""
    sampling = sampling_of(new, config)
    chains = []
    for stored in stored_chains(old):
        shard, prompts = stored.shard, taken_prompts(old, new, stored.round_index)
        said = stored_turns(old, "rollout", shard, stored.turns)
        seen = taken_turns(old, new, "execution", shard, stored.turns - 1)
        turns = [
            rollout_task.submit(
                new, shard, turn, prompts, said[:turn], seen[:turn], policy, sampling
            )
            for turn in range(stored.turns)
        ]
        chains.append(Chain(prompts, shard, turns, seen))
    results_of([turn for chain in chains for turn in chain.turns])
    return chains


def _executed_alone(
    old: Place, new: Place, tokenizer: CheckpointRef, config: RunConfig
) -> list[Chain]:
    """Executes the code of every stored turn again."""
    chains = []
    for stored in stored_chains(old):
        said = taken_turns(old, new, "rollout", stored.shard, stored.turns)
        executions = [
            execution_task.submit(
                new,
                stored.shard,
                turn,
                said[: turn + 1],
                tokenizer,
                config.execution,
                config.rollout.dialogue,
            )
            for turn in range(stored.turns - 1)
        ]
        prompts = taken_prompts(old, new, stored.round_index)
        chains.append(Chain(prompts, stored.shard, said, executions))
    results_of([execution for chain in chains for execution in chain.executions])
    return chains


def _needed(policy: CheckpointRef | None, place: Place) -> CheckpointRef:
    if policy is None:
        raise StoreError(
            f"run {place.run} lacks a policy that iteration {place.iteration} builds on: train it "
            "that far, or rerun its optimisation"
        )
    return policy
