"""Measures an update on two processes against one, each with one thread; both take turns.

What counts is the time inside the steps, as the table `updates` has it: starting processes and
opening the policy takes seconds once an update, whatever its size, and is printed beside it.

    python -m benchmarks.processes
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.optimisation import make_batch, make_model
from flows.learning import Job
from flows.learning_processes import update_policy
from schemas.config import ComputeConfig, PolicyConfig
from schemas.optimisation import OptimisationConfig
from stages.cold_start.tiny_policy import make_tokenizer
from storage.checkpoints import save_policy


def main() -> None:
    """Reads the options and prints the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(1)
    answers = random.lognormal(4.4, 0.7, asked.trajectories).clip(12, 700).astype(np.int64)
    batch = make_batch(answers, prompt=30, vocabulary=512)
    config = OptimisationConfig(measure_change=False, max_kl=1e30)
    table = Table("round", "processes", "tokens/s in steps", "seconds in steps", "seconds in all")
    seconds: dict[int, list[float]] = {1: [], asked.processes: []}
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder)
        save_policy(
            policy, make_model(asked.hidden, 512), make_tokenizer(["a"], PolicyConfig()), None
        )
        job = Job(
            policy=policy,
            reference=None,
            batch=batch,
            config=config,
            seed=0,
            iteration=1,
            iterations=1,
        )
        for number in range(asked.rounds):
            for processes, all_taken in seconds.items():
                began = time.perf_counter()
                compute = ComputeConfig(threads=1, processes=processes)
                with console.status(f"round {number + 1}, processes: {processes}"):
                    update, _ = update_policy(job, compute, lambda text: None)
                total = time.perf_counter() - began
                taken = float(update.updates["seconds"].sum())
                all_taken.append(taken)
                speed = int(batch.lengths.sum()) / taken
                table.add_row(
                    str(number + 1), str(processes), f"{speed:,.0f}", f"{taken:.2f}", f"{total:.2f}"
                )
    console.print(table)
    ratios = [one / many for one, many in zip(*seconds.values(), strict=True)]
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    console.print(f"times one process: median {median(ratios):.2f} of {told}")


if __name__ == "__main__":
    main()
