"""What a Ray or Dask cluster costs and gives for new rewards of stored turns, against threads.

Fills a store with generated rollouts, then has turn rewards and similarity of every shard computed
anew on threads of the flow's process, on a Ray cluster and on a Dask cluster of this machine, in
turns, several rounds, with another penalty each time so that nothing is found stored. The clusters
and the Prefect server run already; how long a cluster takes to its first result is told apart.

Twice: with few large shards, where the work counts, and with many tiny ones, where what a stage run
costs beside its work does. Prints medians, or JSON with `--json`. On a machine whose cores are
busy already a cluster makes nothing faster: its use is on other machines.

    python -m benchmarks.scale_out
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")

import flows  # noqa: F401, I001  sets what Prefect and Ray are to do without
import ray
from distributed import LocalCluster
from prefect import flow

from benchmarks.rescoring import RUN, fill
from flows.catalogue import Scope
from flows.clusters import OBJECT_STORE_BYTES
from flows.rerun import rerun
from flows.sessions import branch_config, session
from storage import RunParent, Store

STAGES_A_SHARD = 2
"""Turn rewards and similarity."""


@flow(persist_result=False)
def nothing() -> None:
    """Has the Prefect server started."""


@contextmanager
def clusters(cores: int) -> Iterator[dict[str, list[str]]]:
    """Starts both clusters; yields the settings that name each."""
    with ExitStack() as running:
        ray.init(
            "local",
            num_cpus=cores,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
        )
        running.callback(ray.shutdown)
        dask = running.enter_context(
            LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address="127.0.0.1:0")
        )
        yield {
            "threads": [],
            "ray": ["compute.task_runner=ray"],
            "dask": ["compute.task_runner=dask", f"compute.cluster_url={dask.scheduler_address}"],
        }


def rescored_s(store: Store, number: int, runner: list[str]) -> float:
    """Returns the seconds of a rerun whose penalty no earlier one had."""
    penalty = f"no_tool_penalty={-0.2 - number / 1_000:.4f}"
    _, config = branch_config(store, RUN, Scope.of("turn_rewards"), [penalty, *runner])
    into = f"branch-{number}"
    parent = RunParent(run=RUN, iteration=1, stage="turn_rewards", overrides=[penalty])
    with session(store, into, config, parent=parent):
        started = time.perf_counter()
        rerun(store.url, RUN, into, 1, "turn_rewards", config, until="similarity")
        return time.perf_counter() - started


def measure(folder: Path, turns: int, shards: int, rounds: int, cores: int) -> dict[str, float]:
    """Returns the figures of one store by name, units in the names."""
    content = fill(folder, turns, shards, 0.0)
    store = Store.open(folder)
    figures: dict[str, float] = {"turns": content["turns"], "shards": shards}
    number = 0
    with clusters(cores) as runners:
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        first: dict[str, float] = {}
        for round_index in range(rounds + 1):
            for name, settings in runners.items():
                number += 1
                taken = rescored_s(store, number, settings)
                if round_index == 0:  # its workers import everything now
                    first[name] = taken
                else:
                    seconds[name].append(taken)
    threads = statistics.median(seconds["threads"])
    figures["threads_s"] = threads
    for name in ("ray", "dask"):
        median = statistics.median(seconds[name])
        figures[f"{name}_s"] = median
        figures[f"{name}_ratio"] = median / threads
        figures[f"{name}_more_ms_a_stage_run"] = (
            1_000 * (median - threads) / (STAGES_A_SHARD * shards)
        )
        figures[f"{name}_first_time_s"] = first[name] - median
    return figures


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=200_000, help="of the large shards (200,000)")
    parser.add_argument("--shards", type=int, default=8, help="large shards (8)")
    parser.add_argument("--tiny-shards", type=int, default=48, help="of 30 turns each (48)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--cores", type=int, default=2, help="workers of each cluster (2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    nothing()
    cases = {
        "large": (arguments.turns, arguments.shards),
        "tiny": (30 * arguments.tiny_shards, arguments.tiny_shards),
    }
    figures: dict[str, float] = {}
    for case, (turns, shards) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(
                Path(folder) / "store", turns, shards, arguments.rounds, arguments.cores
            )
        figures |= {f"{case}_{name}": value for name, value in measured.items()}
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:34} {value:12,.2f}")


if __name__ == "__main__":
    main()
