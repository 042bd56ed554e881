"""Ctrl-C at bad moments: it is told as what it is, and the process ends."""

import subprocess
import sys

import pytest

from flows.interrupts import interrupts_told

NEVER_ENDS = """
import atexit, sys, threading
from flows.interrupts import end_within

atexit.register(print, "cleaned up")
threading.Thread(target=threading.Event().wait).start()
end_within({time_s}, 130)
sys.exit(130)
"""


def fail_while_handling(handled: BaseException) -> None:
    """Fails as a library does that makes an error of its own of what it met."""
    try:
        raise handled
    except (KeyboardInterrupt, OSError):
        raise ValueError("Task run is not set") from OSError("a reason of its own")


@pytest.mark.parametrize(
    ("handled", "told"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(), ValueError)]
)
def test_an_error_made_of_an_interrupt_is_an_interrupt(
    handled: BaseException, told: type[BaseException]
) -> None:
    with pytest.raises(told), interrupts_told():
        fail_while_handling(handled)


def test_a_process_ends_although_a_thread_does_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEVER_ENDS.format(time_s=0.5)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")


BLOCKED = """
import atexit, threading
from flows import interrupts

interrupts.CLOSING_TIME_S = 0.5
atexit.register(threading.Event().wait)
interrupts.end_within(0.2, 130)
threading.Event().wait()
"""


def test_a_process_ends_although_its_exit_waits_for_ever() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], timeout=60, check=False)
    assert done.returncode == 130
