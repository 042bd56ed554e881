"""Commands for looking: web pages, and a file to send."""

import errno
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import DEFAULT_STORE, StoreOption, check_output
from schemas.errors import TurnledgerError


def page(
    store: StoreOption = DEFAULT_STORE,
    host: Annotated[
        str,
        typer.Option(help="Address to listen at; another than loopback shows the store to others."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8321,
) -> None:
    """Serves web pages for looking at the runs of a store, until Ctrl-C.

    Nothing is written. There is no password: whoever reaches the address sees every run.

    Example: turnledger page --store turnledger-store --port 8321
    """
    import uvicorn

    from flows.page.app import LOOPBACK, make_app
    from storage import Store

    opened = Store.open(store)
    listening = listen(host, port)
    # The names of a loopback address, so that no other site can lead a browser to it by its name.
    hosts = [*LOOPBACK, host] if host in LOOPBACK else None
    shown = f"[{host}]" if ":" in host else host
    with listening, suppress(KeyboardInterrupt):
        number = listening.getsockname()[1]
        typer.echo(f"page of {opened.url}: http://{shown}:{number}/ (Ctrl-C ends it)")
        config = uvicorn.Config(make_app(opened, hosts=hosts), log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option("--output", help="HTML file; left out, RUN.html here.")
    ] = None,
) -> None:
    """Writes a run into one HTML file to send: figures, and its twenty most telling trajectories.

    The file holds all that it shows and asks for nothing over the network.

    Example: turnledger report first --output first.html
    """
    from flows.page.reading import Reader
    from flows.page.report import report_html
    from storage import Store

    opened = Store.open(store)
    path = Path(f"{run}.html") if output is None else output
    check_output(path, ".html")
    content = report_html(Reader(opened), run)
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise TurnledgerError(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"report  {path}")


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        TurnledgerError: If the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise TurnledgerError(
                f"port {port} of {host} is taken: choose another one with --port"
            ) from error
        reason = error.strerror or error
        raise TurnledgerError(f"cannot listen at {host}, port {port}: {reason}") from error
