"""The measure `tree`: which changes of code it sees, and that no code harms the process."""

import ast
import subprocess
import sys
import threading
import time
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import SimilarityConfig
from stages.similarity import similarity_matrix
from stages.similarity.tree import MAX_CHARS, MAX_DEPTH, parse
from tests.stages.reward_frames import LAW

TREE = SimilarityConfig(measure="tree")

STATEMENTS = (
    "{x} = {y} + {n}",
    "for {x} in range({n}):\n    {y} += {x} * {n}",
    "def {x}({y}={n}):\n    return {y}.{x} if {y} else {n}",
    "print(f'{{{x}}} of {n}', {y}={n})",
    "import {x} as {y}\nfrom {x} import {y}",
    "while {x}:\n    {x}, *{y} = [{n}, {n}]\n    break",
    "try:\n    del {x}[{n}]\nexcept ({x}, {y}) as {y}:\n    global {n}x\n".replace("{n}x", "z"),
    "class {x}({y}): pass",
    "[{x} for {x} in {y} if {x} > {n}]",
    "match {x}:\n    case [{y}, *_]: pass\n    case {n}: pass",
    "lambda {x}, *{y}: ({x} := {n})",
    "async def {x}(): await {y}",
)
PLANS = st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=5)
NAMES = st.lists(st.sampled_from(["a", "b", "total", "f", "números"]), min_size=2, max_size=2)


def written(plan: list[str], names: list[str], number: int) -> str:
    return "\n".join(s.format(x=names[0], y=names[1], n=number) for s in plan)


def similarity(a: str, b: str) -> float:
    return float(similarity_matrix([a], [b], TREE)[0, 0])


def shape_of(node: ast.AST) -> tuple[object, ...]:
    """A subtree as nested tuples, without names and values of literals."""

    def without(value: object) -> object:
        if isinstance(value, ast.expr_context):
            return None
        if isinstance(value, ast.AST):
            return shape_of(value)
        return tuple(without(item) for item in value) if isinstance(value, list) else None

    return (type(node).__name__, *(without(value) for _, value in ast.iter_fields(node)))


def bag(code: str) -> Counter[tuple[object, ...]]:
    def counts(node: ast.AST) -> bool:
        children = [c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.expr_context)]
        return isinstance(node, ast.stmt) or bool(children)

    nodes = [node for node in ast.walk(ast.parse(code)) if not isinstance(node, ast.Module)]
    return Counter(shape_of(node) for node in nodes if counts(node))


@LAW
@given(PLANS, PLANS, NAMES)
def test_tree_similarity_is_that_of_a_slow_oracle(
    one: list[str], other: list[str], names: list[str]
) -> None:
    a, b = written(one, names, 1), written(other, names[::-1], 2)
    p, q = bag(a), bag(b)
    assert similarity(a, b) == pytest.approx(2 * (p & q).total() / (p.total() + q.total()))


@LAW
@given(PLANS, NAMES, NAMES, st.integers(0, 99))
def test_renaming_and_other_literals_change_nothing(
    plan: list[str], names: list[str], others: list[str], number: int
) -> None:
    assert similarity(written(plan, names, 7), written(plan, others, number)) == 1.0


@LAW
@given(PLANS, st.randoms(use_true_random=False))
def test_order_of_outermost_statements_changes_nothing(plan: list[str], random: Random) -> None:
    shuffled = list(plan)
    random.shuffle(shuffled)
    assert similarity(written(plan, ["a", "b"], 1), written(shuffled, ["a", "b"], 1)) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a + b", "a - b"),
        ("if a: b; c", "if a: b\nelse: c"),
        ("f(a)", "f(x=a)"),
        ("a[b:]", "a[:b]"),
        ("not a", "-a"),
        ("a = b", "a += b"),
        ("{a: b}", "{a, b}"),
        ("{**a}", "{b: a}"),
    ],
)
def test_other_structure_is_another_tree(one: str, other: str) -> None:
    assert similarity(one, other) < 1.0


def test_code_that_is_no_python_resembles_no_code_that_is() -> None:
    assert similarity("a = (1", "a = 1") == 0.0
    assert similarity("a = (1\nb", "a = (1\nc") == pytest.approx(0.5)


BOMBS = {
    "brackets": "(" * 9_000 + ")" * 9_000,
    "braces": "{" * 150 + ":",
    "unary": "-" * 15_000 + "1",
    "sum": "1+" * 9_000 + "1",
    "powers": "1**" * 6_000 + "1",
    "attributes": "a" + ".b" * 9_000,
    "calls": "a" + "()" * 9_000,
    "lambdas": "lambda:" * 2_500 + "1",
    "elifs": "if 1: pass\n" + "elif 1: pass\n" * 1_500,
    "fields": "f'" + "{a}" * 6_000 + "'",
    "nested blocks": "\n".join(" " * depth + "if 1:" for depth in range(190)),
    "number": "1" * 19_000,
    "null": "a = 1\0",
    "surrogate": "a = '\ud800'",
    "too long": "a = 1\n" * 200_000,
    "comprehensions": "[" * 90 + "a" + " for a in b]" * 90,
}


@pytest.mark.parametrize("code", BOMBS.values(), ids=BOMBS.keys())
def test_no_code_crashes_or_hangs_on_a_small_stack(code: str) -> None:
    took: list[float] = []

    def compare() -> None:
        started = time.thread_time()
        assert parse(code) is None or len(code) <= MAX_CHARS
        took.append(time.thread_time() - started)

    previous = threading.stack_size(2**20)
    try:
        thread = threading.Thread(target=compare)
        thread.start()
    finally:
        threading.stack_size(previous)
    thread.join()
    assert took
    assert took[0] < 2.0


def test_a_bomb_among_other_code_is_compared_by_its_lines() -> None:
    bomb = "1+" * 9_000 + "1"
    scores = similarity_matrix([bomb, "a = 1"], ["a = 2", bomb], TREE)
    assert scores.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("depth", [MAX_DEPTH - 2, MAX_DEPTH + 2])
def test_what_is_too_deep_does_not_depend_on_the_caller(depth: int) -> None:
    code = "-" * (depth - 2) + "a"  # below a statement, above a name

    def from_deep(frames: int) -> bool:
        return parse(code) is None if frames == 0 else from_deep(frames - 1)

    assert from_deep(0) == from_deep(sys.getrecursionlimit() // 2) == (depth > MAX_DEPTH)


QUIET = """
import warnings
import polars, transformers, schemas.config
warnings.simplefilter("error")
from stages.similarity.tree import parse
for code in ("print('\\\\d')", "print(1if 2else 3)", "0x1for x in ()"):
    print(parse(code) is None)
"""


def test_warnings_about_a_policys_code_neither_show_nor_make_it_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3
    assert done.stderr == ""
