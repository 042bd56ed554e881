"""How long new rewards for stored turns take: turn rewards, similarity, advantages, no rollout.

Fills a store with generated rollouts as a training of one iteration would have left them, then
runs `turnledger rerun turn_rewards --until advantages` with another penalty and another discount:
the start of Prefect, taking the rollouts over, reading with verification, computing, validating,
storing, and the comparison with the stored run that it ends with. Prints a table, or JSON with
`--json`.

Memory is told twice: of the process, and at the worst moment of it together with the processes
in which math-verify runs. How many answers need those decides much of the time, so their share
is an argument and their number is told.

    python -m benchmarks.rescoring --turns 1000000 --shards 32
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from benchmarks.ledger_rows import MAX_TURNS, ledger_rows
from schemas.config import RolloutConfig, RunConfig
from schemas.refs import Ref, TableRef
from stages.grading import decide
from storage import Fingerprint, RunRecord, Slot, Store

RUN = "run"


def slot_of(run: str, stage: str, *, shard: int | None = None, turn: int | None = None) -> Slot:
    return Slot(run=run, iteration=1, split="train", stage=stage, shard=shard, turn=turn)


def write(store: Store, slot: Slot, name: str, frame: pl.DataFrame, *inputs: Ref) -> TableRef:
    """Stores one table; what decides it is told well enough for a benchmark."""
    fingerprint = Fingerprint(
        stage=slot.stage,
        code={},
        config=slot.model_dump(),
        inputs={str(number): ref.digest for number, ref in enumerate(inputs)},
        seed=None,
        libraries={},
    )
    output = store.write(slot, fingerprint, tables={name: frame}, seconds=0.0, parents=inputs)
    return output.tables[name]


def fill(path: Path, turns: int, shards: int, expressions_share: float) -> Mapping[str, int]:
    """Makes the store that a training would leave, and returns what is in it."""
    store = Store.open(path, create=True)
    prompts, compared, written = [], 0, 0
    parts = ledger_rows(turns, shards=shards, expressions_share=expressions_share)
    for shard, rows in enumerate(parts):
        prompts.append(rows.prompts)
        for turn in range(MAX_TURNS):
            this = pl.col("turn_index") == turn
            slot = slot_of(RUN, "rollout", shard=shard, turn=turn)
            write(store, slot, "turns", rows.turns.filter(this))
            if turn < MAX_TURNS - 1:
                slot = slot_of(RUN, "execution", shard=shard, turn=turn)
                write(store, slot, "executions", rows.executions.filter(this))
        written += rows.turns.height
        answers = rows.turns.drop_nulls("answer").join(rows.prompts, on="task_id")
        pairs = answers.select("answer", "answer_right").unique()
        compared += sum(decide(*pair) is None for pair in pairs.iter_rows())
    write(store, slot_of(RUN, "prompts"), "prompts", pl.concat(prompts))
    rollout = RolloutConfig(shards=shards, max_turns=MAX_TURNS)
    config = RunConfig(rollout=rollout)
    store.save_run(RunRecord.new(RUN, config, status="finished", iterations_done=1))
    return {"turns": written, "groups": sum(map(len, prompts)), "math_verify_pairs": compared}


class Watch:
    """Watches the memory of a process and of those below it, MiB."""

    def __init__(self, pid: int) -> None:
        self.own_peak = 0.0
        self.peak_of_all = 0.0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        """Ends watching; the figures are final then."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.own_peak = max(self.own_peak, _memory_mib(self._pid, "VmHWM"))
            everyone = [self._pid, *_below(self._pid)]
            self.peak_of_all = max(
                self.peak_of_all, sum(_memory_mib(pid, "VmRSS") for pid in everyone)
            )


def _memory_mib(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def _below(pid: int) -> list[int]:
    try:
        files = [*Path(f"/proc/{pid}/task").glob("*/children")]
        children = [int(child) for file in files for child in file.read_text().split()]
    except OSError:  # a thread or the process has ended
        return []
    return children + [other for child in children for other in _below(child)]


def measure(folder: Path, turns: int, shards: int, share: float) -> dict[str, float]:
    """Returns the figures by name, units in the names."""
    started = time.perf_counter()
    content = fill(folder, turns, shards, share)
    figures: dict[str, float] = {**content, "shards": shards}
    figures["making_the_store_s"] = time.perf_counter() - started
    command = [sys.executable, "-m", "flows.cli", "rerun", "turn_rewards", "--until", "advantages"]
    command += ["--store", str(folder), "--from-run", RUN, "--iteration", "1", "--into", "branch"]
    command += ["--set", "no_tool_penalty=-0.2", "--set", "advantages.gamma=0.95"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    watch.stop()
    if status:
        raise RuntimeError(f"rescoring failed with status {status}")
    size = sum(f.stat().st_size for f in folder.rglob("*.parquet"))
    return figures | {
        "store_mib": size / 2**20,
        "rescoring_wall_s": wall_s,
        "rescoring_cpu_s": usage.ru_utime + usage.ru_stime,
        "turns_per_s": content["turns"] / wall_s,
        "peak_rss_mib": watch.own_peak,
        "peak_rss_with_children_mib": watch.peak_of_all,
    }


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=1_000_000, help="turns to store (1,000,000)")
    parser.add_argument("--shards", type=int, default=32, help="shards of the iteration (32)")
    parser.add_argument(
        "--expressions", type=float, default=0.05, help="share of groups for math-verify (0.05)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            Path(folder) / "store", arguments.turns, arguments.shards, arguments.expressions
        )
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:30} {value:14,.1f}")


if __name__ == "__main__":
    main()
