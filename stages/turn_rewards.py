"""Turn rewards (scoring): accuracy on the last turn, penalties of form on the others.

    r_ij = r_acc + r_format (+ optional components)                     arXiv 2511.14846

r_acc is 1 on the last turn of a trajectory whose final answer is right, else 0. r_format is the
penalty of an invalid tool call, on any turn, plus that of a first turn without tool call. Further
components, each a column, are in `schemas.reward_components`; by default they are worth 0. Nothing
is paid for form as such or for code that runs, and code that raises is no invalid call: its
traceback is feedback that the policy may use.

What the paper leaves open, decided here:
- An invalid call is one that is unclosed or empty, or, by configuration, no Python. An unclosed
  answer is no tool call and costs nothing but the answer.
- An invalid call on the first turn is a call: it pays its own penalty and not that for no call.
- Format in GRPO's min(accuracy, format) is 1 where no turn of the trajectory has an invalid call.

It does not shape wrong trajectories, nor drop any row.
"""

import dataframely as dy
import polars as pl

from schemas.categories import Excluded, ExecutionStatus, ParseError, Verdict
from schemas.config import TurnRewardsConfig
from schemas.errors import TurnledgerError
from schemas.reward_components import COMPONENTS
from schemas.tables import (
    GROUP_KEY,
    TRAJECTORY_KEY,
    TURN_KEY,
    Executions,
    Prompts,
    TurnRewards,
    Turns,
)
from stages.grading import grade

_TERMS = ("accuracy", "format", "no_tool", *COMPONENTS)
"""Columns that make up the total."""


def score_turns(
    prompts: dy.DataFrame[Prompts],
    turns: dy.DataFrame[Turns],
    executions: dy.DataFrame[Executions],
    config: TurnRewardsConfig,
) -> dy.DataFrame[TurnRewards]:
    """Returns the reward of every turn, each component in its own column.

    A trajectory with an execution of status `infrastructure` is excluded: its verdict, accuracy,
    total, outcome and GRPO reward are null, for it is not known whether it would have been right.

    Args:
        prompts: Groups with their gold answers.
        turns: What was generated; the answer of a trajectory is that of its last turn.
        executions: What running the code did; turns without code have no row.
        config: Penalties, rewards a turn, and the time limit of grading in seconds.

    Returns:
        One row a turn, in the order of the key.

    Raises:
        TurnledgerError: If a turn's task is not among the prompts, or grading cannot run.
    """
    _require_prompts(turns, prompts)
    scored = _scored(turns, executions, config)
    rewarded = (
        scored.join(_verdicts(scored, prompts, config), on=TRAJECTORY_KEY, how="left")
        .with_columns(*_components(config))
        .with_columns(total=pl.sum_horizontal(_TERMS, ignore_nulls=False))
    )
    columns = rewarded.select(TurnRewards.column_names()).sort(TURN_KEY)
    return TurnRewards.validate(columns, cast=True)


def _scored(
    turns: pl.DataFrame, executions: pl.DataFrame, config: TurnRewardsConfig
) -> pl.DataFrame:
    """Returns what is said of each turn without grading, in the order of the key."""
    is_lost = pl.col("status") == ExecutionStatus.INFRASTRUCTURE.value
    # Lazy, so that only the columns that some component uses are taken along.
    return (
        turns.lazy()
        .join(executions.lazy().select(*TURN_KEY, "status", "observation"), on=TURN_KEY, how="left")
        .sort(TURN_KEY)
        # Windows over numbers take a fraction of those over the texts of the key.
        .with_columns(
            trajectory=pl.struct(TRAJECTORY_KEY).rle_id(), group=pl.struct(GROUP_KEY).rle_id()
        )
        .pipe(_with_states)
        .with_columns(
            is_last=pl.col("turn_index") == pl.col("turn_index").max().over("trajectory"),
            invalid=_invalid_call(config),
            tokens=pl.col("token_ids").list.len().cast(pl.Int64),
            excluded=pl.when(is_lost.any().over("trajectory")).then(
                pl.lit(Excluded.INFRASTRUCTURE.value)
            ),
        )
        .with_columns(
            trajectory_tokens=pl.col("tokens").sum().over("trajectory"),
            well_formed=~pl.col("invalid").any().over("trajectory"),
        )
        .with_columns(config.components.rewards())
        .select(
            *(*TURN_KEY, "code", "answer", "is_last", "invalid", "well_formed"),
            *("excluded", "state"),
            *COMPONENTS,
        )
        .collect()
    )


def _require_prompts(turns: pl.DataFrame, prompts: pl.DataFrame) -> None:
    strangers = turns.join(prompts, on=GROUP_KEY, how="anti")["task_id"].unique().sort()
    if strangers.len():
        raise TurnledgerError(
            f"{strangers.len()} tasks of the turns are not among the prompts, first "
            f"{', '.join(strangers.head(3))}: score turns with the prompts they were made of"
        )


def _invalid_call(config: TurnRewardsConfig) -> pl.Expr:
    invalid = [
        ParseError.UNCLOSED_CODE.value,
        ParseError.EMPTY_CODE.value,
        ParseError.MALFORMED_CALL.value,
    ]
    if config.syntax_error_is_invalid:
        invalid.append(ParseError.SYNTAX_ERROR.value)
    return pl.col("parse_error").cast(pl.String).is_in(invalid).fill_null(False)


def _with_states(turns: pl.LazyFrame) -> pl.LazyFrame:
    """Numbers within its group what the environment has shown before a turn, for sorted turns.

    The number is the place of the first turn of the group that saw the same. First turns have
    seen nothing, so they are all in one state.
    """
    # A sum of hashes stands for the history; the index in them tells orders apart. The sum runs
    # over all turns and wraps around, which differences of it do not feel.
    shown = pl.struct("turn_index", "observation").hash()
    return (
        turns.with_columns(before=shown.cum_sum() - shown)
        .with_columns(
            history=pl.col("before") - pl.col("before").first().over("trajectory"),
            place=pl.int_range(pl.len()).over("group"),
        )
        .with_columns(state=pl.col("place").min().over("group", "history").cast(pl.Int32))
    )


def _verdicts(
    scored: pl.DataFrame, prompts: pl.DataFrame, config: TurnRewardsConfig
) -> pl.DataFrame:
    """Returns the verdict, and what decided it, of every trajectory that is not excluded."""
    final = scored.filter(pl.col("is_last") & pl.col("excluded").is_null())
    pairs = final.rename({"answer": "prediction"}).join(
        prompts.select(*GROUP_KEY, "answer"), on=GROUP_KEY, how="left", maintain_order="left"
    )
    graded = grade(pairs.select("prediction", "answer"), time_s=config.grading_time_s)
    return pairs.select(TRAJECTORY_KEY).hstack(graded.rename({"method": "grading_method"}))


def _components(config: TurnRewardsConfig) -> list[pl.Expr]:
    right = pl.col("verdict") == Verdict.RIGHT.value
    called = pl.col("code").is_not_null() | pl.col("invalid")
    silent_start = (pl.col("turn_index") == 0) & ~called
    # `null & False` is False: what is not known must be made null explicitly.
    known = pl.when(pl.col("verdict").is_not_null())
    return [
        known.then(right.cast(pl.Float64)).alias("outcome"),
        known.then((right & pl.col("is_last")).cast(pl.Float64)).alias("accuracy"),
        known.then((right & pl.col("well_formed")).cast(pl.Float64)).alias("grpo_reward"),
        pl.when("invalid").then(config.invalid_call_penalty).otherwise(0.0).alias("format"),
        pl.when(silent_start).then(config.no_tool_penalty).otherwise(0.0).alias("no_tool"),
    ]
