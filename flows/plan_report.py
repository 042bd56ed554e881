"""A plan as lines for the terminal."""

from collections.abc import Iterator

import polars as pl

_ONE_STAGE = ("iteration", "split", "stage", "action", "reason")


def plan_lines(planned: pl.DataFrame, *, everything: bool = False) -> Iterator[str]:
    """Yields a plan line by line, then a summary.

    Args:
        planned: Rows as of `flows.plan.PLAN_SCHEMA`.
        everything: Whether each stage run has a line; otherwise shards and turns that agree in
            action and reason share one.
    """
    yield f"{'it':>4} {'split':10} {'stage':13} {'shard.turn':11} {'':8} {'last':>8}  why"
    yield from (
        _line(row) for row in (planned if everything else _folded(planned)).iter_rows(named=True)
    )
    yield _summary(planned)


def _folded(planned: pl.DataFrame) -> pl.DataFrame:
    return planned.group_by(_ONE_STAGE, maintain_order=True).agg(
        pl.col("shard", "turn").drop_nulls().unique().sort(),
        # A sum of no known time is none, and not 0.
        pl.when(pl.col("last_s").is_not_null().any()).then(pl.col("last_s").sum()),
        slots=pl.len(),
    )


def _line(row: dict[str, object]) -> str:
    seconds = row["last_s"]
    took = f"{seconds:7.2f}s" if isinstance(seconds, float) else f"{'-':>8}"
    where = _where(row["shard"], row["turn"])
    return (
        f"{row['iteration']:>4} {row['split']:10} {row['stage']:13} {where:11} "
        f"{row['action']:8} {took}  {row['reason']}"
    )


def _where(shard: object, turn: object) -> str:
    parts = [_numbers(part) for part in (shard, turn)]
    return ".".join(part for part in parts if part)


def _numbers(values: object) -> str:
    """Writes one number, or several as a range where they are one."""
    if values is None:
        return ""
    if not isinstance(values, list):
        return str(values)
    if len(values) > 1 and values[-1] - values[0] == len(values) - 1:
        return f"{values[0]}-{values[-1]}"
    return ",".join(map(str, values))


def _summary(planned: pl.DataFrame) -> str:
    counts = dict(planned.group_by("action").agg(pl.len()).iter_rows())
    to_do = planned.filter(pl.col("action") != "hit")
    parts = [
        f"{counts.get('hit', 0)} found stored",
        f"{counts.get('run', 0)} would run",
        f"{counts.get('depends', 0)} depend on these",
    ]
    if to_do.is_empty():
        return ", ".join(parts)
    known = to_do["last_s"].sum()
    unknown = to_do["last_s"].null_count()
    told = f"about {known:{'.0f' if known >= 1 else '.2f'}} s of stage time"
    if unknown:
        told += f", without {unknown} stage runs never seen"
    return f"{', '.join(parts)}: {told}"
