"""How fast answers are graded, and that no answer holds grading up.

Three parts, in one run:

- fast path: pairs of distinct texts that columns, text and exact numbers decide, among them
  numbers in many ways of writing. The promise is 100,000 pairs a second.
- slow path: pairs that need math-verify. math-verify called directly in one process against one
  of our workers, in turns, by wall time and by processor time; the median ratio of several repeats
  counts. The promise is 90 % of its speed. Twice: with groups of eight predictions
  for each gold answer, as training has them, and with every gold answer for itself.
- attacks: 1,000 different answers that mean to keep a grader busy or fill its memory, such as
  towers of powers, factorials, a million digits, deep nesting. Told are wall time, what came of
  them, and the most memory of this process and its workers.

With `--labelled FILE...`, JSON lines of `prediction`, `gold` and `label` or `correct`, it tells
the agreement with the labels as well, and every disagreement.

    python -m benchmarks.grading
"""

import argparse
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.rescoring import Watch
from stages import _grading_processes
from stages.grading import disagreements, grade

SEED = 0
GRADING_TIME_S = 5.0
"""Deadline of a comparison, as in the default configuration."""
WRITINGS = (
    *("{}", "{}.00", "{:,}", "${}", r"\${:,}", "{} dollars", "{} apples", "{}%", "-{}", "${}$"),
    *(r"\frac{{{}}}{{7}}", "{}/12", "{}.5", "{}.125", " {}.", r"\dfrac{{{}}}{{35}}"),
)
Pair = tuple[str, str]


def numbers(rows: int) -> pl.DataFrame:
    """Returns pairs of numbers, half of them equal, each written in one of many ways."""
    random = np.random.default_rng(SEED)
    values = random.integers(0, 10**7, (rows, 2)).tolist()
    ways = random.integers(len(WRITINGS), size=(rows, 2)).tolist()
    pairs = [
        (WRITINGS[a].format(ours), WRITINGS[b].format(ours if number % 2 else gold))
        for number, ((ours, gold), (a, b)) in enumerate(zip(values, ways, strict=True))
    ]
    return pl.DataFrame(pairs, schema=["prediction", "answer"], orient="row").unique()


def expressions(samples: int) -> list[Pair]:
    """Returns pairs that only math-verify decides, `samples` of them with each gold answer.

    They are more than a worker keeps parsed, so that repeats find none of the predictions there.
    """
    pairs = []
    for n in range(2, 2 + 120 // samples):
        golds = [rf"{n}\sqrt{{3}}", rf"x^2+{2 * n}x+{n * n}", rf"\frac{{\pi}}{{{n}}}+{n}"]
        for k in range(samples):
            ours = [
                rf"\sqrt{{{3 * n * n + k}}}",
                rf"(x+{n})^2+{k}",
                rf"{n + k}+\frac{{\pi}}{{{n}}}",
            ]
            pairs += list(zip(ours, golds, strict=True))
    return pairs


def direct(pairs: Sequence[Pair]) -> list[bool]:
    """Compares as a program does that calls math-verify itself, without its time-outs."""
    from math_verify import parse, verify

    return [
        bool(
            verify(
                parse(rf"\boxed{{{gold}}}", parsing_timeout=None),
                parse(rf"\boxed{{{ours}}}", parsing_timeout=None),
                timeout_seconds=None,
            )
        )
        for ours, gold in pairs
    ]


def attacks(rows: int) -> list[Pair]:
    """Returns different answers that mean harm, with harmless gold answers."""
    kinds: list[Callable[[int], str]] = [
        lambda n: rf"\dfrac{{5^{{(5^{{(5^{{(5^{n + 2})}}-4)}}-5)}}}}{{16}}",
        lambda n: "^".join(["9"] * (4 + n % 9)) + f"+{n}",
        lambda n: f"2^{{10^{{{n + 3}}}}}",
        lambda n: f"{n + 7}^{{{10**6 + n}}}",
        lambda n: f"{1000 + n}^{{{9000 + n}}}-1",
        lambda n: f"({100_000 + n})!",
        lambda n: f"{900 + n}!/{800 + n}!",
        lambda n: f"({n + 9}!)!",
        lambda n: "9" * (10**6 + n),
        lambda n: f"1e{10**9 + n}",
        lambda n: "(" * (10**4 + n) + "1" + ")" * (10**4 + n),
        lambda n: r"\sqrt{" * (30 + n) + "2" + "}" * (30 + n),
        lambda n: r"\frac{1}{" * (14 + n) + "2" + "}" * (14 + n),
        lambda n: r"\boxed{" * (5000 + n),
        lambda n: "{" * (n + 1) + "}" * n + "(",
        lambda n: f"(x+{n})^{{{300 + n}}}",
        lambda n: f"(a+b+c+d+{n})^{{{60 + n}}}",
        lambda n: rf"\sum_{{k=1}}^{{{10**7 + n}}} \frac{{1}}{{k}}",
        lambda n: rf"\int_0^{{{n + 1}}} e^{{-x^{{{n + 3}}}}}\sin(x^x) dx",
        lambda n: rf"\prod_{{k=1}}^{{{10**5 + n}}} k",
        lambda n: rf"\binom{{{10**6 + n}}}{{{5 * 10**5}}}",
        lambda n: rf"\sin(10^{{{99 + n}}})",
        lambda n: "1" + " 1" * (200 + n),
        lambda n: "a" * (250 + n % 250) + "!" + str(n),
        lambda n: "$" * (400 + n % 99) + str(n),
        lambda n: "1," * (240 + n % 9) + str(n),
        lambda n: "\\left" * (90 + n % 9) + str(n),
        lambda n: "\\text{" * 50 + "a" * n,
        lambda n: f"0.{'0' * (n + 20)}1e{n}",
        lambda n: f"x^{{{n}}}+" * 40 + "1",
    ]
    golds = ("7", r"\frac{\sqrt{2}}{2}", "x^2+1", r"\begin{pmatrix}1\\2\end{pmatrix}")
    repeats = -(-rows // len(kinds))
    made = ((kind(n), golds[n % len(golds)]) for n in range(repeats) for kind in kinds)
    return list(islice(made, rows))


def fast_path(rows: int, repeats: int) -> dict[str, float]:
    """Returns pairs a second: wall at best, and of the processor time of all threads."""
    pairs = numbers(rows)
    wall, cpu = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        methods = grade(pairs, time_s=GRADING_TIME_S)["method"]
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    if "math_verify" in methods.cast(pl.String).unique().to_list():
        raise RuntimeError("a pair of the fast path went to math-verify")
    return {
        "fast_pairs": pairs.height,
        "fast_pairs_per_s": pairs.height / min(wall),
        "fast_pairs_per_cpu_s": pairs.height / min(cpu),
        "fast_of_100000_per_s": pairs.height / min(wall) / 100_000,
    }


def slow_path(samples: int, repeats: int) -> dict[str, float]:
    """Returns pairs a second of math-verify in this process and of one worker, and their ratio."""
    pairs = expressions(samples)
    _grading_processes._permits = threading.BoundedSemaphore(1)
    expected = direct(pairs[:20])
    if [v == "right" for v in _grading_processes.compare(pairs[:20], time_s=60)] != expected:
        raise RuntimeError("worker and math-verify disagree")
    ours, theirs, our_cpu, their_cpu = [], [], [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        direct(pairs)
        theirs.append(time.perf_counter() - started)
        their_cpu.append(time.process_time() - used)
        _grading_processes.compare(pairs[:1], time_s=60)  # a worker that waited too long has ended
        worker = _grading_processes._idle[-1]._process.pid
        started, used = time.perf_counter(), _cpu_s(worker)
        _grading_processes.compare(pairs, time_s=60)
        ours.append(time.perf_counter() - started)
        our_cpu.append(_cpu_s(worker) - used)
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    cpu_ratio = statistics.median(a / b for a, b in zip(their_cpu, our_cpu, strict=True))
    name = f"slow_{samples}_a_gold"
    return {
        f"{name}_math_verify_pairs_per_s": len(pairs) / min(theirs),
        f"{name}_worker_pairs_per_s": len(pairs) / min(ours),
        f"{name}_ratio": ratio,
        f"{name}_cpu_ratio": cpu_ratio,
    }


def _cpu_s(pid: int) -> float:
    """Returns the processor time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def attacked(rows: int, time_s: float) -> dict[str, float]:
    """Returns what became of the attacks, how long they took, and the memory at its worst."""
    pairs = pl.DataFrame(attacks(rows), schema=["prediction", "answer"], orient="row")
    _grading_processes._permits = threading.BoundedSemaphore(_grading_processes.PROCESSES)
    watch = Watch(os.getpid())
    started = time.perf_counter()
    graded = grade(pairs, time_s=time_s)
    wall_s = time.perf_counter() - started
    watch.stop()
    counts = graded.group_by("verdict").len()
    by_method = graded.group_by("method").len()
    return {
        "attacks": pairs.height,
        "attacks_wall_s": wall_s,
        "attacks_bound_s": pairs.height * time_s,
        **{f"attacks_{verdict}": count for verdict, count in sorted(counts.iter_rows())},
        **{f"attacks_by_{method}": count for method, count in sorted(by_method.iter_rows())},
        "attacks_peak_mib": watch.peak_of_all,
    }


def agreement(path: Path) -> dict[str, float]:
    """Returns the agreement with the labels of a file; prints what is not agreed on."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    label = "label" if "label" in rows[0] else "correct"
    labelled = pl.DataFrame(
        [(row["prediction"], row["gold"], row[label]) for row in rows],
        schema=["prediction", "answer", "label"],
        orient="row",
    )
    apart = disagreements(labelled, time_s=GRADING_TIME_S)
    for row in apart.iter_rows(named=True):
        print(row)
    return {f"agreement_{path.stem}": 1 - apart.height / labelled.height}


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="fast pairs (200,000)")
    parser.add_argument("--attacks", type=int, default=1_000, help="attacks (1,000)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the timings (5)")
    parser.add_argument("--labelled", type=Path, nargs="*", default=[], help="labelled pairs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # math-verify tells of every text that it cannot parse
    parts: list[Callable[[], dict[str, float]]] = [
        partial(fast_path, arguments.rows, arguments.repeats),
        *(partial(slow_path, samples, arguments.repeats) for samples in (8, 1)),
        partial(attacked, arguments.attacks, GRADING_TIME_S),
        *(partial(agreement, path) for path in arguments.labelled),
    ]
    figures: dict[str, float] = {}
    for part in parts:
        measured = part()
        figures |= measured
        for name, value in {} if arguments.json else measured.items():
            print(f"{name:44} {value:14,.2f}", flush=True)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
