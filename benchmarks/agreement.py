"""How often agreement with peers is right, where no trajectory of a group is.

Of stored runs on the embedded problems, whose steps have known results: the turns of all-wrong
groups that `groups_without_outcome_variance=agreement` credits, and how many of those above and
below zero were right steps, after nothing but right steps. Whatever the runs were trained by, the
credit is computed here from their stored rewards.

    python -m benchmarks.agreement --store STORE RUN [RUN ...]
"""

import argparse
import re

import polars as pl

from schemas.config import AdvantagesConfig
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, ShapedRewards
from stages.advantages import estimate_advantages
from stages.cold_start.families import FAMILIES
from storage import open_table

SETTINGS = AdvantagesConfig(estimator="grpo", groups_without_outcome_variance="agreement")
PERIOD = 5
"""Iterations that are told together."""
_BY_NAME = {family.name: family for family in FAMILIES}


def results_of_steps(task_id: str) -> list[str]:
    """Returns what each step of an embedded problem yields, read from its identity."""
    start, *steps = task_id.split(":")
    value, results = int(start), []
    for step in steps:
        name, parameters = re.fullmatch(r"(\w+)\((.*)\)", step).groups()  # type: ignore[union-attr]
        value = _BY_NAME[name].compute(value, *map(int, filter(None, parameters.split(","))))
        results.append(str(value))
    return results


def credited_turns(store: str, run: str) -> pl.DataFrame:
    """Returns the turns that agreement credits: `iteration`, `advantage`, and `right`, whether the
    turn and all before it printed the result of their step."""
    rewards = open_table(store, run, "shaped_rewards").collect()
    printed = open_table(store, run, "executions").select("iteration", *TURN_KEY, "stdout")
    credit = []
    for (iteration,), batch in rewards.group_by("iteration", maintain_order=True):
        shaped = ShapedRewards.validate(batch.select(ShapedRewards.column_names()), cast=True)
        estimated = estimate_advantages(shaped, SETTINGS)
        credit.append(estimated.with_columns(iteration=pl.lit(iteration, pl.Int32)))
    tasks = rewards.select("task_id").unique()
    truth = tasks.with_columns(
        result=pl.col("task_id").map_elements(results_of_steps, return_dtype=pl.List(pl.String))
    )
    is_step = pl.col("stdout").str.strip_chars() == pl.col("result").list.get(
        pl.col("turn_index"), null_on_oob=True
    )
    return (
        pl.concat(credit)
        .lazy()
        .join(printed, on=["iteration", *TURN_KEY], how="left")
        .join(truth.lazy(), on="task_id")
        .sort("iteration", *TURN_KEY)
        .with_columns(right=is_step.fill_null(False).cum_min().over("iteration", *TRAJECTORY_KEY))
        .filter("outcomes_equal", pl.col("advantage").abs() > 1e-9)
        .select("iteration", "advantage", "right")
        .collect()
    )


def main() -> None:
    """Prints a row for every period of iterations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", default="turnledger-store")
    parser.add_argument("runs", nargs="+")
    asked = parser.parse_args()
    turns = pl.concat(credited_turns(asked.store, run) for run in asked.runs)
    told = (
        turns.group_by(period=(pl.col("iteration") - 1) // PERIOD)
        .agg(
            turns=pl.len(),
            above=pl.col("right").filter(pl.col("advantage") > 0).mean(),
            below=pl.col("right").filter(pl.col("advantage") < 0).mean(),
        )
        .sort("period")
    )
    print("iterations  turns credited  right steps: above zero  below")
    for row in told.iter_rows(named=True):
        first = row["period"] * PERIOD + 1
        print(
            f"{first:4} to {first + PERIOD - 1:2}  {row['turns']:14,}"
            f"  {row['above']:23.0%}  {row['below']:5.0%}"
        )


if __name__ == "__main__":
    main()
