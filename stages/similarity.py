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

import re
from collections.abc import Sequence

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

_TOKEN = re.compile(
    r"""
      \#[^\n]*                                                # comment
    | (?P<token>
          [rbfuRBFU]{0,2}(?:
              \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
            | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
        | (?:\d|\.\d)(?:[eE][+-]\d|[\w.])*                    # number
        | \w+                                                 # name or keyword
        | (?:\*\*|//|<<|>>)=? | [-+*/%@&|^=<>!:]= | -> | \.{3}
        | \S )
    """,
    re.VERBOSE | re.DOTALL,
)


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
    _require_same_turns(turns, turn_rewards)
    trajectories = _trajectories(turns, turn_rewards)
    kept = trajectories.select(*TRAJECTORY_KEY, "shaping", "peers").join(
        _similarities(trajectories, config), on=TRAJECTORY_KEY, how="left"
    )
    is_changed = pl.col("is_last") & (pl.col("shaping") == Shaping.SHAPED.value)
    shaped_accuracy = config.alpha * pl.col(f"similarity_{config.aggregate}")
    shaped = (
        turn_rewards.join(kept, on=TRAJECTORY_KEY, how="left")
        .with_columns(
            shaped_accuracy=pl.when(is_changed).then(shaped_accuracy).otherwise("accuracy")
        )
        .with_columns(
            shaped_total=pl.col("shaped_accuracy") + (pl.col("total") - pl.col("accuracy"))
        )
    )
    columns = shaped.select(ShapedRewards.column_names()).sort(TURN_KEY)
    return ShapedRewards.validate(columns, cast=True)


def tokenise(code: str) -> list[str]:
    """Returns the tokens of Python code, without comments and spacing; never fails."""
    return [m["token"] for m in _TOKEN.finditer(code) if m["token"] is not None]


def _require_same_turns(turns: pl.DataFrame, turn_rewards: pl.DataFrame) -> None:
    for a, b, text in (
        (turns, turn_rewards, "has no reward"),
        (turn_rewards, turns, "is not among the turns"),
    ):
        alone = a.select(TURN_KEY).join(b.select(TURN_KEY), on=TURN_KEY, how="anti").sort(TURN_KEY)
        if alone.height:
            key = ", ".join(f"{name}={value}" for name, value in alone.row(0, named=True).items())
            raise TurnledgerError(f"turn {key} {text}: shape the rewards of the same turns")


def _trajectories(turns: pl.DataFrame, turn_rewards: pl.DataFrame) -> pl.DataFrame:
    """Returns one row a trajectory: its code tokens, the peers of its group, what becomes of it."""
    codes = (
        turns.sort(TURN_KEY)
        .group_by(TRAJECTORY_KEY, maintain_order=True)
        .agg(pl.col("code").drop_nulls().str.join("\n"))
    )
    tokens = {code: tokenise(code) for code in codes["code"].unique()}
    kinds = turn_rewards.group_by(TRAJECTORY_KEY).agg(pl.col("outcome", "excluded").first())
    excluded = pl.col("excluded").is_not_null()
    right = ~excluded & (pl.col("outcome") == 1)
    has_code = pl.col("tokens").list.len() > 0
    return (
        codes.with_columns(
            tokens=pl.Series([tokens[c] for c in codes["code"]], dtype=pl.List(pl.String))
        )
        .join(kinds, on=TRAJECTORY_KEY, how="left")
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
    """Returns mean and maximum similarity to the peers of every trajectory that is shaped."""
    shaped = pl.col("shaping") == Shaping.SHAPED.value
    groups = trajectories.filter(shaped.any().over(GROUP_KEY)).partition_by(GROUP_KEY)
    parts = [
        pl.DataFrame(
            schema={
                **{name: trajectories.schema[name] for name in TRAJECTORY_KEY},
                "similarity_mean": pl.Float64(),
                "similarity_max": pl.Float64(),
            }
        )
    ]
    for group in groups:
        wrong = group.filter(shaped)
        to_peers = code_similarity(
            wrong["tokens"].to_list(), group.filter("is_peer")["tokens"].to_list(), config
        )
        parts.append(
            wrong.select(
                *TRAJECTORY_KEY,
                pl.Series("similarity_mean", to_peers.mean(axis=1)),
                pl.Series("similarity_max", to_peers.max(axis=1)),
            )
        )
    return pl.concat(parts)


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
    character: dict[str, str] = {}
    words = [
        "".join(character.setdefault(token, chr(len(character))) for token in tokens)
        for tokens in (*codes, *peers)
    ]
    return cdist(
        words[: len(codes)],
        words[len(codes) :],
        scorer=Levenshtein.normalized_similarity,
        dtype=np.float64,
    )


def _ngram_similarity(codes: Sequence[Tokens], peers: Sequence[Tokens], n: int) -> np.ndarray:
    column: dict[tuple[str, ...], int] = {}
    cells: list[tuple[int, int]] = []
    for row, tokens in enumerate((*codes, *peers)):
        # Padded in front, so that codes shorter than n have n-grams too: one ends at each token.
        padded = ("",) * (n - 1) + tuple(tokens)
        grams = zip(*(padded[k:] for k in range(n)), strict=False)
        cells += [(row, column.setdefault(gram, len(column))) for gram in grams]
    counts = np.zeros((len(codes) + len(peers), len(column)))
    np.add.at(counts, tuple(np.array(cells).T), 1.0)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    # Rounding takes the cosine of equal vectors slightly above 1.
    cosine: np.ndarray = unit[: len(codes)] @ unit[len(codes) :].T
    return cosine.clip(0.0, 1.0)
