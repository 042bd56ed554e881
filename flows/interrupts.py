"""Ctrl-C wherever it comes: libraries are interrupted in places where they are not ready for it."""

import asyncio
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prefect.exceptions import TerminationSignal

PATIENCE_S = 5.0
"""Seconds after which an interrupted command that has not told its end says what it waits for."""
WAITS = b"waits for stage runs that compute in this process; Ctrl-C ends it at once\n"
END_TIME_S = 15.0
"""Seconds in which an interrupted process ends in the usual way, if it does so at all."""
CLOSING_TIME_S = 10.0
"""Seconds that what was registered for the exit may then take."""

_SIGNALS = (KeyboardInterrupt, TerminationSignal)
INTERRUPTS = (*_SIGNALS, asyncio.CancelledError)
"""What ends a flow without an error: Ctrl-C, a worker that cancels a flow run or stops, and Prefect
when its server no longer knows that a flow run has a place under the limit of its deployment."""


def let_interrupts_end_waits() -> None:
    """Makes Ctrl-C end what the main thread waits for, at once; to be called once Polars is there.

    Polars handles the signal too, and lets a call that it interrupts begin again: a wait for a
    server or for a long stage would go on until that has ended.
    """
    signal.siginterrupt(signal.SIGINT, True)


def end_at_second_interrupt() -> threading.Event:
    """Has Ctrl-C, or SIGTERM, interrupt this process once, and end it at once if it comes again.

    After the first, stage runs that compute in threads are waited for; after `PATIENCE_S` this is
    said. The second leaves what kill -9 does: nothing half-written, and what this process has
    started ends by itself.

    Returns:
        What the command sets when it tells its end: then nothing more is said.
    """
    interrupted, is_told = threading.Event(), threading.Event()

    def tell() -> None:
        interrupted.wait()
        if not is_told.wait(PATIENCE_S):
            os.write(sys.stderr.fileno(), WAITS)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            # No other output is safe here: what holds a lock of it may have been interrupted.
            os.write(sys.stderr.fileno(), b"interrupted again: ended at once\n")
            os._exit(130)
        interrupted.set()
        raise KeyboardInterrupt

    threading.Thread(target=tell, name="tell", daemon=True).start()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, interrupt)
    return is_told


@contextmanager
def interrupts_told() -> Iterator[None]:
    """Makes an interrupt of the error that a library raised while it handled one.

    Prefect's engine, for one, answers Ctrl-C at the moment a task run begins with a `ValueError`
    of its own.

    Raises:
        KeyboardInterrupt: If an interrupt is among what the error came from.
        TerminationSignal: The same of the signal by which Prefect's workers end a flow run.
    """
    try:
        yield
    except Exception as error:
        interrupt = _interrupt_behind(error)
        if isinstance(interrupt, TerminationSignal):
            raise TerminationSignal(interrupt.signal) from error
        if interrupt is not None:
            raise KeyboardInterrupt from error
        raise


@contextmanager
def told_as_ctrl_c() -> Iterator[None]:
    """Makes Ctrl-C of every interrupt, for a command: SIGTERM ends it in the same way.

    Prefect turns the signal back into what it was before the flow, unless one of its own errors
    comes in between.

    Raises:
        KeyboardInterrupt: If an interrupt is among what the error came from.
    """
    try:
        with interrupts_told():
            yield
    except TerminationSignal as error:
        raise KeyboardInterrupt from error


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    if error is None or isinstance(error, _SIGNALS):
        return error
    return _interrupt_behind(error.__cause__) or _interrupt_behind(error.__context__)


def end_within(time_s: float, exit_code: int) -> None:
    """Ends this process after a time, if it has not ended by then.

    A pool of threads that was interrupted while it started one does not know that thread, and the
    interpreter would wait for it for ever. What was registered for the exit is done first, if
    that takes no longer than `CLOSING_TIME_S`: it may wait for the thread that was interrupted.
    """

    def end() -> None:
        time.sleep(time_s)
        closing = threading.Thread(target=atexit._run_exitfuncs, name="closing", daemon=True)
        closing.start()
        closing.join(CLOSING_TIME_S)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)

    threading.Thread(target=end, name="end", daemon=True).start()
