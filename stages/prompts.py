"""Prompts: which problems an iteration asks, and how the policy sees them."""

import math
from collections.abc import Callable, Collection, Sequence
from random import Random

import dataframely as dy
import numpy as np
import polars as pl

from schemas.errors import TurnledgerError
from schemas.tables import Problems, Prompts
from stages.cold_start.families import EmbeddedProblem, Split, draw_problems
from stages.randomness import derive_seed

MOST_REPEATED = 1_000
"""Draws in a row without a new problem, after which a set is taken to be exhausted."""


def embedded_problems(
    count: int, *, split: Split, levels: tuple[int, ...], seed: int
) -> dy.DataFrame[Problems]:
    """Draws distinct problems of the embedded families.

    Args:
        count: Number of problems.
        split: Training or held-out problems, which have none in common.
        levels: Numbers of chained steps, drawn evenly.
        seed: Seed of the draw.

    Raises:
        TurnledgerError: If the families do not hold that many.
    """
    problems = _draw_distinct(count, split=split, levels=levels, seed=seed, without=())
    if len(problems) < count:
        raise TurnledgerError(
            f"the embedded families have not {count} distinct problems of these levels: "
            "ask for fewer, or add higher problems.levels"
        )
    return problems


def _draw_distinct(
    count: int, *, split: Split, levels: tuple[int, ...], seed: int, without: Collection[str]
) -> dy.DataFrame[Problems]:
    """Draws problems, each once; fewer than `count` where there seem to be no more."""
    distinct: dict[str, EmbeddedProblem] = {}
    drawn = draw_problems(Random(seed), split=split, levels=levels)
    repeated = 0
    while len(distinct) < count and repeated < MOST_REPEATED:
        problem = next(drawn)
        is_known = problem.task_id in distinct or problem.task_id in without
        repeated = repeated + 1 if is_known else 0
        if not is_known:
            distinct[problem.task_id] = problem
    rows = [
        {
            "task_id": problem.task_id,
            "problem": problem.text,
            "answer": str(problem.answer),
            "source": problem.source,
            "level": len(problem.steps),
        }
        for problem in distinct.values()
    ]
    return Problems.validate(pl.DataFrame(rows, schema=Problems.create_empty().schema))


def pick_problems(
    problems: dy.DataFrame[Problems], count: int, *, iteration: int, seed: int
) -> dy.DataFrame[Problems]:
    """Picks the problems of one iteration from a set, so that none is skipped or repeated early.

    The set is passed through again and again, in a new order each time; the pick is a function
    of the iteration alone, so a resumed run continues where it stopped. Where a pass ends within
    an iteration, the rest comes from the next pass, in which what the iteration has already
    picked is put off until later.

    Args:
        problems: The set.
        count: Problems of an iteration.
        iteration: From 1.
        seed: Seed of the orders.

    Raises:
        TurnledgerError: If the set is smaller than one iteration.
    """
    if len(problems) < count:
        raise TurnledgerError(
            f"{len(problems)} problems are fewer than the {count} of an iteration: "
            "add problems or lower rollout.prompts"
        )
    size, start = len(problems), (iteration - 1) * count
    last_pass = (start + count - 1) // size
    # Passes begin together with an iteration every `period` passes, and depend on none before.
    period = count // math.gcd(size, count)
    before = order = np.empty(0, dtype=np.int64)
    for number in range(last_pass - last_pass % period, last_pass + 1):
        shuffled = np.random.default_rng(derive_seed(seed, number)).permutation(size)
        from_before = number * size % count
        taken = order[size - from_before :]
        head = shuffled[~np.isin(shuffled, taken)][: count - from_before]
        before, order = order, np.concatenate([head, shuffled[~np.isin(shuffled, head)]])
    asked = np.concatenate([before, order])
    picked = asked[start - (last_pass + 1) * size :][:count]
    rows: pl.DataFrame = problems[picked.tolist()]
    return Problems.validate(rows)


def further_embedded_problems(
    count: int, asked: dy.DataFrame[Prompts], *, levels: tuple[int, ...], seed: int
) -> dy.DataFrame[Problems]:
    """Draws training problems beside those asked already; fewer where there are no more.

    Args:
        count: Number of problems.
        asked: Prompts of the iteration so far.
        levels: Numbers of chained steps, drawn evenly.
        seed: Seed of the draw.
    """
    without = set(asked["task_id"])
    return _draw_distinct(count, split="train", levels=levels, seed=seed, without=without)


def pick_further_problems(
    problems: dy.DataFrame[Problems], count: int, asked: dy.DataFrame[Prompts], *, seed: int
) -> dy.DataFrame[Problems]:
    """Picks problems of a set beside those asked already; fewer where there are no more.

    They are picked apart from the passes of `pick_problems`: which problems a later iteration
    asks does not depend on how often this one asked again.

    Args:
        problems: The set.
        count: Number of problems.
        asked: Prompts of the iteration so far.
        seed: Seed of the pick.
    """
    others = problems.join(asked, on="task_id", how="anti")
    order = np.random.default_rng(seed).permutation(len(others))[:count]
    rows: pl.DataFrame = others[order.tolist()]
    return Problems.validate(rows)


def make_prompts(
    problems: dy.DataFrame[Problems],
    *,
    encode: Callable[[Sequence[str]], list[list[int]]],
    round_index: int = 0,
) -> dy.DataFrame[Prompts]:
    """Adds the token ids of the prompts to problems, and the round that asks them."""
    token_ids = encode(problems["problem"].to_list())
    return Prompts.validate(
        problems.with_columns(
            prompt_token_ids=pl.Series(token_ids, dtype=pl.List(pl.Int32)),
            round=pl.lit(round_index, pl.Int32),
        )
    )
