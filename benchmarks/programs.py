"""Programs as a policy writes them for one problem: alike in plan, different in the rest.

A problem is a plan of a few steps, such as a sieve and a search. Each program of its group follows
the plan with names, constants and spacing of its own, with steps in another order, left out,
written twice or replaced by one that the plan does not have, and at times with a line broken. So
similarities within a group are spread as those of sampled code are. Nothing here runs.
"""

import re
from random import Random

STEPS = (
    "def {f}({x}, {y}):\n    while {y}:\n        {x}, {y} = {y}, {x} % {y}\n    return {x}",
    "{s} = 0\nfor {i} in range({a}, {b}):\n    if {i} % {c} == 0:\n        {s} += {i} ** 2",
    "{v} = [{i} for {i} in range(2, {b}) if all({i} % {x} for {x} in range(2, {i}))]",
    "def {g}({x}):\n    if {x} < 2:\n        return {x}\n    return {g}({x} - 1) + {g}({x} - 2)",
    "from itertools import combinations\n{n} = sum(1 for {x}, {y} in combinations({v}, 2)\n"
    "    if ({x} + {y}) % {a} == {c})",
    "{d} = {{}}\nfor {i} in {v}:\n    {d}[{i} % {a}] = {d}.get({i} % {a}, 0) + 1",
    "{m} = max({d}.items(), key=lambda {x}: ({x}[1], -{x}[0]))\nprint({m})",
    "{x}, {y} = {a}, {b}\nwhile {x} < {y}:\n    {x} = {x} * {c} + 1\n    {n} = {x} - {y}",
    "import sympy\n{x} = sympy.Symbol('x')\n{r} = sympy.solve({x} ** 2 - {a} * {x} + {c}, {x})",
    "{t} = [[0] * {a} for {i} in range({c})]\nfor {i} in range({c}):\n    for {j} in range({a}):\n"
    "        {t}[{i}][{j}] = ({i} * {j} + {b}) % {a}",
    "{n} = str({a} ** {c})\n{s} = sum(int({i}) for {i} in {n})\nprint('sum of digits', {s})",
    "try:\n    {r} = {f}({a}, {b}) / {s}\nexcept ZeroDivisionError:\n    {r} = None",
    "import numpy as np\n{v} = np.arange({a}, {b})\n{s} = int({v}[{v} % {c} == 1].sum())",
    "{l}, {h} = 0, {b}\nwhile {l} < {h}:\n    {m} = ({l} + {h}) // 2\n"
    "    if {m} * {m} < {a}:\n        {l} = {m} + 1\n    else:\n        {h} = {m}",
    "print(f'result: {{{s}}} of {{{n}}}', {c})  # as the problem asks",
    "assert {s} >= 0 and {n} != {a}, 'impossible'",
)
NAMES = {
    "f": ("gcd", "common", "f", "helper"),
    "g": ("fib", "rec", "solve", "g"),
    "s": ("total", "s", "result", "acc"),
    "i": ("i", "k", "num", "item"),
    "j": ("j", "col", "q"),
    "x": ("x", "a", "p", "left"),
    "y": ("y", "b", "r", "right"),
    "v": ("values", "primes", "nums", "xs"),
    "n": ("n", "count", "cnt", "digits"),
    "d": ("counts", "d", "by_rest"),
    "m": ("best", "m", "mid"),
    "r": ("roots", "sol", "ans"),
    "t": ("table", "grid", "dp"),
    "l": ("lo", "low", "start"),
    "h": ("hi", "high", "end"),
}


def draw_group(random: Random, programs: int = 16, lines: int = 20) -> list[str]:
    """Draws the programs of one group.

    Args:
        random: Source of all choices.
        programs: Number of them.
        lines: Length of each.
    """
    plan = random.sample(STEPS, len(STEPS))
    usual = {letter: str(random.randint(2, 2000)) for letter in "abc"}
    return [_draw_program(random, plan, usual, lines) for _ in range(programs)]


def _draw_program(random: Random, plan: list[str], usual: dict[str, str], lines: int) -> str:
    names = {letter: random.choice(choices) for letter, choices in NAMES.items()}
    names |= {
        letter: value if random.random() < 0.8 else str(random.randint(2, 2000))
        for letter, value in usual.items()
    }
    steps = list(plan)
    for _ in range(random.randint(0, 3)):
        one, other = random.randrange(6), random.randrange(len(steps))
        steps[one], steps[other] = steps[other], steps[one]
    text: list[str] = []
    for step in steps:
        written = step.format(**names).split("\n")
        if len(text) + len(written) <= lines:
            text += written
    while len(text) < lines:
        text.append(f"print({names['s']}, {random.randint(0, 99)})")
    if random.random() < 0.05:
        broken = random.randrange(lines)
        text[broken] = re.sub(r"[)\]:]", "", text[broken], count=1)
    return "\n".join(text)
