"""Tables of a run joined and summed up, for notebooks and other people's programs.

Everything takes and returns Polars frames; `docs/questions.ipynb` shows each function at work.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from flows.sessions import stored_config
from schemas.categories import ExecutionStatus, Shaping
from schemas.tables import TABLES, TURN_KEY, ShapedRewards
from stages.advantages import estimate_advantages
from storage import MissingTableError, Store, open_table

KEY = ["iteration", *TURN_KEY]
"""What names a turn within a run."""
TRAJECTORY = KEY[:-1]
"""What names a trajectory within a run."""

_JOINED: dict[str, tuple[str, ...]] = {
    "executions": ("status", "stderr"),
    "shaped_rewards": ("outcome", "shaping", "similarity_max", "similarity_mean", "shaped_total"),
    "advantages": ("reward", "return", "baseline", "scale", "advantage", "excluded"),
    "turn_updates": ("logprob_change",),
}
"""Tables beside the turns, and what is taken from them."""


def credited_turns(
    store: str | Path, run: str, *, iterations: Sequence[int] | None = None
) -> pl.DataFrame:
    """Joins the turns of a training with what became of them.

    Args:
        store: Folder of the store, or `s3://bucket/prefix`.
        run: Name of the run.
        iterations: The only iterations; null for all.

    Returns:
        One row a turn: `iteration`, `task_id`, `sample_index`, `turn_index`; `text`, `code`,
        `answer`; `tokens`, how many were generated; `turns` of its trajectory; `status` and
        `stderr` of its code; `outcome`, 1 in a right trajectory; `shaping` and the similarities of
        its trajectory; `reward` to `advantage`; `excluded`, why it does not count;
        `logprob_change`, nats, what the update added to its mean log-probability. A column is null
        where its table has no row for the turn, or the run has no such table.

    Raises:
        StoreError: If the store or the run is not there, or a file is damaged.
    """
    wanted = pl.lit(True) if iterations is None else pl.col("iteration").is_in([*iterations])
    turns = (
        open_table(store, run, "turns")
        .filter(wanted)
        .select(
            *KEY, "text", "code", "answer", tokens=pl.col("token_ids").list.len().cast(pl.Int64)
        )
        .collect()
        .with_columns(turns=pl.len().over(TRAJECTORY).cast(pl.Int64))
    )
    for table, columns in _JOINED.items():
        try:  # one table after the other: a plan of all would open all their files at once
            beside = open_table(store, run, table).filter(wanted).select(*KEY, *columns).collect()
        except MissingTableError:
            kinds = pl.Schema(TABLES[table].schema)
            nulls = [pl.lit(None, kinds[name]).alias(name) for name in columns]
            turns = turns.with_columns(nulls)
        else:
            turns = turns.join(beside, on=KEY, how="left")
    return turns.sort(KEY)


def taught_most(turns: pl.DataFrame) -> pl.DataFrame:
    """Returns the turns that counted, those first that weighed most in their iteration's update.

    A token pushes its own probability with the advantage of its turn, so the weight of a turn is
    the size of its advantage times its tokens, as long as nothing is clipped.

    Args:
        turns: As `credited_turns` gives them.

    Returns:
        The same rows without those left out, with `weight`, and `share` of the weight of all
        turns of the iteration, from 0 to 1.
    """
    weight = pl.col("advantage").abs() * pl.col("tokens")
    return (
        turns.filter(pl.col("advantage").is_not_null())
        .with_columns(weight=weight)
        .with_columns(
            share=pl.when(pl.sum("weight").over("iteration") > 0)
            .then(pl.col("weight") / pl.sum("weight").over("iteration"))
            .otherwise(0.0)
        )
        .sort("share", descending=True)
    )


def credit_of_right_turns(turns: pl.DataFrame) -> pl.DataFrame:
    """Says how early and late turns of right trajectories are credited, by the turns they have.

    Args:
        turns: As `credited_turns` gives them.

    Returns:
        A row for each number of turns and turn index: `turns`, `turn_index`, `count`, `advantage`
        (its mean) and `negative` (share of turns with less than 0), of those that count.
    """
    return (
        turns.filter(pl.col("outcome") == 1, pl.col("advantage").is_not_null())
        .group_by("turns", "turn_index")
        .agg(
            count=pl.len(),
            advantage=pl.col("advantage").mean(),
            negative=(pl.col("advantage") < 0).mean(),
        )
        .sort("turns", "turn_index")
    )


def shaped_trajectories(turns: pl.DataFrame) -> pl.DataFrame:
    """Returns the wrong trajectories that were given partial reward, the nearest first.

    Args:
        turns: As `credited_turns` gives them.

    Returns:
        A row a trajectory: its key, `turns`, `similarity_mean` and `similarity_max` to the right
        ones of its group, `code` of all its turns and `advantage`, the mean over its turns.
    """
    return (
        turns.filter(pl.col("shaping") == Shaping.SHAPED.value)
        .sort(KEY)
        .group_by(TRAJECTORY, maintain_order=True)
        .agg(
            pl.first("turns", "similarity_mean", "similarity_max"),
            code=pl.col("code").drop_nulls().str.join("\n# next turn\n"),
            advantage=pl.col("advantage").mean(),
        )
        .sort("similarity_max", descending=True, maintain_order=True)
    )


def tool_failures(turns: pl.DataFrame) -> pl.DataFrame:
    """Says what tool calls failed of, iteration by iteration.

    Args:
        turns: As `credited_turns` gives them.

    Returns:
        A row for each iteration and cause: `iteration`, `cause` (the exception's name, or the
        status where there was none), `failed`, `calls` of the iteration, and `share` of them. An
        iteration without a failure has one row, with null as its cause and 0.
    """
    exception = pl.col("stderr").str.strip_chars().str.extract(r"(?m)^(\w+(?:\.\w+)*)(?::.*)?\z")
    called = turns.filter(pl.col("status").is_not_null()).with_columns(
        pl.col("status").cast(pl.String)
    )
    failed = pl.col("status") != ExecutionStatus.OK.value
    causes = (
        called.filter(failed)
        .group_by("iteration", cause=exception.fill_null(pl.col("status")))
        .agg(failed=pl.len())
    )
    return (
        called.group_by("iteration")
        .agg(calls=pl.len())
        .join(causes, on="iteration", how="left")
        .with_columns(pl.col("failed").fill_null(0))
        .with_columns(share=pl.col("failed") / pl.col("calls"))
        .select("iteration", "cause", "failed", "calls", "share")
        .sort("iteration", "failed", descending=[False, True])
    )


def credit_with(store: str | Path, run: str, **settings: object) -> pl.DataFrame:
    """Credits the stored rewards of a run anew, with other settings of the advantages.

    Nothing is stored; `turnledger rerun advantages` does the same and keeps it.

    Example:
        >>> credit_with("store", "demo", gamma=0.9, estimator="gtpo")

    Args:
        store: Folder of the store, or `s3://bucket/prefix`.
        run: Name of the run.
        settings: Settings of the section `advantages` that differ from those of the run.

    Returns:
        A row a turn: its key, `before` and `after`, the advantages; null where a turn is left out.

    Raises:
        ConfigError: If a setting cannot be used.
        StoreError: If the run has no shaped rewards or no advantages.
    """
    from schemas.config_text import override_config

    config = stored_config(Store.open(store).run_record(run))
    changed = override_config(
        config, [f"{name}={value}" for name, value in settings.items()], section="advantages"
    )
    shaped = open_table(store, run, "shaped_rewards").collect()
    credited = []
    for (iteration,), rows in shaped.group_by("iteration", maintain_order=True):
        rewards = ShapedRewards.validate(rows.select(ShapedRewards.column_names()), cast=True)
        after = estimate_advantages(rewards, changed.advantages)
        credited.append(
            after.select(
                pl.lit(iteration, pl.Int32).alias("iteration"), *TURN_KEY, after="advantage"
            )
        )
    before = open_table(store, run, "advantages").select(*KEY, before="advantage").collect()
    return before.join(pl.concat(credited), on=KEY, how="left").sort(KEY)


def stage_seconds(store: str | Path, run: str) -> pl.DataFrame:
    """Says how long the stage runs of a run took.

    Args:
        store: Folder of the store, or `s3://bucket/prefix`.
        run: Name of the run.

    Returns:
        A row for each iteration, split and stage: `iteration`, `split`, `stage`, `stage_runs`,
        `seconds`. Those of shards that ran beside each other add up, the waiting of one for
        another included. Where a result was taken over, it is the time that it once took.

    Raises:
        StoreError: If the store or the run is not there.
    """
    opened = Store.open(store)
    slots = [(m.slot, m.seconds) for _, m in opened.results(opened.run_record(run).name)]
    frame = pl.DataFrame(
        {
            "iteration": [slot.iteration for slot, _ in slots],
            "split": [slot.split for slot, _ in slots],
            "stage": [slot.stage for slot, _ in slots],
            "seconds": [seconds for _, seconds in slots],
        },
        schema={
            "iteration": pl.Int32,
            "split": pl.String,
            "stage": pl.String,
            "seconds": pl.Float64,
        },
    )
    return (
        frame.group_by("iteration", "split", "stage")
        .agg(stage_runs=pl.len(), seconds=pl.col("seconds").sum())
        .sort("iteration", "split", "stage")
    )
