"""Serves S3 on loopback: `python s3_server.py PORT`."""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

served = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()


def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    # moto checks the condition of a put and puts in two steps; S3 does both in one.
    with one_at_a_time:
        return served(environ, start)


class Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass


run_simple("127.0.0.1", int(sys.argv[1]), serve, threaded=True, request_handler=Quiet)
