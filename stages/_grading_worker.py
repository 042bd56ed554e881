"""Child process of grading: compares pairs of answers with math-verify, one JSON line a pair.

It runs as a script of its own, so that the parent can kill it: sympy, below math-verify, may
compute a power tower for hours. It reads `[prediction, answer]` lines and writes one line
`true` or `false` each. It imports nothing of this project, and the parent imports only its
constants; the comparison itself is math-verify's.
"""

import json
import logging
import os
import resource
import signal
import sys
from typing import Any, TextIO

READY = "ready"
"""First line that a working child writes."""

MEMORY_BYTES = 2 * 1024**3
"""Address space of the child; sympy fills any memory with digits of a large power."""

ORPHAN_GRACE_S = 30.0
"""Seconds beyond the deadline after which a child whose parent died ends itself."""


def is_equal(prediction: str, answer: str) -> bool:
    """Returns whether math-verify finds the prediction equal to the gold answer.

    Both are put into `\\boxed{}`, so that the whole text is the answer: without it math-verify
    picks one number out of it, and "5 or 6" would be right for 6.
    """
    from math_verify import parse, verify

    gold, predicted = (
        parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (answer, prediction)
    )
    return bool(verify(gold, predicted, timeout_seconds=None))


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


def serve(time_s: float) -> None:
    """Answers requests until standard input ends.

    Args:
        time_s: Seconds that the parent waits for a pair.

    Raises:
        RuntimeError: If the comparison does not work at all on this machine.
    """
    replies = _claim_stdout()
    _set_limits()
    if not is_equal("\\frac{2}{4}", "1/2") or is_equal("2", "3"):
        raise RuntimeError("math-verify does not tell equal numbers from different ones")
    _write(replies, READY)
    for line in sys.stdin:
        prediction, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, time_s + ORPHAN_GRACE_S)
        equal = is_equal(prediction, answer)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, equal)


def _write(replies: TextIO, value: Any) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    serve(float(sys.argv[1]))
