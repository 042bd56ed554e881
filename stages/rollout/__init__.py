"""Rollout: one turn for every trajectory that is still open."""

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.categories import ExecutionStatus, FinishReason
from schemas.config import RolloutConfig
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, Executions, Prompts, Turns
from stages.dialogue import Dialogue
from stages.randomness import turn_seeds
from stages.rollout.engine import Engine, Requests

__all__ = ["Engine", "roll_out_turn"]


def roll_out_turn(  # noqa: PLR0913, what decides a turn
    prompts: dy.DataFrame[Prompts],
    turns: dy.DataFrame[Turns],
    executions: dy.DataFrame[Executions],
    *,
    engine: Engine,
    dialogue: Dialogue,
    config: RolloutConfig,
    seed: int,
    turn_index: int,
    first_sample: int = 0,
) -> dy.DataFrame[Turns]:
    """Samples turn `turn_index` of every open trajectory.

    A trajectory is open at turn 0, and later if its last turn called the tool and the call was
    executed. One whose execution failed for reasons outside the policy ends there: what would
    follow is no observation of the world.

    Args:
        prompts: Groups to roll out.
        turns: All earlier turns of these groups; empty at turn 0.
        executions: Their executions.
        engine: Samples from the policy.
        dialogue: Format of the dialogue, for the policy's tokenizer.
        config: Samples a group, limits and temperature.
        seed: Seed of this rollout; the same one for every turn of it.
        turn_index: Turn to sample, from 0.
        first_sample: Index of the first sample of each group. A sample is the same whatever
            others are asked beside it.

    Returns:
        One row an open trajectory, sorted by key; none if all have ended.
    """
    contexts = (
        _first_contexts(prompts, range(first_sample, first_sample + config.samples))
        if turn_index == 0
        else _later_contexts(prompts, turns, executions, turn_index)
    ).sort(TRAJECTORY_KEY)
    if contexts.is_empty():
        return Turns.create_empty()
    room = _room(contexts, engine.max_context_tokens, config.max_trajectory_tokens)
    limits = np.minimum(config.max_turn_tokens, np.maximum(room, 0))
    fits = limits > 0
    ids = contexts["context"].to_list()
    sample_index = contexts["sample_index"].to_numpy().astype(np.int64)
    seeds = turn_seeds(seed, contexts["task_id"].to_list(), sample_index, turn_index)
    generated = engine.generate(
        Requests(
            contexts=[ids[i] for i in np.flatnonzero(fits)],
            seeds=seeds[fits],
            max_new_tokens=limits[fits],
            stop_ids=dialogue.stop_ids,
            stop_strings=dialogue.stop_strings,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
        )
    )
    sampled = pl.DataFrame(
        {
            "row": np.flatnonzero(fits),
            "token_ids": generated.token_ids,
            "logprobs": generated.logprobs,
        },
        schema={"row": pl.UInt32, "token_ids": pl.List(pl.Int32), "logprobs": pl.List(pl.Float32)},
    )
    frame = (
        contexts.select("task_id", pl.col("sample_index"))
        .with_row_index("row")
        .join(sampled.with_columns(pl.col("row").cast(pl.UInt32)), on="row", how="left")
        .with_columns(
            pl.col("token_ids", "logprobs").fill_null([]),
            turn_index=pl.lit(turn_index, pl.Int32),
            temperature=pl.lit(config.temperature, pl.Float32),
            top_p=pl.lit(config.top_p, pl.Float32),
            top_k=pl.lit(config.top_k, pl.Int32),
            policy_version=pl.lit(generated.policy_version, pl.Int32),
            seed=pl.Series(seeds, dtype=pl.Int64),
            limit=pl.Series(np.where(room < config.max_turn_tokens, "context", "length")),
        )
    )
    frame = frame.with_columns(
        text=pl.Series(dialogue.decode_turns(frame["token_ids"].to_list()), dtype=pl.String),
    )
    frame = frame.with_columns(dialogue.parse_turns(frame).get_columns())
    return Turns.validate(frame.select(Turns.column_names()))


def _room(
    contexts: pl.DataFrame, max_context_tokens: int, max_trajectory_tokens: int | None
) -> NDArray[np.int64]:
    """Returns how many tokens each trajectory may still have, [rows]; none or fewer if full."""
    length = pl.col("context").list.len().cast(pl.Int64)
    room = max_context_tokens - length
    if max_trajectory_tokens is not None:
        room = pl.min_horizontal(room, max_trajectory_tokens - (length - pl.col("prompt_tokens")))
    return contexts.select(room).to_series().to_numpy()


def _first_contexts(prompts: dy.DataFrame[Prompts], samples: range) -> pl.DataFrame:
    return prompts.select(
        "task_id",
        pl.lit(list(samples), pl.List(pl.Int32)).alias("sample_index"),
        pl.col("prompt_token_ids").alias("context"),
        prompt_tokens=pl.col("prompt_token_ids").list.len().cast(pl.Int64),
    ).explode("sample_index")


def _later_contexts(
    prompts: dy.DataFrame[Prompts],
    turns: dy.DataFrame[Turns],
    executions: dy.DataFrame[Executions],
    turn_index: int,
) -> pl.DataFrame:
    """Joins prompt, turns and observations of open trajectories, token by token as they were."""
    history = turns.join(executions, on=TURN_KEY, how="left")
    still_open = history.filter(
        pl.col("turn_index") == turn_index - 1,
        pl.col("finish_reason") == FinishReason.CODE.value,
        pl.col("status").is_not_null(),
        pl.col("status") != ExecutionStatus.INFRASTRUCTURE.value,
    ).select(TRAJECTORY_KEY)
    said = (
        history.join(still_open, on=TRAJECTORY_KEY, how="semi")
        .sort(TURN_KEY)
        .select(
            *TRAJECTORY_KEY,
            said=pl.concat_list("token_ids", "observation_token_ids"),
        )
        .group_by(TRAJECTORY_KEY, maintain_order=True)
        .agg(pl.col("said").explode())
    )
    return said.join(prompts.select("task_id", "prompt_token_ids"), on="task_id").select(
        *TRAJECTORY_KEY,
        context=pl.concat_list("prompt_token_ids", "said"),
        prompt_tokens=pl.col("prompt_token_ids").list.len().cast(pl.Int64),
    )
