"""How long the web pages of a long run take: a run of a million turns, and any trajectory of it.

Makes the store that a training would leave, with generated rollouts that are scored, shaped and
credited by the real stages, serves it with `turnledger page`, and asks for pages as a browser does.
The first answer of each kind of page is told, and the median of several; of trajectories and groups
each is another one. What a browser takes to draw them is not measured.

    python -m benchmarks.page --turns 1000000 --iterations 40
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from urllib.parse import urlencode

import polars as pl

from benchmarks.ledger_rows import MAX_TURNS, LedgerRows, ledger_rows
from benchmarks.printing import Figures, print_figures
from benchmarks.rescoring import write
from schemas.config import AdvantagesConfig, RolloutConfig, RunConfig, SimilarityConfig
from schemas.config import TurnRewardsConfig as RewardsConfig
from stages.advantages import estimate_advantages
from stages.similarity import shape_rewards
from stages.turn_rewards import score_turns
from storage import RunRecord, Slot, Store

RUN = "long"
BRANCH = "branch"


def fill(path: Path, turns: int, iterations: int, shards: int) -> list[tuple[int, str]]:
    """Makes the store; returns iteration and task of its groups."""
    store = Store.open(path, create=True)
    groups = []
    for iteration in range(1, iterations + 1):
        rows = ledger_rows(
            turns // iterations, shards=shards, expressions_share=0.0, seed=iteration
        )
        prompts, shaped = [], []
        for shard, part in enumerate(rows):
            prompts.append(part.prompts)
            shaped.append(_store_shard(store, iteration, shard, part))
        asked, rewards = pl.concat(prompts), pl.concat(shaped)
        groups += [(iteration, task) for task in asked["task_id"]]
        write(store, _slot(RUN, iteration, "prompts"), "prompts", asked)
        for run, gamma in ((RUN, 0.9), (BRANCH, 0.5)):
            credit = estimate_advantages(rewards, AdvantagesConfig(gamma=gamma))
            write(store, _slot(run, iteration, "advantages"), "advantages", credit)
    config = RunConfig(iterations=iterations, rollout=RolloutConfig(shards=shards))
    for run in (RUN, BRANCH):
        store.save_run(RunRecord.new(run, config, status="finished", iterations_done=iterations))
    return groups


def _store_shard(store: Store, iteration: int, shard: int, part: LedgerRows) -> pl.DataFrame:
    for turn in range(MAX_TURNS):
        this = pl.col("turn_index") == turn
        slot = _slot(RUN, iteration, "rollout", shard=shard, turn=turn)
        write(store, slot, "turns", part.turns.filter(this))
        if turn < MAX_TURNS - 1:
            slot = _slot(RUN, iteration, "execution", shard=shard, turn=turn)
            write(store, slot, "executions", part.executions.filter(this))
    rewards = score_turns(part.prompts, part.turns, part.executions, RewardsConfig())
    slot = _slot(RUN, iteration, "turn_rewards", shard=shard)
    write(store, slot, "turn_rewards", rewards)
    shaped = shape_rewards(part.turns, rewards, SimilarityConfig())
    write(store, _slot(RUN, iteration, "similarity", shard=shard), "shaped_rewards", shaped)
    return shaped


def _slot(
    run: str, iteration: int, stage: str, *, shard: int | None = None, turn: int | None = None
) -> Slot:
    return Slot(run=run, iteration=iteration, split="train", stage=stage, shard=shard, turn=turn)


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """Serves a store; yields the address."""
    command = [sys.executable, "-m", "flows.cli", "page", "--store", str(path), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        yield found.group().rstrip("/")
    finally:
        server.terminate()
        server.wait()


def measure(path: Path, groups: list[tuple[int, str]], repeats: int) -> dict[str, float]:
    """Returns seconds by kind of page: of the first, and the median of all."""
    random, figures = Random(0), Figures()
    with serving(path) as address:
        for _ in range(repeats):
            iteration, task = random.choice(groups)
            at = f"/runs/{RUN}/iterations/{iteration}"
            trajectory = urlencode({"task": task, "sample": random.randrange(8)})
            filters = ("shaped", "against-outcome", "timeouts", "void")
            pages = {
                "list of runs": "/",
                "run": f"/runs/{RUN}",
                "iteration": at,
                **{f"iteration, {name}": f"{at}?show={name}" for name in filters},
                "iteration, flips": f"{at}?show=flips&against={BRANCH}",
                "trajectory": f"{at}/trajectory?{trajectory}",
                "compared runs": f"/compare?a={RUN}&b={BRANCH}&iteration={iteration}",
            }
            for name, page in pages.items():
                started = time.perf_counter()
                with urllib.request.urlopen(address + page) as answer:
                    answer.read()
                figures.add(**{name: time.perf_counter() - started})
    firsts = {f"{name}, first": values[0] for name, values in figures.values.items()}
    return firsts | figures.medians()


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=1_000_000, help="turns to store (1,000,000)")
    parser.add_argument("--iterations", type=int, default=40, help="iterations of them (40)")
    parser.add_argument("--shards", type=int, default=4, help="shards of an iteration (4)")
    parser.add_argument("--repeats", type=int, default=5, help="pages of each kind (5)")
    parser.add_argument("--store", type=Path, help="where to keep the store, to look at it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.store or Path(folder) / "store"
        groups = fill(path, options.turns, options.iterations, options.shards)
        figures = measure(path, groups, options.repeats)
    title = f"seconds, {options.turns:,} turns in {options.iterations} iterations"
    print_figures(figures, title, as_json=options.json)


if __name__ == "__main__":
    main()
