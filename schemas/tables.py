"""What a row is: one dataframely schema a table, with its grain, key and column meanings.

Every table carries the part of the key (task_id, sample_index, turn_index) that its grain
needs. `run`, `iteration`, `split` and `shard` are not columns of the files: they are hive
partitions of the path, so that one stored file can serve several runs. Null means "does not
apply" or "not known" and is never a stand-in for zero.

Each column carries its meaning in its metadata; the page on tables is made of them. Columns
marked as measured hold timings: they are stored, but no later stage run depends on them.
"""

from dataclasses import dataclass

import dataframely as dy
import polars as pl

from schemas.categories import (
    Excluded,
    ExecutionStatus,
    FinishReason,
    GradingMethod,
    ParseError,
    Shaping,
    Verdict,
)
from schemas.cold_start_tables import ColdStartExamples, ColdStartUpdates, Demonstrations
from schemas.columns import category
from schemas.reward_components import COMPONENTS
from schemas.update_tables import GradientNoise, OptimisationFaults, TurnUpdates, Updates

GROUP_KEY = ("task_id",)
TRAJECTORY_KEY = ("task_id", "sample_index")
TURN_KEY = ("task_id", "sample_index", "turn_index")


class Problems(dy.Schema):
    """A problem set, one row a task, before any prompt is made of it."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Identifier, unique in the set."})
    problem = dy.String(metadata={"doc": "Problem text shown to the policy."})
    answer = dy.String(metadata={"doc": "Gold answer; never reaches the sandbox."})
    source = dy.String(metadata={"doc": "Where the problem comes from: a family or a file."})
    level = dy.Int32(nullable=True, metadata={"doc": "Difficulty as the source states it."})


class RejectedProblems(dy.Schema):
    """Grain: row of a problem file that cannot be used."""

    row = dy.Int64(primary_key=True, min=1, metadata={"doc": "Row of the file, from 1."})
    reason = dy.String(metadata={"doc": "Why it cannot be used."})
    text = dy.String(metadata={"doc": "Its start."})


class RejectedTrajectories(RejectedProblems):
    """Grain: row of an imported file that cannot be used."""


class ForeignLabels(dy.Schema):
    """Grain: imported trajectory. Where it stood, and what its own file says it is worth."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the trajectory."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Trajectory in its group."})
    row = dy.Int64(min=1, metadata={"doc": "Row of the file, from 1."})
    score = dy.Float64(
        nullable=True,
        metadata={"doc": "Label or reward of the file, 1 for a true one; null without one."},
    )
    outputs_left_out = dy.Int32(
        min=0, metadata={"doc": "Outputs shown after turns without a call: no table holds them."}
    )


class Prompts(Problems):
    """Grain: group. The problems of one iteration, with their prompts."""

    prompt_token_ids = dy.List(
        dy.Int32(),
        metadata={"doc": "[prompt_tokens] the prompt as the policy sees it; empty if imported."},
    )
    round = dy.Int32(
        min=0,
        metadata={
            "doc": "0; from 1 if asked in place of groups of earlier rounds whose outcomes are all "
            "equal."
        },
    )


class Turns(dy.Schema):
    """Grain: turn. What the policy generated."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the turn."})
    sample_index = dy.Int32(
        primary_key=True, min=0, metadata={"doc": "Trajectory within its group, from 0."}
    )
    turn_index = dy.Int32(
        primary_key=True, min=0, metadata={"doc": "Turn within its trajectory, from 0."}
    )
    text = dy.String(metadata={"doc": "Generated text, control tags included."})
    token_ids = dy.List(
        dy.Int32(),
        metadata={"doc": "[turn_tokens] tokens as sampled and trained on; empty if imported."},
    )
    logprobs = dy.List(
        dy.Float32(),
        metadata={"doc": "[turn_tokens] natural log-probability of each token when sampled."},
    )
    finish_reason = category(FinishReason, "Why generation stopped.")
    reasoning = dy.String(metadata={"doc": "Text before the tool call or answer."})
    code = dy.String(nullable=True, metadata={"doc": "Code of the tool call; null without one."})
    answer = dy.String(nullable=True, metadata={"doc": "Final answer; null without one."})
    parse_error = category(
        ParseError, "What is wrong with the call or answer; null if nothing.", nullable=True
    )
    temperature = dy.Float32(
        min=0, metadata={"doc": "Sampling temperature; 0 is greedy, with log-probabilities at 1."}
    )
    top_p = dy.Float32(
        min_exclusive=0,
        max=1,
        metadata={"doc": "Share of probability that was sampled from; 1 is all of it."},
    )
    top_k = dy.Int32(min=0, metadata={"doc": "Most tokens that were sampled from; 0 is all."})
    policy_version = dy.Int32(min=0, metadata={"doc": "Version of the policy that sampled."})
    seed = dy.Int64(metadata={"doc": "Seed of the turn's random stream."})

    @dy.rule()
    def one_logprob_a_token(cls) -> pl.Expr:
        """Every sampled token has its log-probability."""
        return pl.col("token_ids").list.len() == pl.col("logprobs").list.len()


class Executions(dy.Schema):
    """Grain: turn with code. What running the code did."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the turn."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Trajectory in its group."})
    turn_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Turn that held the code."})
    status = category(ExecutionStatus, "What happened, decided by the parent process.")
    stdout = dy.String(metadata={"doc": "Standard output, cut at the output limit."})
    stderr = dy.String(metadata={"doc": "Standard error, cut at the output limit."})
    exit_code = dy.Int32(nullable=True, metadata={"doc": "Exit code; null when killed."})
    wall_s = dy.Float64(nullable=True, metadata={"doc": "Wall time, seconds.", "measured": True})
    cpu_s = dy.Float64(
        nullable=True, metadata={"doc": "User and system CPU time, seconds.", "measured": True}
    )
    observation = dy.String(metadata={"doc": "Text shown to the policy."})
    observation_token_ids = dy.List(
        dy.Int32(), metadata={"doc": "[observation_tokens] inserted tokens; carry no loss."}
    )


class WorkTimes(dy.Schema):
    """Grain: stage run of a rollout. When it had the engine, or ran code."""

    shard = dy.Int32(primary_key=True, min=0, metadata={"doc": "Part of the groups, from 0."})
    turn_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Turn that was made or run."})
    began_at = dy.Datetime(
        time_unit="us",
        time_zone="UTC",
        metadata={"doc": "When the work began, after waiting for its turn.", "measured": True},
    )
    ended_at = dy.Datetime(
        time_unit="us", time_zone="UTC", metadata={"doc": "When it ended.", "measured": True}
    )
    turns = dy.Int64(min=0, metadata={"doc": "Turns generated, or executed."})
    tokens = dy.Int64(min=0, metadata={"doc": "Tokens generated, or inserted as observations."})


class GenerationTimes(WorkTimes):
    """Grain: stage run of a rollout. When it had the engine, and what that knew already."""

    prompt_tokens = dy.Int64(
        nullable=True,
        min=0,
        metadata={"doc": "Tokens of all contexts that were continued; null in files of schema 1."},
    )
    cached_tokens = dy.Int64(
        nullable=True,
        min=0,
        metadata={
            "doc": "Those of them found in the engine's prefix cache; null if it does not tell.",
            "measured": True,
        },
    )


class TurnRewards(dy.Schema):
    """Grain: turn. Every reward component in its own column, and their sum."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the turn."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Trajectory in its group."})
    turn_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Turn in its trajectory."})
    is_last = dy.Bool(metadata={"doc": "Whether the turn ends its trajectory."})
    verdict = category(Verdict, "Grading of the trajectory; null if excluded.", nullable=True)
    grading_method = category(
        GradingMethod,
        "What decided the verdict; null if excluded, and in files of schema 1.",
        nullable=True,
    )
    accuracy = dy.Float64(
        nullable=True,
        metadata={"doc": "1 on the last turn of a right trajectory, else 0; null if excluded."},
    )
    format = dy.Float64(max=0, metadata={"doc": "Penalty of an invalid tool call, or 0."})
    no_tool = dy.Float64(max=0, metadata={"doc": "Penalty of a first turn without call, or 0."})
    # A column for each component that is registered: the body of a class is a dictionary.
    vars().update({name: dy.Float64(metadata={"doc": doc}) for name, doc in COMPONENTS.items()})
    total = dy.Float64(
        nullable=True,
        metadata={"doc": "Turn reward r, the sum of the components; null if excluded."},
    )
    outcome = dy.Float64(
        nullable=True,
        metadata={"doc": "1 on every turn of a right trajectory, else 0; null if excluded."},
    )
    grpo_reward = dy.Float64(
        nullable=True,
        metadata={"doc": "min(accuracy, format), both 0 or 1, of the whole trajectory."},
    )
    state = dy.Int32(
        nullable=True,
        min=0,
        metadata={"doc": "Number within the group of what the environment has shown before."},
    )
    excluded = category(Excluded, "Why the turn is left out; null if it counts.", nullable=True)


class ShapedRewards(dy.Schema):
    """Grain: turn. The unshaped values beside the shaped ones."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the turn."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Trajectory in its group."})
    turn_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Turn in its trajectory."})
    shaping = category(Shaping, "What shaping did to the trajectory.")
    peers = dy.Int32(min=0, metadata={"doc": "Right trajectories of the group with code, |P|."})
    similarity_mean = dy.Float64(
        nullable=True, metadata={"doc": "Mean similarity to the peers; null if not shaped."}
    )
    similarity_max = dy.Float64(
        nullable=True, metadata={"doc": "Largest similarity to a peer; null if not shaped."}
    )
    accuracy = dy.Float64(nullable=True, metadata={"doc": "Accuracy component before shaping."})
    shaped_accuracy = dy.Float64(
        nullable=True, metadata={"doc": "Accuracy component after shaping; null if excluded."}
    )
    total = dy.Float64(nullable=True, metadata={"doc": "Turn reward before shaping."})
    shaped_total = dy.Float64(
        nullable=True, metadata={"doc": "Turn reward after shaping; null if excluded."}
    )
    outcome = dy.Float64(nullable=True, metadata={"doc": "As in turn_rewards."})
    grpo_reward = dy.Float64(nullable=True, metadata={"doc": "As in turn_rewards."})
    state = dy.Int32(nullable=True, min=0, metadata={"doc": "As in turn_rewards."})
    excluded = category(Excluded, "Why the turn is left out; null if it counts.", nullable=True)


class Advantages(dy.Schema):
    """Grain: turn. The credit of a turn, with its parts and the settings that made it."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the turn."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Trajectory in its group."})
    turn_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Turn in its trajectory."})
    reward = dy.Float64(
        nullable=True, metadata={"doc": "Reward the return was made of; null if not known."}
    )
    return_ = dy.Float64(
        alias="return", nullable=True, metadata={"doc": "Discounted return; null if excluded."}
    )
    baseline = dy.Float64(nullable=True, metadata={"doc": "What was subtracted; null if excluded."})
    scale = dy.Float64(
        nullable=True, metadata={"doc": "Divisor; null if excluded, or if returns do not vary."}
    )
    turn_advantage = dy.Float64(
        nullable=True,
        metadata={
            "doc": "Second part, of MT-GRPO, GiGPO and agreement; null without, or if it cannot "
            "vary."
        },
    )
    turn_weight = dy.Float64(nullable=True, metadata={"doc": "Weight of the second part."})
    advantage = dy.Float64(
        nullable=True,
        metadata={
            "doc": "(return - baseline) / scale, plus turn_weight * turn_advantage; a part that "
            "is null counts 0. Null if excluded."
        },
    )
    estimator = dy.String(metadata={"doc": "Name of the estimator."})
    gamma = dy.Float64(metadata={"doc": "Discount of the return."})
    normalise = dy.String(metadata={"doc": "Set over which baseline and scale were taken."})
    outcomes_equal = dy.Bool(
        nullable=True, metadata={"doc": "Whether all of the group that counts is right, or wrong."}
    )
    excluded = category(Excluded, "Why the turn is left out; null if it counts.", nullable=True)


class Evaluations(dy.Schema):
    """Grain: sample. Outcome of one trajectory on a benchmark problem."""

    benchmark = dy.String(primary_key=True, metadata={"doc": "Name of the benchmark."})
    task_id = dy.String(primary_key=True, metadata={"doc": "Problem."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Sample of the problem."})
    source = dy.String(metadata={"doc": "Family or file of the problem."})
    level = dy.Int32(nullable=True, metadata={"doc": "Difficulty as the source states it."})
    prediction = dy.String(nullable=True, metadata={"doc": "Final answer; null without one."})
    verdict = category(Verdict, "Grading; null if infrastructure failed.", nullable=True)
    correct = dy.Bool(
        nullable=True, metadata={"doc": "Whether right; null if infrastructure failed."}
    )
    turns = dy.Int32(min=1, metadata={"doc": "Turns of the trajectory."})
    tool_calls = dy.Int32(min=0, metadata={"doc": "Turns with code."})
    failed_tool_calls = dy.Int32(min=0, metadata={"doc": "Executions with another status than ok."})
    tokens = dy.Int64(min=0, metadata={"doc": "Generated tokens."})
    policy_version = dy.Int32(min=0, metadata={"doc": "Version of the policy evaluated."})


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One kind of table: its schema and that schema's version."""

    schema: type[dy.Schema]
    version: int

    @property
    def measured(self) -> list[str]:
        """Names of the columns that differ from run to run although the result is the same."""
        columns = self.schema.columns().items()
        return [name for name, c in columns if (c.metadata or {}).get("measured", False)]


TABLES: dict[str, Table] = {
    "problems": Table(schema=Problems, version=1),
    "rejected_problems": Table(schema=RejectedProblems, version=1),
    "prompts": Table(schema=Prompts, version=2),
    "rejected_trajectories": Table(schema=RejectedTrajectories, version=1),
    "foreign_labels": Table(schema=ForeignLabels, version=1),
    "turns": Table(schema=Turns, version=2),
    "executions": Table(schema=Executions, version=1),
    "generation_times": Table(schema=GenerationTimes, version=2),
    "execution_times": Table(schema=WorkTimes, version=1),
    "turn_rewards": Table(schema=TurnRewards, version=2),
    "shaped_rewards": Table(schema=ShapedRewards, version=2),
    "advantages": Table(schema=Advantages, version=2),
    "updates": Table(schema=Updates, version=2),
    "turn_updates": Table(schema=TurnUpdates, version=1),
    "optimisation_faults": Table(schema=OptimisationFaults, version=1),
    "gradient_noise": Table(schema=GradientNoise, version=1),
    "evaluations": Table(schema=Evaluations, version=1),
    "demonstrations": Table(schema=Demonstrations, version=1),
    "cold_start_updates": Table(schema=ColdStartUpdates, version=1),
    "cold_start_examples": Table(schema=ColdStartExamples, version=1),
}
"""Every table that a store can hold, by name. A changed schema needs a new version."""
