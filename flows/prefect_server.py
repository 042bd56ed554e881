"""The Prefect server that a command uses: one that runs, or a temporary one of its own."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from flows.interrupts import let_interrupts_end_waits
from schemas.errors import ConfigError, TurnledgerError

_GUARD = Path(__file__).with_name("server_guard.py")
TEMPORARY: dict[str, bool | None] = {
    # Every event of every task run would be written into its database, beside the work.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": False,
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED": False,
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": False,
    # A flow waits at its end until its heartbeat looks up, up to a second.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": None,
}
"""Settings of Prefect for a server that nobody looks at."""
_guards: dict[int, subprocess.Popen[bytes]] = {}
"""By process id of the server."""


def has_prefect_server() -> bool:
    """Says whether a server is configured; without one a temporary one is started."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is not None


def check_prefect_home() -> None:
    """Refuses a folder for Prefect's state in which its server would hang.

    Raises:
        ConfigError: If the folder cannot be made or written.
    """
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ConfigError(
            f"PREFECT_HOME={home} cannot be written ({error.strerror}): name another folder"
        ) from error


@contextmanager
def prefect_started() -> Iterator[None]:
    """Lets flows run in here, on the configured server or on a temporary one.

    The temporary server is started once for a process. It does what `TEMPORARY` leaves on, unless
    the environment or Prefect's profile says otherwise.

    Raises:
        TurnledgerError: If no server answers.
    """
    import prefect.settings

    unused = {} if has_prefect_server() else TEMPORARY
    by_setting = {getattr(prefect.settings, name): value for name, value in unused.items()}
    with prefect.settings.temporary_settings(set_defaults=by_setting):
        _start_prefect()
        yield


def _start_prefect() -> None:
    """Starts the temporary Prefect server where none is configured, safe from Ctrl-C.

    A terminal sends Ctrl-C to all processes that it runs. A server that died of it would take the
    record of the flow with it, and the flow would fail instead of being interrupted. A process
    inherits which signals are blocked, so the server is started while this one is.

    From then on, Ctrl-C ends at once what the main thread waits for.
    """
    from prefect.client.orchestration import get_client

    blocked = {signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        with get_client(sync_client=True) as client:
            client.hello()
        if not has_prefect_server():
            _guard_server()
    except (httpx.HTTPError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TurnledgerError(
            f"no Prefect server: {reason}; set PREFECT_API_URL to one that runs, or unset it"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    let_interrupts_end_waits()


def _guard_server() -> None:
    """Lets the temporary server end also where this process is killed and cannot stop it.

    The import takes a second, and brings all that a server needs.
    """
    from prefect.server.api.server import SubprocessASGIServer

    process = SubprocessASGIServer().server_process
    if process is not None and process.pid not in _guards:
        _guards[process.pid] = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(process.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
