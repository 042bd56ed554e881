"""Measures the sandbox: snippets a second, and how long a trivial one takes beside hanging ones.

In one run, side by side: a new interpreter for each snippet, a new interpreter in bubblewrap for
each, and the sandbox; and what a bare fork and exit of an interpreter costs, of a warm one with
numpy and sympy in it, below which no fork-server of one interpreter gets, and of one with nothing
in it. Then the 99th percentile of a trivial snippet alone, and while as many others run into their
time limit. Ratios are of the sandbox to the others.

    python -m benchmarks.execution --seconds 3 --json
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

from benchmarks.printing import print_figures
from schemas.config import ExecutionConfig
from stages.execution import SandboxExecutor
from stages.execution.bubblewrap import bundled_bwrap, bwrap_arguments, unprivileged_id
from stages.execution.protocol import SNIPPET_SCHEMA

SNIPPETS = {
    "print": "print(1)",
    "numpy": "import numpy; print(numpy.arange(10).sum())",
    "sympy": "import sympy; print(sympy.factor(sympy.Symbol('x') ** 2 - 1))",
}
PRINT = "print, sandbox, snippets/s"
HANGING = ("import time; time.sleep(60)", "while True: pass")

_FORKS = """
import os, sys, time
if sys.argv[2] == "warm": import numpy, sympy
until, count = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < until:
    pid = os.fork()
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0); count += 1
print(count / float(sys.argv[1]))
"""


def frame(codes: list[str]) -> pl.DataFrame:
    rows = [("task", index, 0, code, []) for index, code in enumerate(codes)]
    return pl.DataFrame(rows, schema=SNIPPET_SCHEMA, orient="row")


def new_interpreter(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def new_interpreter_in_bwrap(code: str) -> None:
    arguments = bwrap_arguments(unshare_user=unprivileged_id() is None, files=None)
    path = ":".join(p for p in (f"/site-packages/{n}" for n in range(2)))
    command = [str(bundled_bwrap()), *arguments, "--setenv", "PYTHONPATH", path, "--"]
    interpreter = os.path.realpath(sys.executable)
    subprocess.run([*command, interpreter, "-c", code], check=True, capture_output=True)


def per_second(run: Callable[[str], None], code: str, seconds: float, workers: int) -> float:
    """Returns how many snippets a second a way of running them one by one manages."""
    until = time.monotonic() + seconds

    def work() -> int:
        count = 0
        while time.monotonic() < until:
            run(code)
            count += 1
        return count

    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        done = sum(future.result() for future in [pool.submit(work) for _ in range(workers)])
    return done / (time.monotonic() - started)


def sandbox_per_second(executor: SandboxExecutor, code: str, seconds: float) -> float:
    executor.execute(frame([code] * 4))
    count, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        done = executor.execute(frame([code] * 100))
        assert set(done["status"]) == {"ok"}, done["stderr"][0]
        count += 100
    return count / (time.monotonic() - started)


def forks_per_second(kind: str, seconds: float, workers: int) -> float:
    """Returns how often bare loops fork an interpreter, with numpy and sympy in it or without."""
    command = [sys.executable, "-c", _FORKS, str(seconds), kind]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    loops = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(workers)
    ]
    return sum(float(loop.communicate()[0]) for loop in loops)


def latencies_ms(executor: SandboxExecutor, count: int, hanging: int) -> np.ndarray:
    """Returns the times of trivial snippets, while others run into their limit all the time."""
    stop = threading.Event()

    def hang(number: int) -> None:
        while not stop.is_set():
            executor.execute(frame([HANGING[number % 2]]))

    with ThreadPoolExecutor(max(1, hanging)) as pool:
        for number in range(hanging):
            pool.submit(hang, number)
        time.sleep(1.0 if hanging else 0.0)
        times = []
        for _ in range(count):
            started = time.perf_counter()
            executor.execute(frame([SNIPPETS["print"]]))
            times.append(time.perf_counter() - started)
        stop.set()
    return 1000 * np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure (4)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    executor = SandboxExecutor(ExecutionConfig(workers=options.workers, wall_time_s=1.0))
    figures: dict[str, float] = {}
    for name, code in SNIPPETS.items():
        rates = {
            "new interpreter": per_second(new_interpreter, code, options.seconds, options.workers),
            "new interpreter in bwrap": per_second(
                new_interpreter_in_bwrap, code, options.seconds, options.workers
            ),
            "sandbox": sandbox_per_second(executor, code, options.seconds),
        }
        figures |= {f"{name}, {way}, snippets/s": rate for way, rate in rates.items()}
        for way in ("new interpreter", "new interpreter in bwrap"):
            figures[f"{name}, ratio to {way}"] = rates["sandbox"] / rates[way]
    for kind in ("warm", "bare"):
        rate = forks_per_second(kind, options.seconds, options.workers)
        figures[f"fork and exit, {kind} interpreter, a second"] = rate
        figures[f"print, ratio to fork and exit, {kind}"] = figures[PRINT] / rate
    alone = latencies_ms(executor, 300, 0)
    beside = latencies_ms(executor, 300, 4)
    figures["trivial snippet, p99, ms"] = float(np.quantile(alone, 0.99))
    figures["trivial snippet beside 4 hanging ones, p99, ms"] = float(np.quantile(beside, 0.99))
    figures["p99, ratio"] = float(np.quantile(beside, 0.99) / np.quantile(alone, 0.99))
    print_figures(
        figures, f"{options.workers} workers, {os.cpu_count()} CPUs", as_json=options.json
    )


if __name__ == "__main__":
    main()
