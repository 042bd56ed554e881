"""What a server answers is checked: whatever it says ends in one line."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from schemas.config import VllmConfig
from schemas.errors import EngineError
from stages.rollout import vllm_server
from stages.rollout.engine import Requests
from stages.rollout.vllm_client import ServerLost, VllmClient
from stages.rollout.vllm_server import GivenServer, health

VOCABULARY = 8


@contextmanager
def answering(
    body: bytes,
    *,
    status: int = 200,
    silent_at: str = "",
    failing_at: str = "",
    drips: bool = False,
    **headers: str,
) -> Iterator[str]:
    """Yields the address of a server that answers everything alike, and never at one path.

    At another path it may answer that it failed. One that drips comes to no end: it sends a byte
    from time to time.
    """
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.path == silent_at:
                ended.wait()
                return
            self.send_response(503 if self.path == failing_at else status)
            length = 2**20 if drips else len(body)
            for name, value in {"content-length": str(length), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)
            while drips and not ended.wait(0.1):
                self.wfile.write(b" ")

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def asked(
    url: str,
    question: Callable[[VllmClient], Coroutine[Any, Any, object]],
    *,
    answer_time_s: float = 60.0,
) -> object:
    async def ask() -> object:
        client = VllmClient(
            url,
            {},
            name="it",
            vocabulary=VOCABULARY,
            request_time_s=3_600,
            answer_time_s=answer_time_s,
        )
        try:
            async with asyncio.timeout(120):
                return await question(client)
        finally:
            await client.close()

    return asyncio.run(ask())


def completion(tokens: list[int], reason: str) -> bytes:
    choice = {
        "token_ids": tokens,
        "prompt_token_ids": [1, 2],
        "logprobs": {"token_logprobs": [-1.0] * len(tokens)},
        "finish_reason": reason,
    }
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 2}}).encode()


def complete(client: VllmClient) -> Coroutine[Any, Any, object]:
    requests = Requests(
        contexts=[[1, 2]],
        seeds=np.zeros(1, dtype=np.int64),
        max_new_tokens=np.full(1, 2, dtype=np.int64),
        stop_ids=(5,),
    )
    return client.complete(requests, 0)


@pytest.mark.parametrize(
    ("tokens", "reason", "message"),
    [
        ([3, VOCABULARY], "length", "tokens that the policy does not have"),
        ([3, 2**40], "length", "tokens that the policy does not have"),
        ([3, -1], "length", "tokens that the policy does not have"),
        ([3], "stop", "no completion of the request"),
    ],
)
def test_a_completion_that_cannot_be_one_is_refused(
    tokens: list[int], reason: str, message: str
) -> None:
    with (
        answering(completion(tokens, reason)) as url,
        pytest.raises(EngineError, match=message),
    ):
        asked(url, complete)


@pytest.mark.parametrize("body", [b"\xff{", b"[]", b"null", b'{"results": [], "data": []}'])
@pytest.mark.parametrize("question", [VllmClient.find_model, VllmClient.served_policy])
def test_an_answer_of_no_known_form_is_one_line(
    body: bytes, question: Callable[[VllmClient], Coroutine[Any, Any, object]]
) -> None:
    with answering(body) as url, pytest.raises(EngineError, match="known here: ") as raised:
        asked(url, question)
    assert "\n" not in str(raised.value)


def test_a_model_without_room_is_refused() -> None:
    body = b'{"data": [{"id": "policy", "max_model_len": 0}]}'
    with answering(body) as url, pytest.raises(EngineError, match="max_model_len"):
        asked(url, VllmClient.find_model)


def test_counters_that_are_no_numbers_are_refused() -> None:
    with answering(b"vllm:tokens_total abc\n") as url, pytest.raises(EngineError, match="'abc'"):
        asked(url, VllmClient.metrics)


def test_an_answer_that_cannot_be_unpacked_is_a_lost_server() -> None:
    with answering(b"no gzip", content_encoding="gzip") as url:
        assert health(url, {}) is None
        with pytest.raises(ServerLost):
            asked(url, VllmClient.metrics)


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("/v1/models", VllmClient.find_model),
        ("/metrics", VllmClient.metrics),
        ("/collective_rpc", VllmClient.served_policy),
        ("/reset_prefix_cache", partial(VllmClient.load_weights, folder="any", time_s=3_600)),
    ],
    ids=["models", "metrics", "served_policy", "load_weights"],
)
def test_no_call_but_a_completion_waits_as_long_as_one_may(
    path: str, question: Callable[[VllmClient], Coroutine[Any, Any, object]]
) -> None:
    with (
        answering(b"{}", silent_at=path) as url,
        pytest.raises(ServerLost, match=rf"no whole answer within 0\.5 s at {path}"),
    ):
        asked(url, question, answer_time_s=0.5)


def test_a_server_whose_answer_does_not_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm_server, "_ANSWER_TIME_S", 0.5)
    with answering(b"{", drips=True) as url:
        with pytest.raises(ServerLost, match=r"no whole answer within 0\.5 s at /v1/models"):
            asked(url, VllmClient.find_model, answer_time_s=0.5)
        with pytest.raises(EngineError, match="does not answer: look whether it runs"):
            GivenServer(VllmConfig(url=url)).release()
        assert health(url, {}) is None


def test_a_version_in_deeply_nested_json_is_one_line() -> None:
    with (
        answering(b"[" * 100_000) as url,
        pytest.raises(EngineError, match="does not tell its version"),
    ):
        GivenServer(VllmConfig(url=url)).release()


def test_loading_weights_has_a_time_of_its_own() -> None:
    with (
        answering(b"{}", silent_at="/collective_rpc") as url,
        pytest.raises(ServerLost, match=r"within 0\.5 s at /collective_rpc"),
    ):
        asked(url, partial(VllmClient.load_weights, folder="any", time_s=0.5))


def test_a_server_that_gets_unwell_while_it_loads_weights_is_not_waited_for() -> None:
    with (
        answering(b"{}", silent_at="/collective_rpc", failing_at="/health") as url,
        pytest.raises(ServerLost, match="it answered 503"),
    ):
        asked(url, partial(VllmClient.load_weights, folder="any", time_s=3_600))


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_is_not_well_is_told_with_what_it_answers(status: int) -> None:
    with answering(b"no", status=status) as url:
        server = GivenServer(VllmConfig(url=url, start_time_s=0.1))
        with pytest.raises(EngineError, match=f"answers {status} at /health for 0.1 s"):
            server.start("any", threading.Event())
        with pytest.raises(EngineError, match=f"status {status} at /version"):
            server.release()


def test_a_server_that_is_not_there_is_told_as_that() -> None:
    with answering(b"") as url:
        server = GivenServer(VllmConfig(url=url, start_time_s=0.1))
    with pytest.raises(EngineError, match=r"does not answer for 0\.1 s"):
        server.start("any", threading.Event())
