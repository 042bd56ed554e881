"""Ctrl-C wherever it comes: libraries are interrupted in places where they are not ready for it."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

END_TIME_S = 15.0
"""Seconds in which an interrupted process ends in the usual way, if it does so at all."""


@contextmanager
def interrupts_told() -> Iterator[None]:
    """Makes an interrupt of the error that a library raised while it handled one.

    Prefect's engine, for one, answers Ctrl-C at the moment a task run begins with a `ValueError`
    of its own.

    Raises:
        KeyboardInterrupt: If an interrupt is among what the error came from.
    """
    try:
        yield
    except Exception as error:
        if _came_from_interrupt(error):
            raise KeyboardInterrupt from error
        raise


def _came_from_interrupt(error: BaseException | None) -> bool:
    if error is None or isinstance(error, KeyboardInterrupt):
        return error is not None
    return _came_from_interrupt(error.__cause__) or _came_from_interrupt(error.__context__)


def end_within(time_s: float, exit_code: int) -> None:
    """Ends this process after a time, if it has not ended by then.

    A pool of threads that was interrupted while it started one does not know that thread, and the
    interpreter would wait for it for ever. What was registered for the exit is done first.
    """

    def end() -> None:
        time.sleep(time_s)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)

    threading.Thread(target=end, name="end", daemon=True).start()
