"""Trajectories as ragged arrays: the stored token ids, never text encoded anew."""

from collections.abc import Iterator
from dataclasses import dataclass

import dataframely as dy
import numpy as np
import polars as pl
import torch
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
    offsets: NDArray[np.int64]  # [trajectories + 1]

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[trajectories] tokens of each."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """A micro-batch on the device, padded on the right; [rows, longest] unless said."""

    token_ids: torch.Tensor
    trained: torch.Tensor
    logprobs: torch.Tensor
    advantages: torch.Tensor
    temperatures: torch.Tensor  # [rows]
    top_ps: torch.Tensor  # [rows]
    top_ks: torch.Tensor  # [rows]


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
    lengths = tokens.group_by(TRAJECTORY_KEY, maintain_order=True).len()["len"].to_numpy()
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
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def split_by_tokens(
    batch: Batch, trajectories: NDArray[np.int64], max_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Yields parts of similar lengths whose padded size stays within `max_tokens`.

    A single trajectory longer than that is a part of its own.
    """
    ordered = trajectories[np.argsort(batch.lengths[trajectories], kind="stable")[::-1]]
    while len(ordered):
        rows = max(1, max_tokens // int(batch.lengths[ordered[0]]))
        yield ordered[:rows]
        ordered = ordered[rows:]


def pad(batch: Batch, trajectories: NDArray[np.int64], device: torch.device) -> Padded:
    """Lays trajectories out as rows, padded on the right with token 0, which nothing sees."""
    lengths = batch.lengths[trajectories]
    shape = (len(trajectories), int(lengths.max()))
    real = np.arange(shape[1])[None, :] < lengths[:, None]
    source = np.concatenate(
        [np.arange(batch.offsets[t], batch.offsets[t + 1]) for t in trajectories]
    )

    def rows(values: NDArray[np.generic]) -> torch.Tensor:
        padded = np.zeros(shape, dtype=values.dtype)
        padded[real] = values[source]
        return torch.from_numpy(padded).to(device)

    return Padded(
        token_ids=rows(batch.token_ids),
        trained=rows(batch.trained),
        logprobs=rows(batch.logprobs),
        advantages=rows(batch.advantages),
        temperatures=torch.from_numpy(batch.temperatures[trajectories]).to(device),
        top_ps=torch.from_numpy(batch.top_ps[trajectories]).to(device),
        top_ks=torch.from_numpy(batch.top_ks[trajectories]).to(device),
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
