"""Trajectories as ragged arrays: the stored token ids, never text encoded anew."""

from dataclasses import dataclass

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.errors import TurnledgerError
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, Advantages, Executions, Prompts, Turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Trajectories end to end; the tokens of trajectory i are `offsets[i]` to `offsets[i + 1]`.

    For a prompt of two tokens, a turn of two and an observation of one, `trained` reads
    `[0, 0, 1, 1, 0]` if another trained turn follows. What stands after the last trained token
    of a trajectory is left out: nothing learns from it.
    """

    token_ids: NDArray[np.int64]  # [tokens]
    trained: NDArray[np.bool_]  # [tokens] sampled by the policy, with an advantage
    logprobs: NDArray[np.float32]  # [tokens] when sampled; 0 where not trained
    advantages: NDArray[np.float32]  # [tokens] of the token's turn; 0 where not trained
    temperatures: NDArray[np.float32]  # [trajectories] of the sampling; never 0
    top_ps: NDArray[np.float32]  # [trajectories] likewise; 1 for all tokens
    top_ks: NDArray[np.int64]  # [trajectories] likewise; 0 for all tokens
    prompt_lengths: NDArray[np.int64]  # [trajectories] first tokens that are the prompt
    offsets: NDArray[np.int64]  # [trajectories + 1]

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[trajectories] tokens of each."""
        return np.diff(self.offsets)


def make_batch(
    prompts: dy.DataFrame[Prompts],
    turns: dy.DataFrame[Turns],
    executions: dy.DataFrame[Executions],
    advantages: dy.DataFrame[Advantages],
) -> Batch:
    """Lays out every trajectory that has at least one sampled token with an advantage.

    Raises:
        TurnledgerError: If advantages and turns are not of the same turns, a turn has no prompt,
            or an advantage is not a finite number; the key of the first such turn is named.
    """
    _refuse_strangers(prompts, turns, advantages)
    history = turns.join(executions, on=TURN_KEY, how="left").join(
        advantages.select(*TURN_KEY, "advantage"), on=TURN_KEY
    )
    last_taught = (
        history.filter(pl.col("advantage").is_not_null(), pl.col("token_ids").list.len() > 0)
        .group_by(TRAJECTORY_KEY)
        .agg(last_taught=pl.col("turn_index").max())
    )
    taught = last_taught.select(TRAJECTORY_KEY)
    # The last observation may have outgrown the context, which is why nothing was sampled after.
    history = (
        history.join(last_taught, on=TRAJECTORY_KEY)
        .filter(pl.col("turn_index") <= pl.col("last_taught"))
        .with_columns(
            pl.when(pl.col("turn_index") < pl.col("last_taught")).then("observation_token_ids")
        )
    )
    sampled, inserted = pl.col("token_ids").list.len(), pl.col("observation_token_ids").list.len()
    tokens_of_turns = history.sort(TURN_KEY).select(
        *TRAJECTORY_KEY,
        "turn_index",
        token_ids=pl.concat_list("token_ids", pl.col("observation_token_ids").fill_null([])),
        logprobs=pl.concat_list("logprobs", pl.lit(0, pl.Float32).repeat_by(inserted.fill_null(0))),
        advantages=pl.concat_list(
            pl.col("advantage").cast(pl.Float32).fill_null(0).repeat_by(sampled),
            pl.lit(0, pl.Float32).repeat_by(inserted.fill_null(0)),
        ),
        trained=pl.concat_list(
            pl.col("advantage").is_not_null().repeat_by(sampled),
            pl.lit(False).repeat_by(inserted.fill_null(0)),
        ),
    )
    length = pl.col("prompt_token_ids").list.len()
    tokens_of_prompts = taught.join(prompts, on="task_id").select(
        *TRAJECTORY_KEY,
        turn_index=pl.lit(-1, pl.Int32),
        token_ids="prompt_token_ids",
        logprobs=pl.lit(0, pl.Float32).repeat_by(length),
        advantages=pl.lit(0, pl.Float32).repeat_by(length),
        trained=pl.lit(False).repeat_by(length),
    )
    tokens = (
        pl.concat([tokens_of_prompts, tokens_of_turns])
        .sort(TURN_KEY)
        .explode("token_ids", "logprobs", "advantages", "trained", empty_as_null=False)
    )
    counts = tokens.group_by(TRAJECTORY_KEY, maintain_order=True).agg(
        tokens=pl.len(), prompt=(pl.col("turn_index") < 0).sum()
    )
    sampling = (
        turns.join(taught, on=TRAJECTORY_KEY, how="semi")
        .group_by(TRAJECTORY_KEY)
        .agg(pl.col("temperature", "top_p", "top_k").first())
        .sort(TRAJECTORY_KEY)
        # Greedy tokens have the log-probabilities of the whole distribution at temperature 1.
        .select(
            pl.when(pl.col("temperature") > 0)
            .then("temperature")
            .otherwise(1)
            .alias("temperature"),
            pl.when(pl.col("temperature") > 0).then("top_p").otherwise(1).alias("top_p"),
            pl.when(pl.col("temperature") > 0).then("top_k").otherwise(0).alias("top_k"),
        )
    )
    trained = tokens["trained"].to_numpy()
    return Batch(
        token_ids=tokens["token_ids"].to_numpy().astype(np.int64),
        trained=trained,
        logprobs=np.where(trained, tokens["logprobs"].to_numpy(), np.float32(0)),
        advantages=tokens["advantages"].to_numpy(),
        temperatures=sampling["temperature"].to_numpy().astype(np.float32),
        top_ps=sampling["top_p"].to_numpy().astype(np.float32),
        top_ks=sampling["top_k"].to_numpy().astype(np.int64),
        prompt_lengths=counts["prompt"].to_numpy().astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts["tokens"].to_numpy())]).astype(np.int64),
    )


def _refuse_strangers(
    prompts: dy.DataFrame[Prompts],
    turns: dy.DataFrame[Turns],
    advantages: dy.DataFrame[Advantages],
) -> None:
    strangers = turns.join(prompts, on="task_id", how="anti").head(1)
    if len(strangers):
        raise TurnledgerError(f"a turn without its prompt: {strangers.select(TURN_KEY).rows()[0]}")
    for frame, other, what in (
        (advantages, turns, "an advantage without its turn"),
        (turns, advantages, "a turn without its advantage"),
    ):
        strangers = frame.join(other, on=TURN_KEY, how="anti").head(1)
        if len(strangers):
            raise TurnledgerError(f"{what}: {strangers.select(TURN_KEY).rows()[0]}")
    broken = advantages.filter(~pl.col("advantage").is_finite()).head(1)
    if len(broken):
        raise TurnledgerError(f"advantage is no number: {broken.select(TURN_KEY).rows()[0]}")
