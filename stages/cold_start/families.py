"""The embedded task families: integer problems of chained steps, each solved by one short call.

A problem starts from a number and applies one to three steps, each of a family such as
"multiply by" or "sum of the digits". Every snippet runs afresh, so a step must copy the number
printed before it. Training and held-out problems are disjoint by construction: a digest of what
a problem asks, independent of its wording, decides which side it belongs to.

To add a family, append a `Family` to `FAMILIES`; nothing else needs to know.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]

LARGEST_VALUE = 99_999
"""Results stay below, so that a number is a handful of digit tokens."""
HELD_OUT_ONE_IN = 8
"""One problem in this many is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of step: how to draw its parameters, to say it, to code it and to compute it."""

    name: str
    draw: Callable[[Random], tuple[int, ...]]
    """Draws the parameters."""
    largest_input: int
    """Largest number the step accepts; the smallest is 1."""
    wordings: tuple[str, ...]
    """Imperative sentences; `{0}`, `{1}` stand for the parameters."""
    code: str
    """Python that prints the result; `{x}` stands for the number, `{0}`, `{1}` for parameters."""
    compute: Callable[..., int]
    """Result from the number and the parameters."""


def _primes_below(n: int) -> int:
    return sum(all(k % d for d in range(2, math.isqrt(k) + 1)) for k in range(2, n))


def _recurrence(n: int, modulus: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a % modulus


def _power_modulo(base: int, exponent: int, modulus: int) -> int:
    return pow(base, exponent, modulus)


FAMILIES: tuple[Family, ...] = (
    Family(
        name="product",
        draw=lambda r: (r.randint(2, 99),),
        largest_input=999,
        wordings=("Multiply it by {0}.", "Take {0} times that.", "Find its product with {0}."),
        code="print({x} * {0})",
        compute=lambda x, a: x * a,
    ),
    Family(
        name="remainder",
        draw=lambda r: (r.randint(3, 97),),
        largest_input=LARGEST_VALUE,
        wordings=(
            "Divide it by {0} and keep the remainder.",
            "Reduce it modulo {0}.",
            "Find the remainder by {0}.",
        ),
        code="print({x} % {0})",
        compute=lambda x, m: x % m,
    ),
    Family(
        name="power_mod",
        draw=lambda r: (r.randint(2, 9), r.randint(11, 97)),
        largest_input=LARGEST_VALUE,
        wordings=(
            "Raise it to the power {0} modulo {1}.",
            "Find its power {0}, modulo {1}.",
        ),
        code="print(pow({x}, {0}, {1}))",
        compute=_power_modulo,
    ),
    Family(
        name="range_sum",
        draw=lambda r: (),
        largest_input=400,
        wordings=("Add all numbers from 1 to it.", "Sum the integers from 1 up to it."),
        code="print(sum(range(1, {x} + 1)))",
        compute=lambda x: x * (x + 1) // 2,
    ),
    Family(
        name="square",
        draw=lambda r: (),
        largest_input=300,
        wordings=("Square it.", "Multiply it by itself.", "Find its square."),
        code="print({x} ** 2)",
        compute=lambda x: x * x,
    ),
    Family(
        name="gcd",
        draw=lambda r: (r.randint(2, 20) * r.randint(2, 20),),
        largest_input=LARGEST_VALUE,
        wordings=(
            "Find its greatest common divisor with {0}.",
            "Take the gcd with {0}.",
        ),
        code="import math\nprint(math.gcd({x}, {0}))",
        compute=math.gcd,
    ),
    Family(
        name="lcm",
        draw=lambda r: (r.randint(2, 30),),
        largest_input=3_000,
        wordings=(
            "Find its least common multiple with {0}.",
            "Take the lcm with {0}.",
        ),
        code="import math\nprint(math.lcm({x}, {0}))",
        compute=math.lcm,
    ),
    Family(
        name="primes_below",
        draw=lambda r: (),
        largest_input=400,
        wordings=("Count the primes below it.", "How many primes are smaller than it?"),
        code="print(sum(all(k % d for d in range(2, int(k**.5) + 1)) for k in range(2, {x})))",
        compute=_primes_below,
    ),
    Family(
        name="digit_sum",
        draw=lambda r: (),
        largest_input=LARGEST_VALUE,
        wordings=("Sum its digits.", "Add up its digits."),
        code="print(sum(map(int, str({x}))))",
        compute=lambda x: sum(map(int, str(x))),
    ),
    Family(
        name="recurrence",
        draw=lambda r: (r.randint(11, 97),),
        largest_input=300,
        wordings=(
            "Find the Fibonacci number of that index modulo {0}.",
            "Take the Fibonacci number at it, modulo {0}.",
        ),
        code="a, b = 0, 1\nfor _ in range({x}):\n    a, b = b, (a + b) % {0}\nprint(a)",
        compute=_recurrence,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a problem, with the number it starts from and the number it yields."""

    family: Family
    parameters: tuple[int, ...]
    before: int
    after: int

    @property
    def code(self) -> str:
        """Right code of the step."""
        return self.family.code.format(*self.parameters, x=self.before)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedProblem:
    """A generated problem: its identity is what it asks, not how it says it."""

    task_id: str
    text: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """Gold answer."""
        return self.steps[-1].after

    @property
    def source(self) -> str:
        """Names of the families in order, joined by `+`."""
        return "+".join(step.family.name for step in self.steps)


def draw_problems(
    random: Random, *, split: Split, levels: tuple[int, ...]
) -> Iterator[EmbeddedProblem]:
    """Yields problems of one side without end.

    Args:
        random: Source of all draws.
        split: Side of the train and held-out division.
        levels: Numbers of chained steps, drawn evenly.
    """
    while True:
        steps = _draw_steps(random, random.choice(levels))
        identity = _identity(steps)
        if (_digest(identity) % HELD_OUT_ONE_IN == 0) is (split == "held_out"):
            yield EmbeddedProblem(task_id=identity, text=_say(random, steps), steps=steps)


def _draw_steps(random: Random, level: int) -> tuple[Step, ...]:
    value = random.randint(12, 300)
    steps: list[Step] = []
    while len(steps) < level:
        fitting = [f for f in FAMILIES if f.largest_input >= value]
        family = random.choice(fitting)
        parameters = family.draw(random)
        after = family.compute(value, *parameters)
        if 1 < after <= LARGEST_VALUE:
            steps.append(Step(family=family, parameters=parameters, before=value, after=after))
            value = after
        elif not steps:
            value = random.randint(12, 300)
    return tuple(steps)


def _say(random: Random, steps: tuple[Step, ...]) -> str:
    opening = random.choice(("Take {}.", "Start with {}.", "Begin at {}."))
    sentences = [s.family.wordings[random.randrange(len(s.family.wordings))] for s in steps]
    said = [w.format(*s.parameters) for w, s in zip(sentences, steps, strict=True)]
    return " ".join([opening.format(steps[0].before), *said])


def _identity(steps: tuple[Step, ...]) -> str:
    parts = [f"{s.family.name}({','.join(map(str, s.parameters))})" for s in steps]
    return f"{steps[0].before}:" + ":".join(parts)


def _digest(identity: str) -> int:
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
