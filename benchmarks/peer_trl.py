"""Trains the same policy on the same task with this project and with TRL, and compares them.

Both start from one cold start, meet the same prompts in the same order, sample as many
trajectories with the same limits, execute code in the same sandbox and learn by GRPO from the same
reward, with the settings of `recipes/study.toml`, task `mid`. TRL runs in a process of its own.
They take turns, an iteration each, so that other work on the machine meets both. Processor time
is that of the two trainers' processes, without the sandbox and Prefect's server. Needs the extra
`trl`.

    python -m benchmarks.peer_trl --iterations 10 --seed 1
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")

import polars as pl
from prefect import flow
from rich.console import Console
from rich.table import Table

from flows.artifacts import EventLog, publish_iteration
from flows.binding import Place
from flows.events import StageEvent, listening
from flows.kept_policies import PolicyKeeper
from flows.policies import stored_policy
from flows.report import accuracy_by_iteration
from flows.rollouts import ask
from flows.sessions import session
from flows.train import SHARDS_AT_ONCE, load_problem_sets, note_iteration, train, training
from flows.work_times import utilisation, work_times
from schemas.config import RunConfig
from schemas.config_text import override_config
from schemas.study import parse_study
from storage import Store

STUDY = Path(__file__).parents[1] / "recipes" / "study.toml"
LEARNING_RATE = 5e-4
OURS, THEIRS = "ours", "trl"
Figures = dict[str, float]

FIGURES: dict[str, Callable[[Figures], float]] = {
    "iteration, s": lambda of: of["seconds"],
    "rollout, s": lambda of: of["rollout_s"],
    "sampling in it, s": lambda of: of["generation_s"],
    "reward and update, s": lambda of: of["seconds"] - of["rollout_s"],
    "processor, s": lambda of: of["processor_s"],
    "sampled tokens": lambda of: of["tokens"],
    "tokens/s of rollout": lambda of: of["tokens"] / of["rollout_s"],
    "tokens/s of iteration": lambda of: of["tokens"] / of["seconds"],
}
"""What is compared, by what it is called."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, in seconds of the wall clock and of this process's processor time."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Moment":
        """Returns the present."""
        return cls(time.perf_counter(), time.process_time())


class Clock:
    """Measures iterations of this project by what its stages tell."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begins an iteration."""
        self._began = self._rolled_out = self._learnt = self._evaluated = Moment.now()

    def note(self, event: StageEvent) -> None:
        """Takes one event in."""
        if event.kind != "computed":
            return
        if event.slot.split == "evaluation":
            self._evaluated = Moment.now()
        elif event.slot.stage in ("rollout", "execution"):
            self._rolled_out = Moment.now()
        elif event.slot.stage == "optimisation":
            self._learnt = self._evaluated = Moment.now()

    def figures(self) -> Figures:
        """Returns the seconds of the iteration that ends now, without its evaluation."""
        now, evaluated, learnt = Moment.now(), self._evaluated, self._learnt
        return {
            "seconds": now.wall - self._began.wall - (evaluated.wall - learnt.wall),
            "processor_s": now.processor
            - self._began.processor
            - (evaluated.processor - learnt.processor),
            "rollout_s": self._rolled_out.wall - self._began.wall,
        }


class Peer:
    """TRL's trainer in a process of its own, which iterates when it is told to."""

    def __init__(self, folder: Path, policy: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.trl_training", str(folder), str(policy)]
        # TRL itself uses names that transformers is about to drop.
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore::FutureWarning"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet
        )

    def iterate(self) -> Figures:
        """Has it do one iteration; returns its figures.

        Raises:
            RuntimeError: If it ended instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"TRL's process ended with {self._process.wait()}")
        figures: Figures = json.loads(line)
        return figures

    def finish(self) -> None:
        """Waits until it has saved its policy.

        Raises:
            RuntimeError: If it failed.
        """
        if self._process.wait():
            raise RuntimeError(f"TRL's process ended with {self._process.returncode}")

    def stop(self) -> None:
        """Ends it, if it still runs."""
        self._process.kill()
        self._process.wait()


def write_job(place: Place, config: RunConfig, folder: Path) -> None:
    """Writes what TRL needs: settings, and the prompts of all iterations, which are stored then."""
    store = place.open()
    first = stored_policy(store, place.run, 0)

    @flow(name="prompts", persist_result=False)
    def asked() -> list[Any]:
        problems = load_problem_sets(place, config)
        return [ask(place.at(i + 1), first, problems, config) for i in range(config.iterations)]

    frames = [
        store.read(ref).with_columns(iteration=pl.lit(number))
        for number, ref in enumerate(asked(), start=1)
    ]
    folder.mkdir()
    pl.concat(frames).write_parquet(folder / "prompts.parquet")
    (folder / "config.json").write_text(config.model_dump_json())


def train_in_turns(place: Place, config: RunConfig, peer: Peer) -> list[tuple[Figures, Figures]]:
    """Trains a run as the command does, and has the peer do each iteration after it.

    Returns:
        Figures of each iteration, of this project and of TRL.
    """
    clock, log, keeper = Clock(), EventLog(), PolicyKeeper(config.compute.keep_policies)
    rows = []

    def on_iteration(done: Place) -> None:
        note_iteration(done)
        keeper.free(done)
        publish_iteration(done, log.take(done.iteration))
        own = clock.figures()
        rows.append((own, peer.iterate()))
        clock.start()

    @flow(name="train", task_runner=SHARDS_AT_ONCE, persist_result=False)
    def trained() -> None:
        with listening(log.note), listening(clock.note):
            clock.start()
            training(place, config, on_iteration)

    trained()
    peer.finish()
    for iteration, (own, _) in enumerate(rows, start=1):
        times = work_times(place.store, place.run, iteration=iteration)
        busy = {row["work"]: row for row in utilisation(times).iter_rows(named=True)}
        own["generation_s"] = busy["generation"]["busy_s"]
        own["tokens"] = busy["generation"]["tokens"]
    return rows


def measure(
    folder: Path, config: RunConfig
) -> tuple[list[tuple[Figures, Figures]], pl.DataFrame, pl.DataFrame]:
    """Trains both.

    Returns:
        Figures of each iteration, of this project and of TRL; and for each of the two the
        evaluations, of the cold start and after all iterations.
    """
    store = Store.open(folder / "store", create=True)
    start = config.model_copy(update={"iterations": 0})
    with session(store, OURS, start):
        train(store.url, OURS, start)
    place, job = Place(store=store.url, run=OURS, iteration=0), folder / "job"
    with session(store, OURS, config):
        write_job(place, config, job)
        peer = Peer(job, store.path(stored_policy(store, OURS, 0)))
        try:
            rows = train_in_turns(place, config, peer)
        finally:
            peer.stop()
    given = override_config(start, ["cold_start.steps=0", f"policy.path={job / 'policy'}"])
    with session(store, THEIRS, given):
        train(store.url, THEIRS, given)
    own = accuracy_by_iteration(store.url, OURS)
    theirs = accuracy_by_iteration(store.url, THEIRS)
    return rows, own, pl.concat([own.head(1), theirs])


def table_of(
    rows: Sequence[tuple[Figures, Figures]], own: pl.DataFrame, theirs: pl.DataFrame
) -> Table:
    """Lays medians over the iterations out, of figures and ratios, and the accuracies."""
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    for heading in ("turnledger", "TRL", "ratio", "range"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figure in FIGURES.items():
        pairs = [(figure(ours), figure(trl)) for ours, trl in rows]
        ratios = [trl / ours for ours, trl in pairs]
        table.add_row(
            name,
            *(f"{statistics.median(side):,.2f}" for side in zip(*pairs, strict=True)),
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
        )
    for name, row in (("start", 0), (f"{len(rows)} iterations", -1)):
        cells = (side.row(row, named=True) for side in (own, theirs))
        accuracies = (f"{c['avg_at_k']:.2f} ({c['low']:.2f}-{c['high']:.2f})" for c in cells)
        table.add_row(f"avg@{own['samples'][0]}, {name}", *accuracies)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args(arguments)
    if importlib.util.find_spec("trl") is None:
        parser.exit(1, 'TRL is not installed: pip install "turnledger[trl]"\n')
    study = parse_study(STUDY.read_text(), name=str(STUDY))
    config = override_config(
        study.config("mid", "grpo", asked.seed, LEARNING_RATE),
        # Evaluated at the start and at the end alone.
        [f"iterations={asked.iterations}", f"evaluation.every={asked.iterations}", *asked.set],
    )
    with tempfile.TemporaryDirectory() as folder:
        rows, own, theirs = measure(Path(folder), config)
    Console().print(table_of(rows, own, theirs))


if __name__ == "__main__":
    main()
