"""Conditional puts against a server that answers as S3 does when two of them meet."""

import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from schemas.errors import StoreUnavailable
from storage.objects import Objects

Conflicting = Callable[[int], Objects]

_CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
_CONDITIONS = {"if-match", "if-none-match"}


@pytest.fixture
def conflicting(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Conflicting]:
    """Puts a proxy before the S3 server that answers the first conditional puts with 409.

    S3 does so when another request for the same key is under way; moto, which takes one request
    after the other, never does.
    """
    target = urlsplit(s3_server)
    left = [0]

    class Proxy(http.server.BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if left[0] > 0 and _CONDITIONS & {name.lower() for name in self.headers}:
                left[0] -= 1
                self._answer(409, {}, _CONFLICT)
                return
            upstream = http.client.HTTPConnection(target.hostname or "", target.port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            got = upstream.getresponse()
            self._answer(got.status, dict(got.headers), got.read())
            upstream.close()

        do_GET = do_PUT = do_HEAD = _pass_on

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", headers.get("Content-Length", str(len(body))))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def conflicting(times: int) -> Objects:
        left[0] = times
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        parts = urlsplit(s3)
        return Objects(parts.netloc, parts.path.strip("/"))

    yield conflicting
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("times", [1, 3])
def test_an_object_is_made_after_conflicts(conflicting: Conflicting, times: int) -> None:
    objects = conflicting(times)
    etag = objects.create("key", b"content")
    present = objects.get("key")
    assert present is not None
    assert (present.content, present.etag) == (b"content", etag)


def test_an_object_that_is_there_is_told_after_a_conflict(conflicting: Conflicting) -> None:
    conflicting(0).create("key", b"first")
    objects = conflicting(1)
    assert objects.create("key", b"second") is None
    present = objects.get("key")
    assert present is not None
    assert present.content == b"first"


def test_a_conflict_that_does_not_end_is_told_as_worth_another_try(
    conflicting: Conflicting,
) -> None:
    with pytest.raises(StoreUnavailable, match="other requests for it are under way"):
        conflicting(1000).create("key", b"content")


@pytest.mark.parametrize("times", [1, 3])
def test_an_object_is_exchanged_after_conflicts(conflicting: Conflicting, times: int) -> None:
    etag = conflicting(0).create("key", b"old")
    assert etag is not None
    objects = conflicting(times)
    new = objects.exchange("key", b"new", etag)
    present = objects.get("key")
    assert present is not None
    assert (present.content, present.etag) == (b"new", new)
