"""The training flow: cold start, then iterations of rollout, credit and optimisation.

The flow only names what depends on what; the tasks decide whether to compute. The chains of the
shards share nothing up to the shaped rewards, so one shard executes code while another generates
and a third is scored.
"""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
from prefect import flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.artifacts import EventLog, publish_accuracy, publish_iteration
from flows.binding import Place, freeze_code
from flows.catalogue import is_evaluated
from flows.clusters import scaled_out
from flows.credit_tasks import (
    advantages_task,
    evaluation_task,
    optimisation_task,
)
from flows.device_limits import held, limits_of
from flows.events import listening
from flows.kept_policies import PolicyKeeper
from flows.outside import problem_sections
from flows.policies import made_policy
from flows.resources import server_given_up_on_interrupt
from flows.rollouts import (
    Chain,
    ProblemSets,
    ask,
    gathered,
    shards_of,
    submit_rollout,
    submit_rounds,
    submit_shaping,
)
from flows.sampling_tasks import cold_start_task, problems_task
from flows.stage_tasks import planner_at_work
from flows.task_inputs import Trajectories, UpdateStart
from schemas.config import RunConfig
from schemas.errors import ProblemFileError, StageError
from schemas.refs import CheckpointRef, StageOutput
from schemas.tables import TURN_KEY
from stages.randomness import derive_seed

freeze_code()

SHARDS_AT_ONCE: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=8)
"""Tasks that wait for their inputs hold a thread, so there are more threads than cores."""


@flow(name="train", task_runner=SHARDS_AT_ONCE, persist_result=False)
def train(store: str, run: str, config: RunConfig, refresh: tuple[str, ...] = ()) -> CheckpointRef:
    """Trains one run from the cold start, or a branch from its iteration, to the last iteration.

    Every stage run that is stored already is verified and used, so a run that was interrupted
    continues after its last finished stage.

    Args:
        store: Folder or address of an existing store.
        run: Name of the run.
        config: Everything that decides the result.
        refresh: Stages to compute even if their results are stored.

    Returns:
        Reference of the last policy.
    """
    place = Place(
        store=store, run=run, iteration=0, verify=config.compute.verify, refresh=tuple(refresh)
    )
    log = EventLog()

    keeper = PolicyKeeper(config.compute.keep_policies)

    def on_iteration(done: Place) -> None:
        note_iteration(done)
        keeper.free(done)
        publish_iteration(done, log.take(done.iteration))

    with (
        listening(log.note),
        held(place, limits_of(config, samples=True, learns=True)),
        scaled_out(config.compute),
        server_given_up_on_interrupt(),
    ):
        policy = training(place, config, on_iteration)
    publish_accuracy(place)
    return policy


def note_iteration(done: Place) -> None:
    """Notes in the record of a run that an iteration is done."""
    store = done.open()
    record = store.run_record(done.run)
    iterations = max(record.iterations_done, done.iteration)
    store.save_run(record.model_copy(update={"iterations_done": iterations, "status": "running"}))


def training(
    place: Place, config: RunConfig, on_iteration: Callable[[Place], None]
) -> CheckpointRef:
    """Trains a run; `on_iteration` is told the place of each iteration that is done."""
    problems = load_problem_sets(place.at(0), config)
    begin = branched_at(place)
    if begin is None:
        begin, first = 0, start(place.at(0), config)
        policies = {0: first}
        evaluate_policy(place.at(0), first, first, problems, config)
    else:
        store = place.open()
        held = {0, begin, sampler_of(begin + 1, config)}
        policies = {number: made_policy(store, place.run, number) for number in held}
        first = policies[0]

    def roll_out(iteration: int) -> list[Chain]:
        here = place.at(iteration)
        prompts = ask(here, first, problems, config)
        shards = shards_of(config.rollout.shards, prompts.rows)
        sampler = policies[sampler_of(iteration, config)]
        return submit_rollout(here, prompts, shards, sampler, first, config)

    ahead: list[Chain] | None = None
    for iteration in range(begin + 1, config.iterations + 1):
        here = place.at(iteration)
        sampler = policies[sampler_of(iteration, config)]
        chains, rewards = submit_rounds(
            here, ahead or roll_out(iteration), problems, sampler, first, config
        )
        rolled_out, advantages = credit(here, chains, rewards, config)
        is_last = iteration == config.iterations
        # Submitted once nothing of this iteration waits for a thread any more.
        ahead = roll_out(iteration + 1) if config.rollout.stale and not is_last else None
        policies[iteration] = update_policy(
            here, rolled_out, advantages, policies[iteration - 1], first, config
        )
        if is_evaluated(iteration, config):
            evaluate_policy(here, policies[iteration], first, problems, config)
        on_iteration(here)
    return policies[max(policies)]


def sampler_of(iteration: int, config: RunConfig) -> int:
    """Returns the iteration whose policy samples the rollout of an iteration."""
    return max(iteration - (2 if config.rollout.stale else 1), 0)


def branched_at(place: Place) -> int | None:
    """Returns the iteration that a branch was rerun at; null for a run of its own."""
    store = place.open()
    parent = store.run_record(place.run).parent if store.has_run(place.run) else None
    return None if parent is None else parent.iteration


def load_problem_sets(first: Place, config: RunConfig, known: Place | None = None) -> ProblemSets:
    """Returns the stored problem sets by split; null stands for the embedded families.

    Args:
        first: Iteration 0 of the run.
        config: Its settings.
        known: The same of the run that is branched; null for a run of its own.

    Raises:
        ProblemFileError: If a file cannot be used, or the sets share a problem.
    """
    sets: ProblemSets = {"train": None, "evaluation": None}
    sections = problem_sections(config)
    known = known or first
    for place, stored in ((first, known), (first.of_evaluation(), known.of_evaluation())):
        section = sections[place.split]
        if section.path is not None:
            sets[place.split] = problems_task(place, section, stored).tables["problems"]
    if planner_at_work() is None:
        refuse_shared_problems(first, sets)
    return sets


def refuse_shared_problems(place: Place, sets: ProblemSets) -> None:
    """Refuses to evaluate on problems that are trained on, by their text.

    Raises:
        ProblemFileError: If the sets share a problem; the first is named.
    """
    train, held_out = sets["train"], sets["evaluation"]
    if train is None or held_out is None:
        return
    words = pl.col("problem").str.to_lowercase().str.strip_chars().str.replace_all(r"\s+", " ")
    asked, kept = (place.open().scan(ref).with_columns(words=words) for ref in (train, held_out))
    shared = kept.join(asked, on="words", how="semi").select("task_id").collect()
    if len(shared):
        raise ProblemFileError(
            f"{len(shared)} held-out problems are training problems too, first "
            f"{shared['task_id'][0]}: take them out of one of the files"
        )


def start(place: Place, config: RunConfig) -> CheckpointRef:
    """Returns the policy of the cold start."""
    return policy_of(cold_start_task(place, config))


def policy_of(output: StageOutput) -> CheckpointRef:
    """Returns the policy that a stage made."""
    if output.checkpoint is None:
        raise RuntimeError("the stage stored no policy")
    return output.checkpoint


def credit(
    place: Place, chains: Sequence[Chain], rewards: Sequence[Any], config: RunConfig
) -> tuple[Trajectories, StageOutput]:
    """Shapes the rewards, shard by shard, and credits the turns.

    Returns:
        References to the whole rollout, and its advantages.
    """
    rolled_out, shaped = gathered(chains, rewards, submit_shaping(place, chains, rewards, config))
    return rolled_out, advantages_task(place, shaped, config.advantages)


def update_policy(
    place: Place,
    rolled_out: Trajectories,
    advantages: StageOutput,
    policy: CheckpointRef,
    first: CheckpointRef | None,
    config: RunConfig,
) -> CheckpointRef:
    """Returns the policy after the optimiser steps of an iteration.

    Args:
        place: The iteration.
        rolled_out: Its rollout.
        advantages: Its credit.
        policy: What the update begins with.
        first: Policy of iteration 0, the reference; needed only if `reference_kl` is not 0.
        config: Settings of the run.

    Raises:
        StageError: If a guard stopped the update.
    """
    start = UpdateStart(
        policy=policy,
        reference=first if config.optimisation.reference_kl else None,
        sampler_version=sampler_of(place.iteration, config),
        iterations=config.iterations,
        seed=derive_seed(config.seed, "optimisation", place.iteration),
    )
    output = optimisation_task(
        place,
        rolled_out,
        advantages.tables["advantages"],
        start,
        config.optimisation,
        config.compute,
    )
    refuse_stopped_update(place, output)
    return policy_of(output)


def refuse_stopped_update(place: Place, output: StageOutput) -> None:
    """Tells why an update made no policy.

    Raises:
        StageError: If a guard stopped it, naming the first turn at fault and what to do.
    """
    faults = output.tables.get("optimisation_faults")
    if output.checkpoint is not None or faults is None or not faults.rows:
        return
    turn = place.open().read(faults).row(0, named=True)
    key = tuple(turn[name] for name in TURN_KEY)
    value = "" if turn["value"] is None else f" of {turn['value']:.3g} nats a token"
    raise StageError(
        f"the update of iteration {place.iteration} was stopped before step {turn['step']}: "
        f"{turn['reason']}{value} at turn {key}, one of {faults.rows}; they are in the table "
        f"optimisation_faults. Go on in a branch: turnledger rerun optimisation --run {place.run} "
        f"--iteration {place.iteration} --into NAME --set learning_rate=..."
    )


def evaluate_policy(
    place: Place,
    policy: CheckpointRef,
    first: CheckpointRef,
    problems: ProblemSets,
    config: RunConfig,
) -> StageOutput:
    """Evaluates a policy on held-out problems."""
    place = place.of_evaluation()
    prompts = ask(place, first, problems, config)
    shards = shards_of(config.evaluation.shards, prompts.rows)
    rolled_out, _ = gathered(submit_rollout(place, prompts, shards, policy, first, config))
    return evaluation_task(place, rolled_out, config.evaluation, config.turn_rewards.grading_time_s)
