"""Prompts: which problems an iteration asks, and how the policy sees them."""

import math
from collections.abc import Callable, Sequence
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
    distinct: dict[str, EmbeddedProblem] = {}
    drawn = draw_problems(Random(seed), split=split, levels=levels)
    repeated = 0
    for problem in drawn:
        repeated = repeated + 1 if problem.task_id in distinct else 0
        distinct.setdefault(problem.task_id, problem)
        if len(distinct) == count:
            break
        if repeated == MOST_REPEATED:
            raise TurnledgerError(
                f"the embedded families have not {count} distinct problems of these levels: "
                "ask for fewer, or add higher problems.levels"
            )
    return Problems.validate(
        pl.DataFrame(
            [
                {
                    "task_id": problem.task_id,
                    "problem": problem.text,
                    "answer": str(problem.answer),
                    "source": problem.source,
                    "level": len(problem.steps),
                }
                for problem in distinct.values()
            ]
        ),
        cast=True,
    )


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


def make_prompts(
    problems: dy.DataFrame[Problems], *, encode: Callable[[Sequence[str]], list[list[int]]]
) -> dy.DataFrame[Prompts]:
    """Adds the token ids of the prompts to problems."""
    token_ids = encode(problems["problem"].to_list())
    return Prompts.validate(
        problems.with_columns(prompt_token_ids=pl.Series(token_ids, dtype=pl.List(pl.Int32)))
    )
