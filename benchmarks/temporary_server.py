"""What the temporary Prefect server costs a training, beside one with all of Prefect's services.

The same training as a user's command, by turns with the temporary server as a command starts it and
with one that records every event and task run and sends heartbeats, each in a new store and with
a new Prefect. Processor seconds are those of the command and of all it started: the server, the
sandbox, the snippets.

    python -m benchmarks.temporary_server --rounds 3
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.printing import Figures, print_figures
from flows.prefect_server import TEMPORARY

ITERATIONS = 3
WITH_ALL = {name: "180" if usual is None else "true" for name, usual in TEMPORARY.items()}
"""Prefect's own defaults."""


def training_s(folder: Path, settings: dict[str, str]) -> tuple[float, float]:
    """Returns the wall and the processor seconds of one training."""
    words = ["train", "--store", str(folder / "store"), "--run", "measured"]
    small = [f"iterations={ITERATIONS}", "cold_start.steps=40", "evaluation.problems=8"]
    command = [sys.executable, "-m", "flows.cli", *words, *(f"--set={one}" for one in small)]
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), **settings}
    environment.pop("PREFECT_API_URL", None)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints medians, and the ratios of those with all services to those without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    figures = Figures()
    for _ in range(asked.rounds):
        measured = []
        for settings in ({}, WITH_ALL):
            with tempfile.TemporaryDirectory() as folder:
                measured.append(training_s(Path(folder), settings))
        (wall, processor), (wall_all, processor_all) = measured
        figures.add(
            wall_s=wall,
            wall_with_all_services_s=wall_all,
            wall_ratio=wall_all / wall,
            processor_s=processor,
            processor_with_all_services_s=processor_all,
            processor_ratio=processor_all / processor,
        )
    print_figures(figures.medians(), f"training of {ITERATIONS} iterations", as_json=asked.json)


if __name__ == "__main__":
    main()
