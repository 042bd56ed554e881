"""How far a rollout with slow executions waits for them: 200 ms each, against none.

Starts a policy on demonstrations, then rolls the same groups out twice, by the real flow, engine
and sandbox: once as they are, once with every snippet sleeping first. The samples are the same,
so the difference is waiting. Prints a table, or JSON with `--json`; `--figure` draws the timeline
of the second.

    python -m benchmarks.overlap --groups 32 --samples 8
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")

import polars as pl
from prefect import flow

import flows.sampling_tasks
from flows.binding import Place
from flows.policies import stored_policy
from flows.resources import executor_of
from flows.rollouts import ask, shards_of, submit_rollout
from flows.sessions import session
from flows.train import SHARDS_AT_ONCE, load_problem_sets, train
from flows.work_times import draw_timeline, utilisation, work_times
from schemas.config import ExecutionConfig, RunConfig
from schemas.config_text import parse_config
from stages.execution import Executor
from storage import Store


class Sleepy:
    """An executor whose snippets sleep before they do anything else."""

    def __init__(self, config: ExecutionConfig, sleep_s: float) -> None:
        self._executor: Executor = executor_of(config)
        self._sleep = f"import time\ntime.sleep({sleep_s})\n"

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        """Runs every snippet after its sleep."""
        return self._executor.execute(snippets.with_columns(code=self._sleep + pl.col("code")))


@flow(name="rollout", task_runner=SHARDS_AT_ONCE, persist_result=False)
def roll_out(place: Place, config: RunConfig) -> None:
    """Rolls one iteration out and does nothing else."""
    first = stored_policy(place.open(), place.run, 0)
    prompts = ask(place, first, load_problem_sets(place.at(0), config), config)
    shards = shards_of(config.rollout.shards, prompts.rows)
    for chain in submit_rollout(place, prompts, shards, first, first, config):
        for output in (*chain.turns, *chain.executions):
            output.result()


def measure(store: Store, run: str, config: RunConfig, sleep_s: float) -> pl.DataFrame:
    """Returns the times of a rollout whose snippets sleep."""
    place = Place(store=store.url, run=run, iteration=1)
    start = config.model_copy(update={"iterations": 0})
    with session(store, run, start):
        train(store.url, run, start)
        sleepy = Sleepy(config.execution, sleep_s)
        flows.sampling_tasks.executor_of = lambda config: sleepy
        roll_out(place.model_copy(update={"refresh": ("rollout", "execution")}), config)
    return work_times(store.url, run, iteration=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--sleep-s", type=float, default=0.2)
    parser.add_argument("--cold-start-steps", type=int, default=400)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    config = parse_config(
        overrides=[
            f"rollout.prompts={asked.groups}",
            f"rollout.samples={asked.samples}",
            f"rollout.shards={asked.shards}",
            f"cold_start.steps={asked.cold_start_steps}",
            "evaluation.problems=1",
            "evaluation.samples=1",
        ]
    )
    figures: dict[str, float] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store", create=True)
        for name, sleep_s in (("instant", 0.0), ("slow", asked.sleep_s)):
            times = measure(store, name, config, sleep_s)
            figures[f"{name}_rollout_s"] = float(times["end_s"].max())
            for row in utilisation(times).iter_rows(named=True):
                figures[f"{name}_{row['work']}_share"] = row["share"]
                figures[f"{name}_{row['work']}_turns"] = row["turns"]
            if asked.figure and name == "slow":
                title = f"{asked.shards} shards, snippets of {1000 * sleep_s:.0f} ms"
                draw_timeline(times, title, asked.figure)
    figures["slow_to_instant_ratio"] = figures["slow_rollout_s"] / figures["instant_rollout_s"]
    figures["benchmark_s"] = time.perf_counter() - started
    if asked.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:10.2f}")


if __name__ == "__main__":
    main()
