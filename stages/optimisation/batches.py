"""Trajectories as ragged arrays: the stored token ids, never text encoded anew."""

from dataclasses import dataclass

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.errors import TurnledgerError
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, Advantages, Executions, Prompts, Turns

_TOKENS = ("token_ids", "logprobs", "advantages", "trained", "turns")


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
    turns: NDArray[np.int64]  # [tokens] row of `turn_keys`; -1 where not trained
    turn_keys: pl.DataFrame  # key of each turn
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

    @property
    def trained_lengths(self) -> NDArray[np.int64]:
        """[trajectories] trained tokens of each."""
        before = np.concatenate([[0], np.cumsum(self.trained)])
        return np.diff(before[self.offsets])

    def places(self, trajectories: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where in the batch the trained tokens of trajectories stand, in their order."""
        starts, lengths = self.offsets[trajectories], self.lengths[trajectories]
        before = np.cumsum(lengths) - lengths
        places = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
        trained: NDArray[np.int64] = places[self.trained[places]]
        return trained


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
    history = (
        history.join(last_taught, on=TRAJECTORY_KEY)
        .filter(pl.col("turn_index") <= pl.col("last_taught"))
        # The last observation may have outgrown the context, which is why nothing was sampled
        # after.
        .with_columns(
            pl.when(pl.col("turn_index") < pl.col("last_taught")).then("observation_token_ids")
        )
        .sort(TURN_KEY)
        .with_row_index("row")
    )
    taught = last_taught.select(TRAJECTORY_KEY)
    tokens = (
        pl.concat([_of_prompts(prompts, taught), _of_turns(history)])
        .sort(TURN_KEY)
        .explode(*_TOKENS, empty_as_null=False)
    )
    counts = tokens.group_by(TRAJECTORY_KEY, maintain_order=True).agg(
        tokens=pl.len(), prompt=(pl.col("turn_index") < 0).sum()
    )
    sampling = _sampling(turns, taught)
    trained = tokens["trained"].to_numpy()
    return Batch(
        token_ids=tokens["token_ids"].to_numpy().astype(np.int64),
        trained=trained,
        logprobs=np.where(trained, tokens["logprobs"].to_numpy(), np.float32(0)),
        advantages=tokens["advantages"].to_numpy(),
        turns=np.where(trained, tokens["turns"].to_numpy(), -1),
        turn_keys=history.select(TURN_KEY),
        temperatures=sampling["temperature"].to_numpy().astype(np.float32),
        top_ps=sampling["top_p"].to_numpy().astype(np.float32),
        top_ks=sampling["top_k"].to_numpy().astype(np.int64),
        prompt_lengths=counts["prompt"].to_numpy().astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts["tokens"].to_numpy())]).astype(np.int64),
    )


def refuse_other_policies(turns: dy.DataFrame[Turns], version: int) -> None:
    """Refuses turns that another policy sampled than the one that is expected.

    Args:
        turns: Rollout.
        version: Version of the policy that should have sampled it.

    Raises:
        TurnledgerError: If so; the key of the first such turn is named.
    """
    other = turns.filter(pl.col("policy_version") != version).head(1)
    if len(other):
        raise TurnledgerError(
            f"turn {other.select(TURN_KEY).rows()[0]} was sampled by policy version "
            f"{other['policy_version'][0]}, and this update expects version {version}: rerun the "
            "rollout, or set rollout.stale as it was then"
        )


def _of_turns(history: pl.DataFrame) -> pl.DataFrame:
    """Returns the tokens of each turn with those of its observation, as lists."""
    sampled = pl.col("token_ids").list.len()
    inserted = pl.col("observation_token_ids").list.len().fill_null(0)
    nothing = pl.lit(0, pl.Float32).repeat_by(inserted)
    advantage = pl.col("advantage").cast(pl.Float32).fill_null(0)
    is_taught = pl.col("advantage").is_not_null()
    return history.select(
        *TRAJECTORY_KEY,
        "turn_index",
        token_ids=pl.concat_list("token_ids", pl.col("observation_token_ids").fill_null([])),
        logprobs=pl.concat_list("logprobs", nothing),
        advantages=pl.concat_list(advantage.repeat_by(sampled), nothing),
        trained=pl.concat_list(is_taught.repeat_by(sampled), pl.lit(False).repeat_by(inserted)),
        turns=pl.col("row").cast(pl.Int64).repeat_by(sampled + inserted),
    )


def _of_prompts(prompts: dy.DataFrame[Prompts], taught: pl.DataFrame) -> pl.DataFrame:
    """Returns the tokens of each trajectory's prompt, as a turn before the first."""
    length = pl.col("prompt_token_ids").list.len()
    return taught.join(prompts, on="task_id").select(
        *TRAJECTORY_KEY,
        turn_index=pl.lit(-1, pl.Int32),
        token_ids="prompt_token_ids",
        logprobs=pl.lit(0, pl.Float32).repeat_by(length),
        advantages=pl.lit(0, pl.Float32).repeat_by(length),
        trained=pl.lit(False).repeat_by(length),
        turns=pl.lit(-1, pl.Int64).repeat_by(length),
    )


def _sampling(turns: dy.DataFrame[Turns], taught: pl.DataFrame) -> pl.DataFrame:
    """Returns from what distribution each trajectory was sampled.

    Greedy tokens have the log-probabilities of the whole distribution at temperature 1.
    """
    samples = pl.col("temperature") > 0
    return (
        turns.join(taught, on=TRAJECTORY_KEY, how="semi")
        .group_by(TRAJECTORY_KEY)
        .agg(pl.col("temperature", "top_p", "top_k").first())
        .sort(TRAJECTORY_KEY)
        .select(
            pl.when(samples).then("temperature").otherwise(1).alias("temperature"),
            pl.when(samples).then("top_p").otherwise(1).alias("top_p"),
            pl.when(samples).then("top_k").otherwise(0).alias("top_k"),
        )
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
