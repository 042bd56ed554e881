"""What Prefect and the store cost beside the work, and how long a rerun of advantages takes.

Trains the embedded policy for a few iterations, trains again to measure a run of cache hits
alone, once as a flow and once as a user's command with all that a process costs to start, then
reruns the advantages of one iteration with another discount. Prints a table, or JSON with
`--json`.

The share of the command is that of the first training without the start of its process, so it
is told higher than a user sees it.

    python benchmarks/orchestration.py --iterations 3
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")

from flows.catalogue import Scope
from flows.events import StageEvent, listening
from flows.rerun import rerun
from flows.sessions import branch_config, session
from flows.train import train
from schemas.config_text import parse_config
from storage import RunParent, Store


class Timeline:
    """Notes when stages compute; stages of shards may do so at the same time."""

    def __init__(self) -> None:
        self._started: dict[object, float] = {}
        self.spans: list[tuple[float, float]] = []
        self.reused = 0

    def note(self, event: StageEvent) -> None:
        """Takes one event in."""
        now = time.perf_counter()
        if event.kind == "started":
            self._started[event.slot] = now
        elif event.kind == "computed":
            start = self._started[event.slot]
            self.spans.append((start, start + event.seconds))
        elif event.kind == "reused":
            self.reused += 1

    def busy_s(self) -> float:
        """Returns the seconds in which at least one stage computed."""
        total, end = 0.0, 0.0
        for start, stop in sorted(self.spans):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total


def timed(work: Callable[[], object]) -> tuple[float, Timeline]:
    """Does the work; returns its wall time in seconds and what the stages did meanwhile."""
    timeline = Timeline()
    started = time.perf_counter()
    with listening(timeline.note):
        work()
    return time.perf_counter() - started, timeline


def measure(folder: Path, iterations: int, threads: int) -> dict[str, float]:
    """Returns the figures by name, units in the names."""
    config = parse_config(
        "",
        [
            f"iterations={iterations}",
            f"compute.threads={threads}",
            "cold_start.steps=300",
            "cold_start.demonstrations=5000",
        ],
    )
    store = Store.open(folder / "store", create=True)
    root = store.url
    # The first flow of a process starts a temporary server where none is configured.
    warm = parse_config("", ["iterations=0", "cold_start.steps=1", "evaluation.problems=1"])
    with session(store, "warm", warm):
        start_s, _ = timed(lambda: train(root, "warm", warm))
    with session(store, "run", config):
        first_s, first = timed(lambda: train(root, "run", config))
    with session(store, "run", config):
        second_s, second = timed(lambda: train(root, "run", config))
    command = [sys.executable, "-m", "flows.cli", "train", "--store", root, "--run", "run"]
    command_s, _ = timed(lambda: subprocess.run(command, check=True, capture_output=True))
    changes = ["gamma=0.95"]
    _, changed = branch_config(store, "run", Scope.of("advantages"), changes)
    parent = RunParent(run="run", iteration=1, stage="advantages", overrides=changes)
    with session(store, "branch", changed, parent=parent):
        rerun_s, again = timed(lambda: rerun(root, "run", "branch", 1, "advantages", changed))
    busy = first.busy_s()
    return {
        "start_of_prefect_and_first_flow_s": start_s,
        "train_s": first_s,
        "train_inside_stages_s": busy,
        "train_orchestration_share": (first_s - busy) / first_s,
        "train_stage_runs": len(first.spans),
        "train_orchestration_ms_a_stage_run": 1000 * (first_s - busy) / len(first.spans),
        "identical_train_s": second_s,
        "identical_train_ms_a_stage_run": 1000 * second_s / second.reused,
        "identical_train_share_of_first": second_s / first_s,
        "identical_command_s": command_s,
        "identical_command_ms_a_stage_run": 1000 * command_s / second.reused,
        "identical_command_share_of_first": command_s / first_s,
        "rerun_of_advantages_s": rerun_s,
        "rerun_of_advantages_inside_stages_s": again.busy_s(),
    }


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=3, help="iterations to train (3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.iterations, arguments.threads)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:40} {value:10.3f}")


if __name__ == "__main__":
    main()
