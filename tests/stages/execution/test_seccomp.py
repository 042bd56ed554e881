"""The filter of system calls: its numbers, and what it lets through."""

import re
from pathlib import Path

import pytest

from stages.execution._seccomp import CALLS, filter_program
from tests.stages.execution.frames import isolated, run_one

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
_DEFINED = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.M)
GENERIC_NAMES = {"newfstatat": "fstatat"}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    known = dict(_DEFINED.findall(HEADERS[machine].read_text()))
    for name, numbers in CALLS.items():
        number = known.get(name) or known.get(GENERIC_NAMES.get(name, ""))
        assert numbers[machine] == (number or "-"), name


def ends_of(machine: str, number: int, flags: int = 0, *, processes: bool = False) -> int:
    """Returns what the filter decides, by a plain reading of its instructions."""
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    data = {0: number, 4: arch, 16: flags}
    program, at, value = filter_program(machine, processes=processes), 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20:
                value = data[operand]
            case 0x15:
                at += if_true if value == operand else if_false
            case 0x35:
                at += if_true if value >= operand else if_false
            case 0x45:
                at += if_true if value & operand else if_false
            case _:
                return operand


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


@pytest.mark.parametrize("machine", HEADERS)
@pytest.mark.parametrize("processes", [False, True])
def test_what_is_listed_is_allowed_and_nothing_else(machine: str, processes: bool) -> None:
    listed = {int(numbers[machine]) for numbers in CALLS.values() if numbers[machine] != "-"}
    starting = {"x86_64": {56, 57, 58, 59, 322}, "aarch64": {220, 221, 281}}[machine]
    allowed = listed | (starting if processes else set())
    for number in range(600):
        expected = ALLOW if number in allowed else ENOSYS if number == 435 else EPERM
        assert ends_of(machine, number, processes=processes) == expected, number


@pytest.mark.parametrize(("machine", "clone"), [("x86_64", 56), ("aarch64", 220)])
def test_threads_may_be_made_where_processes_may_not(machine: str, clone: int) -> None:
    thread = 0x3D0F00
    assert ends_of(machine, clone, thread) == ALLOW
    assert ends_of(machine, clone, 17) == EPERM


def test_the_second_table_of_calls_is_closed() -> None:
    assert ends_of("x86_64", 0x40000000 + 1) == ENOSYS


def test_a_machine_without_numbers_is_refused() -> None:
    with pytest.raises(OSError, match="no filter of system calls for riscv64"):
        filter_program("riscv64", processes=False)


@pytest.mark.parametrize(
    "code",
    [
        "import sympy; print(sympy.integrate(sympy.sin(sympy.Symbol('x'))))",
        "import numpy; print(numpy.linalg.inv(numpy.eye(300)).sum())",
        "import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()",
        "import concurrent.futures as c; print(list(c.ThreadPoolExecutor(4).map(abs, range(9))))",
        "import asyncio; asyncio.run(asyncio.sleep(0)); print(1)",
        "import tempfile; f = tempfile.NamedTemporaryFile(); f.write(b'x'); print(f.tell())",
        "import os, shutil; os.mkdir('a'); shutil.copytree('a', 'b'); print(os.listdir())",
        "import sqlite3; print(sqlite3.connect('d').execute('select 1').fetchall())",
        "import decimal, fractions, datetime, itertools, statistics; print(datetime.date.min)",
        "import signal, time; signal.setitimer(signal.ITIMER_REAL, 9); time.sleep(0.01); print(1)",
        "import secrets, uuid; print(len(secrets.token_hex(8)), uuid.uuid4().version)",
    ],
)
def test_honest_code_runs(code: str) -> None:
    row = run_one(isolated(), code)
    assert (row["status"], row["stderr"]) == ("ok", "")
    assert row["stdout"]
