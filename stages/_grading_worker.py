"""Child process of grading: compares pairs of answers with math-verify, one JSON line a pair.

It runs as a script of its own, so that the parent can kill it: sympy, below math-verify, may
compute a power tower for hours. It reads `[prediction, answer, seconds]` lines, the seconds that
the parent waits, and writes one line `true` or `false` each. It imports nothing of this project,
and the parent imports only its constants; the comparison itself is math-verify's.
"""

import gc
import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any, TextIO

READY = "ready"
"""First line that a working child writes."""

MEMORY_BYTES = 2 * 1024**3
"""Address space of the child; sympy fills any memory with digits of a large power."""

ORPHAN_GRACE_S = 30.0
"""Seconds beyond the deadline after which a child whose parent died ends itself."""

PARSED = 256
"""Answers that stay parsed; predictions of a group are compared with one gold answer."""

IDLE_S = 20.0
"""Seconds without a request after which a child ends itself and gives its memory back."""


def is_equal(prediction: str, answer: str) -> bool:
    """Returns whether math-verify finds the prediction equal to the gold answer.

    Both are put into `\\boxed{}`, so that the whole text is the answer: without it math-verify
    picks one number out of it, and "5 or 6" would be right for 6.
    """
    from math_verify import verify

    gold, predicted = _parsed(answer), _parsed(prediction)
    if _are_different_numbers(gold, predicted):
        return False
    return bool(verify(gold, predicted, timeout_seconds=None))


@lru_cache(maxsize=PARSED)
def _parsed(text: str) -> list[Any]:
    """Returns what math-verify reads of an answer."""
    from math_verify import parse

    parsed: list[Any] = parse(f"\\boxed{{{text}}}", parsing_timeout=None)
    return parsed


def _are_different_numbers(*parsed: list[Any]) -> bool:
    """Says whether two parsed answers are constants that lie apart, beyond any rounding.

    math-verify would find them different too, but only after an attempt to simplify the
    difference, which takes most of its time.
    """
    values = [_real_value(parts[0]) for parts in parsed if parts]
    if len(values) < len(parsed) or None in values:
        return False
    smallest, largest = min(values), max(values)
    return bool(largest - smallest > 1e-4 + 1e-9 * max(abs(smallest), abs(largest)))


def _real_value(expression: Any) -> Any:
    """Returns the value of a real constant to 15 digits, and None for all else."""
    from sympy import UnevaluatedExpr  # type: ignore[import-untyped]

    try:
        # A percent sign is parsed as an unevaluated factor, and may be left out.
        if not expression.is_number or expression.has(UnevaluatedExpr):
            return None
        value = expression.evalf(15)
        return value if value.is_Float and value.is_finite else None
    except Exception:  # noqa: BLE001  what sympy raises here is math-verify's to judge
        return None


def _claim_stdout() -> TextIO:
    """Returns the pipe to the parent, and sends whatever else is printed to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _set_limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # An inherited "ignore" would disarm the timer that ends an orphan.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # An interrupt at the terminal is the parent's business; it kills its child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # math-verify logs a line for everything that it cannot parse.
    logging.disable(logging.CRITICAL)


def serve() -> None:
    """Answers requests until standard input ends, or none comes for a while.

    Raises:
        RuntimeError: If the comparison does not work at all on this machine.
    """
    replies = _claim_stdout()
    _set_limits()
    if not is_equal("\\frac{2}{4}", "1/2") or is_equal("2", "3"):
        raise RuntimeError("math-verify does not tell equal numbers from different ones")
    # What the imports made stays for good: the collector need not look through it again.
    gc.freeze()
    _write(replies, READY)
    signal.setitimer(signal.ITIMER_REAL, IDLE_S)
    for line in sys.stdin:
        prediction, answer, time_s = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, time_s + ORPHAN_GRACE_S)
        equal = is_equal(prediction, answer)
        signal.setitimer(signal.ITIMER_REAL, IDLE_S)
        _write(replies, equal)


def _write(replies: TextIO, value: Any) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    serve()
