"""Turn rewards and advantages of a million stored turns, and of plain loops over groups.

In one run: groups of 16 trajectories with 1 to 8 turns each, in memory; the two stages by GTPO, and
every estimator. Beside them rewards and advantages of GTPO from the same frame by loops over groups
and turns, once with the tensors in which trainers hold them and once with plain numbers, on a part
of the groups and told as the time for all; the loops check nothing and keep no columns. Answers are
whole numbers, as most are: what math-verify takes is measured by `benchmarks.grading`.

    python -m benchmarks.credit --turns 1000000 --json
"""

import argparse
import time
from collections.abc import Callable
from statistics import stdev
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import torch

from benchmarks.printing import print_figures
from schemas.config import AdvantagesConfig, TurnRewardsConfig
from schemas.tables import TURN_KEY, Executions, Prompts, ShapedRewards, Turns
from stages.advantages import ESTIMATORS, estimate_advantages
from stages.turn_rewards import score_turns

SAMPLES = 16
MOST_TURNS = 8
GAMMA = 0.9


def draw_rows(turns: int) -> pl.DataFrame:
    """Returns about so many turns of whole groups: keys, code, answers and parse errors."""
    random = np.random.default_rng(0)
    groups = max(1, round(turns / (SAMPLES * (1 + MOST_TURNS) / 2)))
    lengths = random.integers(1, MOST_TURNS + 1, groups * SAMPLES)
    trajectory = np.repeat(np.arange(len(lengths)), lengths)
    index = np.arange(len(trajectory)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    is_last = index == lengths[trajectory] - 1
    draw = random.random(len(trajectory))
    return pl.DataFrame(
        {
            "task_id": trajectory // SAMPLES,
            "sample_index": trajectory % SAMPLES,
            "turn_index": index,
            "is_last": is_last,
            "answer": np.where(draw < 0.5, trajectory // SAMPLES, trajectory),
            "has_code": ~is_last & (draw < 0.95),
        }
    ).with_columns(
        pl.format("task-{}", pl.col("task_id").cast(pl.String).str.zfill(7)).alias("task_id"),
        answer=pl.when("is_last").then(pl.col("answer").cast(pl.String)),
        code=pl.when("has_code").then(pl.lit("print(1)")),
        parse_error=pl.when(~pl.col("has_code") & ~pl.col("is_last")).then(pl.lit("unclosed_code")),
    )


def typed(
    rows: pl.DataFrame,
) -> tuple[dy.DataFrame[Prompts], dy.DataFrame[Turns], dy.DataFrame[Executions]]:
    """Returns the tables that the stages take."""
    turns = rows.select(*TURN_KEY, "code", "answer", "parse_error").with_columns(
        text=pl.lit(""),
        token_ids=pl.lit([1, 2, 3]),
        logprobs=pl.lit([-0.5, -0.5, -0.5]),
        finish_reason=pl.lit("code"),
        reasoning=pl.lit(""),
        temperature=pl.lit(1.0),
        top_p=pl.lit(1.0),
        top_k=pl.lit(0),
        policy_version=pl.lit(0),
        seed=pl.lit(0),
    )
    prompts = (
        rows.select("task_id")
        .unique(maintain_order=True)
        .with_columns(
            problem=pl.lit("?"),
            answer=pl.col("task_id").str.slice(5).cast(pl.Int64).cast(pl.String),
            source=pl.lit("benchmark"),
            level=pl.lit(1),
            prompt_token_ids=pl.lit([1]),
            round=pl.lit(0),
        )
    )
    executions = (
        rows.filter("has_code")
        .select(TURN_KEY)
        .with_columns(
            status=pl.lit("ok"),
            stdout=pl.lit("1"),
            stderr=pl.lit(""),
            exit_code=pl.lit(0),
            wall_s=pl.lit(0.1),
            cpu_s=pl.lit(0.1),
            observation=pl.lit("1"),
            observation_token_ids=pl.lit([1]),
        )
    )
    return (
        Prompts.validate(prompts.select(Prompts.column_names()), cast=True),
        Turns.validate(turns.select(Turns.column_names()), cast=True),
        Executions.validate(executions.select(Executions.column_names()), cast=True),
    )


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the wall time of some work, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


Listed = list[dict[str, Any]]
Looped = Callable[[list[list[float]], float], list[float]]


def loop_over_groups(
    rows: Listed, gold: dict[str, str], credit: Looped
) -> tuple[list[float], float]:
    """Rewards and credits turns group by group, turn by turn; returns the seconds of credit too."""
    credit_s = 0.0
    groups: dict[str, dict[int, Listed]] = {}
    for row in rows:
        groups.setdefault(row["task_id"], {}).setdefault(row["sample_index"], []).append(row)
    advantages = []
    for task, trajectories in groups.items():
        rewarded = []
        for turns in trajectories.values():
            rewards = []
            for turn in turns:
                right = turn["is_last"] and turn["answer"] == gold[task]
                invalid = -0.1 if turn["parse_error"] else 0.0
                silent = turn["turn_index"] == 0 and not turn["code"] and not turn["parse_error"]
                rewards.append(float(right) + invalid + (-0.1 if silent else 0.0))
            rewarded.append(rewards)
        started = time.perf_counter()
        advantages += credit(rewarded, GAMMA)
        credit_s += time.perf_counter() - started
    return advantages, credit_s


def with_numbers(rewards: list[list[float]], gamma: float) -> list[float]:
    """Credits one group in plain Python."""
    flat = []
    for trajectory in rewards:
        ahead, discounted = 0.0, []
        for reward in reversed(trajectory):
            ahead = reward + gamma * ahead
            discounted.append(ahead)
        flat += discounted[::-1]
    middle, scale = sum(flat) / len(flat), stdev(flat) if len(flat) > 1 else 0.0
    return [(value - middle) / (scale + 1e-9) for value in flat]


def with_tensors(rewards: list[list[float]], gamma: float) -> list[float]:
    """Credits one group with a tensor a trajectory, as trainers hold rewards."""
    returns = []
    for trajectory in rewards:
        tensor = torch.tensor(trajectory, dtype=torch.float64)
        discounted = torch.zeros_like(tensor)
        ahead = torch.zeros((), dtype=torch.float64)
        for turn in reversed(range(len(tensor))):
            ahead = tensor[turn] + gamma * ahead
            discounted[turn] = ahead
        returns.append(discounted)
    flat = torch.cat(returns)
    scale = flat.std() if len(flat) > 1 else torch.zeros(())
    advantages: list[float] = ((flat - flat.mean()) / (scale + 1e-9)).tolist()
    return advantages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--loop-turns", type=int, default=50_000, help="for the loop (50000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = draw_rows(options.turns)
    prompts, turns, executions = typed(rows)
    keep = AdvantagesConfig(gamma=GAMMA, groups_without_outcome_variance="keep")
    score_turns(*typed(rows.head(1000)), TurnRewardsConfig())  # loads what is loaded once
    reward_s, rewards = seconds_of(
        lambda: score_turns(prompts, turns, executions, TurnRewardsConfig())
    )
    shaped = ShapedRewards.validate(
        rewards.with_columns(
            shaping=pl.lit("no_peers"),
            peers=pl.lit(0),
            similarity_mean=pl.lit(None, pl.Float64),
            similarity_max=pl.lit(None, pl.Float64),
            shaped_accuracy="accuracy",
            shaped_total="total",
        ).select(ShapedRewards.column_names()),
        cast=True,
    )
    count = shaped.height
    figures = {"turns": float(count), "turn rewards, s": reward_s}
    for name in ESTIMATORS:
        config = keep.model_copy(update={"estimator": name})
        figures[f"advantages by {name}, s"], _ = seconds_of(
            lambda config=config: estimate_advantages(shaped, config)
        )
    both = reward_s + figures["advantages by gtpo, s"]
    figures["turn rewards and advantages by gtpo, s"] = both
    part = rows.filter(pl.col("task_id") <= rows["task_id"][min(options.loop_turns, count) - 1])
    gold = dict(prompts.select("task_id", "answer").iter_rows())
    ours = estimate_advantages(ShapedRewards.validate(shaped.head(part.height)), keep)["advantage"]
    torch.set_num_threads(1)  # its operations are too small to share
    for name, credit in (("tensors", with_tensors), ("plain numbers", with_numbers)):
        loop_s, (looped, credit_s) = seconds_of(
            lambda credit=credit: loop_over_groups(part.rows(named=True), gold, credit)
        )
        off = np.abs(np.array(looped) - ours.fill_null(0.0).to_numpy()).max()
        assert off < 1e-6, f"the loop with {name} computes something else: {off}"
        share = count / part.height
        figures[f"loop with {name}, s for as many turns"] = loop_s * share
        figures[f"ratio to the loop with {name}"] = loop_s * share / both
        figures[f"advantages alone, ratio to the loop with {name}"] = (
            credit_s * share / figures["advantages by gtpo, s"]
        )
    print_figures(figures, "Credit of stored turns", as_json=options.json)


if __name__ == "__main__":
    main()
