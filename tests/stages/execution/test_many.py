"""Many thousand snippets of mixed kinds through one executor: nothing grows and none is lost."""

import os
import time
from pathlib import Path

import pytest

from tests.stages.execution.frames import isolated, snippet_frame

KINDS = (
    ("print({n})", "ok", "{n}\n"),
    ("{n}", "ok", "{n}\n"),
    ("import numpy; print(numpy.full(3, {n}).max())", "ok", "{n}\n"),
    ("import sympy; print(sympy.Integer({n}) + 0)", "ok", "{n}\n"),
    ("open('f', 'w').write('x' * 1000); print({n})", "ok", "{n}\n"),
    ("print({n}); raise ValueError", "error", "{n}\n"),
    ("print({n}); import os; os.abort()", "error", "{n}\n"),
    ("print({n}); x = bytearray(1 << 40)", "memory", "{n}\n"),
)
HANGING = ("print({n}); import time; time.sleep(60)", "timeout", "{n}\n")


def descendants() -> set[int]:
    """Returns the processes below this one."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(stat[1])
    found: set[int] = set()
    while True:
        more = {p for p, parent in parents.items() if parent in found | {os.getpid()}} - found
        if not more:
            return found
        found |= more


def resources() -> tuple[int, int, float]:
    """Returns numbers of processes and descriptors, and the memory of all processes in MiB."""
    pids = descendants()
    memory = 0
    for pid in pids | {os.getpid()}:
        try:
            fields = Path(f"/proc/{pid}/statm").read_text().split()
        except OSError:  # it has just ended
            continue
        memory += (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGESIZE")
    return len(pids), len(os.listdir("/proc/self/fd")), memory / 2**20


def settled() -> tuple[int, int, float]:
    """Returns the resources once they stand still: lanes end a moment after their connection."""
    last = resources()
    while True:
        time.sleep(0.5)
        now = resources()
        if now[:2] == last[:2]:
            return now
        last = now


MOST_LANES = 2 * 8 * 3
"""Of two workers, in each of the three interpreters of the chain."""


def check_many(count: int) -> None:
    executor = isolated(wall_time_s=1.0, workers=2)
    executor.execute(snippet_frame(["print(1)"]))
    executor.close()
    at_first = settled()
    memory: float | None = None
    for start in range(0, count, 1000):
        wanted = [
            HANGING if number % 500 == 7 else KINDS[number % len(KINDS)]
            for number in range(start, start + 1000)
        ]
        codes = [kind[0].replace("{n}", str(start + n)) for n, kind in enumerate(wanted)]
        rows = executor.execute(snippet_frame(codes))
        assert rows["status"].to_list() == [kind[1] for kind in wanted]
        assert rows["stdout"].to_list() == [
            kind[2].replace("{n}", str(start + n)) for n, kind in enumerate(wanted)
        ]
        now = settled()
        assert now[0] <= at_first[0] + MOST_LANES + 5  # two of bwrap and the chain
        assert now[1] <= at_first[1] + MOST_LANES + 2  # the connection and what it writes to
        memory = memory or now[2]
        assert now[2] < memory + 60
    executor.close()
    assert settled()[:2] == at_first[:2]


def test_two_thousand_snippets_leave_nothing() -> None:
    check_many(2000)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twenty_thousand_snippets_leave_nothing() -> None:
    check_many(20_000)
