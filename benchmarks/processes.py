"""Measures an update on several processes against one, each with one thread; they take turns.

Only the steps count: starting processes takes some seconds an update, whatever its size. Each round
starts the processes anew and has the shortest of its repeats. On a machine with other work the wall
time says little, for processes wait for each other: the time that the busiest process computed is
printed beside it, and what the ratio would be were nothing else there.

    python -m benchmarks.processes
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from benchmarks.optimisation import make_batch, make_model
from schemas.optimisation import OptimisationConfig
from stages.optimisation import optimise
from stages.optimisation.devices import ONE_DEVICE, Devices
from stages.optimisation.sharding import ShardedDevices

CONFIG = OptimisationConfig(measure_change=False, max_kl=1e30)


def measure(asked: argparse.Namespace) -> None:
    """Prints wall and processor time of the shortest update, seconds each, of this process."""
    torch.set_num_threads(1)
    answers = np.random.default_rng(1).lognormal(4.4, 0.7, asked.trajectories)
    batch = make_batch(answers.clip(12, 700).astype(np.int64), prompt=30, vocabulary=512)
    model = make_model(asked.hidden, 512)
    devices: Devices = ONE_DEVICE
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        devices = ShardedDevices(model, by_block=False)
    wall, computed = float("inf"), float("inf")
    for _ in range(asked.repeats):
        began, worked = time.perf_counter(), time.process_time()
        optimise(model, batch, CONFIG, optimiser_state=None, seed=0, devices=devices)
        wall = min(wall, time.perf_counter() - began)
        computed = min(computed, time.process_time() - worked)
    print(json.dumps({"wall": wall, "computed": computed, "tokens": int(batch.lengths.sum())}))
    if dist.is_initialized():
        dist.destroy_process_group()


def run(asked: argparse.Namespace, processes: int) -> tuple[float, float, int]:
    """Returns wall time, processor time of the busiest process, and tokens of an update."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    command += ["-m", "benchmarks.processes", "--measure", "--hidden", str(asked.hidden)]
    command += ["--trajectories", str(asked.trajectories), "--repeats", str(asked.repeats)]
    told = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
    return (
        max(one["wall"] for one in found),
        max(one["computed"] for one in found),
        found[0]["tokens"],
    )


def main() -> None:
    """Reads the options and prints the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked)
        return
    console = Console()
    table = Table("round", "processes", "tokens/s", "seconds", "computed, seconds")
    wall: list[float] = []
    computed: list[float] = []
    for number in range(asked.rounds):
        found = []
        for processes in (1, asked.processes):
            with console.status(f"round {number + 1}, processes: {processes}"):
                found.append(run(asked, processes))
            seconds, worked, tokens = found[-1]
            table.add_row(
                str(number + 1),
                str(processes),
                f"{tokens / seconds:,.0f}",
                f"{seconds:.2f}",
                f"{worked:.2f}",
            )
        wall.append(found[0][0] / found[1][0])
        computed.append(found[0][1] / found[1][1])
    console.print(table)
    for name, ratios in (("wall time", wall), ("computing time", computed)):
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        console.print(f"times one process by {name}: median {median(ratios):.2f} of {told}")


if __name__ == "__main__":
    main()
