"""Shaping: what a wrong trajectory earns for code that resembles right code.

    r_acc of the last turn = alpha / |P| * sum over p in P of sim(code_i, code_p)
                                                                        arXiv 2511.14846

P are the right trajectories of the group, code_i is the code of all turns of trajectory i in
their order. The sum is divided by |P| once. Right trajectories keep 1. That is the scope
`trajectory`. The scope `turn`, decided here, credits the turn that wrote the code:

    r_acc of turn j = alpha / (n_i |P|) * sum over p in P of max over k of sim(code_ij, code_pk)

for each of the n_i turns of a wrong trajectory that hold code, where k runs over the turns of p
that do. So a turn is compared with what comes closest to it in each peer, wherever that stands, and
all turns of a trajectory together earn alpha at most, as they do by the paper.

Decided here, where the paper says nothing: a right trajectory without code is no peer, for there
is nothing to resemble; so |P| counts right trajectories with code. With alpha 0 the similarities
are still measured and reported, and no value changes.

Any two short programs look alike: within a group only differences of similarity matter.
"""

from collections.abc import Sequence

import dataframely as dy
import numpy as np
import polars as pl

from schemas.categories import Shaping
from schemas.config import SimilarityConfig
from schemas.errors import TurnledgerError
from schemas.tables import GROUP_KEY, TRAJECTORY_KEY, TURN_KEY, ShapedRewards, TurnRewards, Turns
from stages.similarity.embedding import Embed
from stages.similarity.measures import make_measure
from stages.similarity.tokens import holds_token


def shape_rewards(
    turns: dy.DataFrame[Turns],
    turn_rewards: dy.DataFrame[TurnRewards],
    config: SimilarityConfig,
    embed: Embed | None = None,
) -> dy.DataFrame[ShapedRewards]:
    """Returns the rewards with the accuracy of wrong trajectories shaped by their code.

    Trajectories excluded before are shaped by none and shape none; their nulls stay.

    Args:
        turns: What was generated; only the code is read.
        turn_rewards: Rewards of the same turns.
        config: Measure, scope, aggregate over the peers, and alpha, the largest shaped accuracy.
        embed: Embedding model of the measure `embedding`; the others need none.

    Returns:
        One row a turn, in the order of the key, the unshaped values beside the shaped ones.

    Raises:
        TurnledgerError: If the two tables do not hold the same turns, or the measure cannot be
            taken: see `similarity_matrix`.
    """
    codes = turns.select(*TURN_KEY, "code").sort(TURN_KEY)
    rewards = turn_rewards.sort(TURN_KEY)
    _require_same_turns(codes, rewards)
    judged = _judged(rewards.with_columns(codes["code"]))
    units = _units(judged, config)
    key = TURN_KEY if config.scope == "turn" else TRAJECTORY_KEY
    kept = judged.join(_similarities(units, key, config, embed), on=key, how="left")
    is_shaped = pl.col("shaping") == Shaping.SHAPED.value
    earned = config.alpha * pl.col(f"similarity_{config.aggregate}")
    if config.scope == "turn":
        is_changed = is_shaped & pl.col("has_code")
        earned /= pl.col("has_code").sum().over(TRAJECTORY_KEY)
    else:
        is_changed = is_shaped & pl.col("is_last")
    shaped = kept.sort(TURN_KEY).with_columns(
        shaped_accuracy=pl.when(is_changed).then(earned).otherwise("accuracy")
    )
    added = pl.col("total") - pl.col("accuracy")
    shaped = shaped.with_columns(shaped_total=pl.col("shaped_accuracy") + added)
    return ShapedRewards.validate(shaped.select(ShapedRewards.column_names()), cast=True)


def _require_same_turns(turns: pl.DataFrame, turn_rewards: pl.DataFrame) -> None:
    """Compares the keys of two tables that are in the order of the key."""
    if turns.select(TURN_KEY).equals(turn_rewards.select(TURN_KEY)):
        return
    for a, b, text in (
        (turns, turn_rewards, "has no reward"),
        (turn_rewards, turns, "is not among the turns"),
    ):
        alone = a.join(b, on=TURN_KEY, how="anti", maintain_order="left").select(TURN_KEY)
        if alone.height:
            key = ", ".join(f"{name}={value}" for name, value in alone.row(0, named=True).items())
            raise TurnledgerError(f"turn {key} {text}: shape the rewards of the same turns")


def _judged(turns: pl.DataFrame) -> pl.DataFrame:
    """Adds whether a turn has code, and of its trajectory the peers and what becomes of it.

    Args:
        turns: Code and rewards of the turns, in the order of the key.
    """
    excluded = pl.col("excluded").is_not_null()
    right = ~excluded & (pl.col("outcome") == 1).fill_null(False)
    calls = pl.col("has_code").any().over(TRAJECTORY_KEY)
    # One turn stands for its trajectory.
    peers = (pl.col("is_peer") & pl.col("is_last")).sum().over(GROUP_KEY)
    return (
        turns.with_columns(has_code=holds_token(pl.col("code")).fill_null(False))
        .with_columns(is_peer=right & calls)
        .with_columns(peers=peers.cast(pl.Int32))
        .with_columns(
            shaping=pl.when(excluded)
            .then(pl.lit(Shaping.EXCLUDED.value))
            .when(right)
            .then(pl.lit(Shaping.RIGHT.value))
            .when(~calls)
            .then(pl.lit(Shaping.NO_CODE.value))
            .when(pl.col("peers") == 0)
            .then(pl.lit(Shaping.NO_PEERS.value))
            .otherwise(pl.lit(Shaping.SHAPED.value))
        )
    )


def _units(turns: pl.DataFrame, config: SimilarityConfig) -> pl.DataFrame:
    """Returns what is compared, a row a trajectory or a turn: the code in parts, one a turn.

    Only groups that hold both are kept; in each stand those that are shaped before their peers.
    """
    is_shaped = pl.col("shaping") == Shaping.SHAPED.value
    compared = turns.filter(
        "has_code", is_shaped | pl.col("is_peer"), is_shaped.any().over(GROUP_KEY)
    )
    columns = [*TRAJECTORY_KEY, "is_peer"]
    if config.scope == "turn":
        units = compared.select(*TURN_KEY, "is_peer", parts=pl.concat_list("code"))
    else:
        units = compared.group_by(columns, maintain_order=True).agg(parts="code")
    return units.sort(*GROUP_KEY, "is_peer", maintain_order=True)


def _similarities(
    units: pl.DataFrame, key: Sequence[str], config: SimilarityConfig, embed: Embed | None
) -> pl.DataFrame:
    """Returns mean and maximum over the peers of the similarity of all that is shaped.

    Args:
        units: As `_units` returns them.
        key: Their key.
        config: The measure.
        embed: Embedding model of the measure `embedding`.
    """
    shaped = units.filter(~pl.col("is_peer"))
    if shaped.is_empty():
        nothing = pl.lit(None, pl.Float64)
        return shaped.select(*key, similarity_mean=nothing, similarity_max=nothing)
    measure = make_measure(units["parts"], config, embed)
    samples = units["sample_index"].to_numpy()
    groups = units.group_by(GROUP_KEY, maintain_order=True).agg(
        pl.len(), shaped=(~pl.col("is_peer")).sum()
    )
    means, maxima = [], []
    start = 0
    for size, count in groups.select("len", "shaped").iter_rows():
        split, end = start + count, start + size
        # The turns of a peer are neighbours; of these the closest one counts.
        firsts = np.flatnonzero(np.diff(samples[split:end], prepend=-1))
        scores = measure(slice(start, split), slice(split, end))
        closest = np.maximum.reduceat(scores, firsts, axis=1)
        means.append(closest.mean(axis=1))
        maxima.append(closest.max(axis=1))
        start = end
    return shaped.select(key).with_columns(
        similarity_mean=np.concatenate(means), similarity_max=np.concatenate(maxima)
    )
