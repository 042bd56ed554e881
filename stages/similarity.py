"""Similarity (shaping): a wrong trajectory earns a part for code that resembles right code.

    r_acc of the last turn = alpha / |P| * sum over p in P of sim(code_i, code_p)
                                                                        arXiv 2511.14846

P are the right trajectories of the group, code_i is the code of all turns of trajectory i in
their order. The sum is divided by |P| once. Right trajectories keep 1.

The paper's sim is the cosine of text embeddings of a hosted model. Here it is lexical, on code
tokens (names, numbers, strings, operators); comments, spacing and indentation do not count:
- `edit`: 1 - Levenshtein distance / length of the longer one, both in tokens.
- `ngram`: cosine of the counts of token n-grams, one ending at each token.

Decided here, where the paper says nothing: a right trajectory without code is no peer, for there
is nothing to resemble; so |P| counts right trajectories with code. With alpha 0 the similarities
are still measured and reported, and no value changes.

Any two short programs look alike: within a group only differences of similarity matter.
"""

from collections.abc import Sequence
from itertools import chain

import dataframely as dy
import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from schemas.config import SimilarityConfig
from schemas.errors import TurnledgerError
from schemas.tables import (
    GROUP_KEY,
    TRAJECTORY_KEY,
    TURN_KEY,
    ShapedRewards,
    Shaping,
    TurnRewards,
    Turns,
)

Tokens = Sequence[str]

_WORD = r"\p{L}\p{N}_"
"""Letters, digits and the underscore, as in `\\w` of Python."""
_SPACE = r"\s\x1c-\x1f"
_TOKEN = rf"""(?x)
      \#[^\n]*                                                  # comment
    | [rbfuRBFU]{{0,2}}(?:
          "{{3}}(?s:\\.|[^\\])*?"{{3}} | '{{3}}(?s:\\.|[^\\])*?'{{3}}
        | "(?s:\\.|[^"\\\n])*" | '(?s:\\.|[^'\\\n])*' )
    | (?:\d|\.\d)(?:[eE][+-]\d|[{_WORD}.])*                    # number
    | [{_WORD}]+                                               # name or keyword
    | (?:\*\*|//|<<|>>)=? | [-+*/%@\&|^=<>!:]= | -> | \.{{3}}
    | [^{_SPACE}]
    """


def shape_rewards(
    turns: dy.DataFrame[Turns],
    turn_rewards: dy.DataFrame[TurnRewards],
    config: SimilarityConfig,
) -> dy.DataFrame[ShapedRewards]:
    """Returns the rewards with the accuracy of wrong trajectories shaped by their code.

    Trajectories excluded before are shaped by none and shape none; their nulls stay.

    Args:
        turns: What was generated; only the code is read.
        turn_rewards: Rewards of the same turns.
        config: Measure, aggregate over the peers, and alpha, the largest shaped accuracy.

    Returns:
        One row a turn, in the order of the key, the unshaped values beside the shaped ones.

    Raises:
        TurnledgerError: If the two tables do not hold the same turns.
    """
    codes = turns.select(*TURN_KEY, "code").sort(TURN_KEY)
    rewards = turn_rewards.sort(TURN_KEY)
    _require_same_turns(codes, rewards)
    trajectories = _trajectories(rewards.with_columns(codes["code"]))
    kept = trajectories.select(*TRAJECTORY_KEY, "shaping", "peers").join(
        _similarities(trajectories, config), on=TRAJECTORY_KEY, how="left"
    )
    is_changed = pl.col("is_last") & (pl.col("shaping") == Shaping.SHAPED.value)
    shaped_accuracy = config.alpha * pl.col(f"similarity_{config.aggregate}")
    shaped = (
        rewards.join(kept, on=TRAJECTORY_KEY, how="left", maintain_order="left")
        .with_columns(
            shaped_accuracy=pl.when(is_changed).then(shaped_accuracy).otherwise("accuracy")
        )
        .with_columns(
            shaped_total=pl.col("shaped_accuracy") + (pl.col("total") - pl.col("accuracy"))
        )
    )
    return ShapedRewards.validate(shaped.select(ShapedRewards.column_names()), cast=True)


def tokenise(codes: pl.Series) -> pl.Series:
    """Returns the tokens of each Python code, without comments and spacing; never fails."""
    is_comment = pl.element().str.starts_with("#")
    return codes.str.extract_all(_TOKEN).list.filter(~is_comment).alias("tokens")


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


def _trajectories(turns: pl.DataFrame) -> pl.DataFrame:
    """Returns one row a trajectory: its code tokens, the peers of its group, what becomes of it.

    Args:
        turns: Code and rewards of the turns, in the order of the key.
    """
    trajectories = turns.group_by(TRAJECTORY_KEY, maintain_order=True).agg(
        pl.col("code").drop_nulls().str.join("\n"), pl.col("outcome", "excluded").first()
    )
    excluded = pl.col("excluded").is_not_null()
    right = ~excluded & (pl.col("outcome") == 1)
    has_code = pl.col("tokens").list.len() > 0
    return (
        trajectories.with_columns(tokenise(trajectories["code"]))
        .with_columns(is_peer=(right & has_code).fill_null(False))
        .with_columns(peers=pl.col("is_peer").sum().over(GROUP_KEY).cast(pl.Int32))
        .with_columns(
            shaping=pl.when(excluded)
            .then(pl.lit(Shaping.EXCLUDED.value))
            .when(right)
            .then(pl.lit(Shaping.RIGHT.value))
            .when(~has_code)
            .then(pl.lit(Shaping.NO_CODE.value))
            .when(pl.col("peers") == 0)
            .then(pl.lit(Shaping.NO_PEERS.value))
            .otherwise(pl.lit(Shaping.SHAPED.value))
        )
    )


def _similarities(trajectories: pl.DataFrame, config: SimilarityConfig) -> pl.DataFrame:
    """Returns mean and maximum similarity to the peers of every trajectory that is shaped.

    Args:
        trajectories: Trajectories with their tokens, those of a group next to each other.
        config: The measure.
    """
    is_shaped = pl.col("shaping") == Shaping.SHAPED.value
    compared = trajectories.filter(
        (is_shaped | pl.col("is_peer")) & is_shaped.any().over(GROUP_KEY)
    )
    sizes = compared.group_by(GROUP_KEY, maintain_order=True).len()["len"]
    means, maxima = [np.empty(0)], [np.empty(0)]
    start = 0
    for size in sizes:
        # Only one group's tokens become Python objects at a time: they take far more room so.
        tokens = compared["tokens"].slice(start, size).to_list()
        peers = compared["is_peer"].slice(start, size).to_list()
        start += size
        to_peers = code_similarity(
            [code for code, is_peer in zip(tokens, peers, strict=True) if not is_peer],
            [code for code, is_peer in zip(tokens, peers, strict=True) if is_peer],
            config,
        )
        means.append(to_peers.mean(axis=1))
        maxima.append(to_peers.max(axis=1))
    return (
        compared.filter(is_shaped)
        .select(TRAJECTORY_KEY)
        .with_columns(
            pl.Series("similarity_mean", np.concatenate(means)),
            pl.Series("similarity_max", np.concatenate(maxima)),
        )
    )


def code_similarity(
    codes: Sequence[Tokens], peers: Sequence[Tokens], config: SimilarityConfig
) -> np.ndarray:
    """Returns the similarity, 0 to 1, of each code to each peer, [codes, peers].

    Args:
        codes: Token sequences, none of them empty.
        peers: Likewise.
        config: The measure, and n of its n-grams.
    """
    if config.measure == "ngram":
        return _ngram_similarity(codes, peers, config.ngram)
    return _edit_similarity(codes, peers)


def _edit_similarity(codes: Sequence[Tokens], peers: Sequence[Tokens]) -> np.ndarray:
    # One character a token: the distance then counts tokens, at the speed of strings.
    distinct = dict.fromkeys(chain(*codes, *peers))
    character = {token: chr(number) for number, token in enumerate(distinct)}
    words = ["".join(map(character.__getitem__, tokens)) for tokens in (*codes, *peers)]
    return cdist(
        words[: len(codes)],
        words[len(codes) :],
        scorer=Levenshtein.normalized_similarity,
        dtype=np.float64,
    )


def _ngram_similarity(codes: Sequence[Tokens], peers: Sequence[Tokens], n: int) -> np.ndarray:
    rows = len(codes) + len(peers)
    # Padded in front, so that codes shorter than n have n-grams too: one ends at each token.
    padded = [("",) * (n - 1) + tuple(tokens) for tokens in (*codes, *peers)]
    grams = [list(zip(*(code[k:] for k in range(n)), strict=False)) for code in padded]
    column = {gram: number for number, gram in enumerate(dict.fromkeys(chain(*grams)))}
    cells = np.fromiter(map(column.__getitem__, chain(*grams)), dtype=np.int64)
    cells += np.repeat(np.arange(rows), [len(code) for code in grams]) * len(column)
    counts = np.bincount(cells, minlength=rows * len(column)).reshape(rows, -1).astype(np.float64)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    # Rounding takes the cosine of equal vectors slightly above 1.
    cosine: np.ndarray = unit[: len(codes)] @ unit[len(codes) :].T
    return cosine.clip(0.0, 1.0)
