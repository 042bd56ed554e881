"""How long new rewards for stored turns take: turn rewards, similarity, advantages, no rollout.

Fills a store with generated rollouts as a training of one iteration would have left them, then
computes the three stages anew from what is stored, in a process of its own: reading with
verification, computing, validating and storing. Prints a table, or JSON with `--json`.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl

from benchmarks.ledger_rows import MAX_TURNS, ledger_rows
from schemas.config import AdvantagesConfig, SimilarityConfig, TurnRewardsConfig
from schemas.refs import Ref, TableRef
from schemas.tables import Executions, Prompts, ShapedRewards, TurnRewards, Turns
from stages.advantages import estimate_advantages
from stages.grading import decide
from stages.shards import take_shard
from stages.similarity import shape_rewards
from stages.turn_rewards import score_turns
from storage import Fingerprint, Slot, Store

RUN, BRANCH = "run", "branch"
SHARDS_AT_ONCE = 2


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


def stored(store: Store, slot: Slot, name: str) -> TableRef:
    manifest = store.manifest(slot)
    assert manifest is not None, slot.uri
    return manifest.output(slot.uri).tables[name]


def fill(path: Path, turns: int, shards: int, expressions_share: float) -> Mapping[str, int]:
    """Makes the store that a training would leave, and returns what is in it."""
    store = Store.open(path, create=True)
    prompts, compared, written = [], 0, 0
    parts = ledger_rows(turns, shards=shards, expressions_share=expressions_share)
    for shard, rows in enumerate(parts):
        prompts.append(rows.prompts)
        for turn in range(MAX_TURNS):
            now = pl.col("turn_index") == turn
            slot = slot_of(RUN, "rollout", shard=shard, turn=turn)
            write(store, slot, "turns", rows.turns.filter(now))
            if turn < MAX_TURNS - 1:
                slot = slot_of(RUN, "execution", shard=shard, turn=turn)
                write(store, slot, "executions", rows.executions.filter(now))
        written += rows.turns.height
        answers = rows.turns.drop_nulls("answer").join(rows.prompts, on="task_id")
        pairs = answers.select("answer", "answer_right").unique()
        compared += sum(decide(*pair) is None for pair in pairs.iter_rows())
    write(store, slot_of(RUN, "prompts"), "prompts", pl.concat(prompts))
    return {"turns": written, "groups": sum(map(len, prompts)), "math_verify_pairs": compared}


# --- what is measured -------------------------------------------------------------------------


def rescore(path: Path, shards: int) -> None:
    """Computes the rewards of a store anew.

    Stands for the rerun of the flows: this function, and only it, is to give way to that.
    """
    store = Store.open(path)
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        refs = list(threads.map(lambda shard: _rescore_shard(store, shard, shards), range(shards)))
    shaped = ShapedRewards.validate(pl.concat([store.read(ref) for ref in refs]))
    advantages = estimate_advantages(shaped, AdvantagesConfig(gamma=0.95))
    write(store, slot_of(BRANCH, "advantages"), "advantages", advantages, *refs)


def _rescore_shard(store: Store, shard: int, shards: int) -> TableRef:
    turns = [
        stored(store, slot_of(RUN, "rollout", shard=shard, turn=turn), "turns")
        for turn in range(MAX_TURNS)
    ]
    executions = [
        stored(store, slot_of(RUN, "execution", shard=shard, turn=turn), "executions")
        for turn in range(MAX_TURNS - 1)
    ]
    prompts = stored(store, slot_of(RUN, "prompts"), "prompts")
    scored = score_turns(
        take_shard(Prompts.validate(store.read(prompts)), shard, shards),
        Turns.validate(pl.concat([store.read(ref) for ref in turns])),
        Executions.validate(pl.concat([store.read(ref) for ref in executions])),
        TurnRewardsConfig(),
    )
    slot = slot_of(BRANCH, "turn_rewards", shard=shard)
    rewards = write(store, slot, "turn_rewards", scored, prompts, *turns, *executions)
    shaped = shape_rewards(
        Turns.validate(pl.concat([store.read(ref) for ref in turns])),
        TurnRewards.validate(store.read(rewards)),
        SimilarityConfig(),
    )
    slot = slot_of(BRANCH, "similarity", shard=shard)
    return write(store, slot, "shaped_rewards", shaped, rewards, *turns)


# --- how it is measured -----------------------------------------------------------------------


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
    command = [sys.executable, "-m", "benchmarks.rescoring"]
    command += ["--rescore", str(folder), "--shards", str(shards)]
    started = time.perf_counter()
    process = subprocess.Popen(command)
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
    parser.add_argument("--rescore", type=Path, help="only compute, in a store made before")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.rescore is not None:
        rescore(arguments.rescore, arguments.shards)
        return
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
