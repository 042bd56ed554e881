"""An engine that is closed waits for nobody: not for a server that starts, nor for an answer."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.config import VllmConfig
from schemas.errors import EngineError
from stages.rollout import vllm_server
from stages.rollout.vllm_engine import VllmEngine
from stages.rollout.vllm_server import GivenServer, ServerProcess
from tests.process_trees import processes_below
from tests.stages.rollout.test_vllm_client import answering
from tests.stages.rollout.with_vllm.vllm_environment import (
    CONFIG,
    forward,
    needs_vllm,
    write_policy,
)

SOON_S = 20.0
"""Far below the limits of what is waited for: ten minutes."""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "policy")


def given_up(
    work: Callable[[], None], is_under_way: Callable[[], bool], end: Callable[[], None]
) -> BaseException | None:
    """Ends work of another thread once it is under way; returns the error it ended with."""
    with ThreadPoolExecutor(1) as pool:
        done: Future[None] = pool.submit(work)
        while not is_under_way() and not done.done():
            time.sleep(0.02)
        began = time.monotonic()
        end()
        error = done.exception(timeout=SOON_S)
    assert time.monotonic() - began < SOON_S
    return error


def test_a_server_that_starts_is_ended_when_it_is_given_up(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    server, wish = ServerProcess(VllmConfig(python=str(python))), threading.Event()
    keepers: list[int] = []

    def runs() -> bool:
        if server._running is not None:
            keepers.append(server._running._kept.keeper.pid)
        return bool(keepers) and any(
            "sleep" in name for name in processes_below(keepers[0]).values()
        )

    error = given_up(lambda: server.start("any", wish), runs, wish.set)
    assert isinstance(error, EngineError)
    assert "given up before it answered" in str(error)
    assert not processes_below(keepers[0])
    assert server.end() is None


def test_a_server_of_somebody_else_is_waited_for_no_longer_when_it_is_given_up() -> None:
    asked: list[int | None] = []
    with answering(b"no", status=503) as url, pytest.MonkeyPatch.context() as patch:
        looked = vllm_server.health
        patch.setattr(
            vllm_server, "health", lambda *to: asked.append(found := looked(*to)) or found
        )
        wish = threading.Event()
        server = GivenServer(VllmConfig(url=url))
        error = given_up(lambda: server.start("any", wish), lambda: bool(asked), wish.set)
    assert "was given up before it answered" in str(error)


def test_closing_ends_a_call_that_a_server_leaves_open(policy: Path) -> None:
    told = {"version": "1", "data": [{"id": "policy", "max_model_len": 64}]}
    with answering(json.dumps(told).encode(), silent_at="/collective_rpc") as url:
        engine = VllmEngine(VllmConfig(url=url), forward=forward)
        error = given_up(
            lambda: engine.update_weights(str(policy), 0),
            lambda: engine._started_with is not None,
            engine.close,
        )
    assert isinstance(error, EngineError)
    assert "its engine was closed" in str(error)


@pytest.mark.long
@needs_vllm
@pytest.mark.timeout(900)
def test_closing_ends_a_server_that_starts_and_the_engine_can_start_it_again(policy: Path) -> None:
    engine = VllmEngine(CONFIG, forward=forward)
    error = given_up(
        lambda: engine.update_weights(str(policy), 0),
        lambda: getattr(engine._server, "_running", None) is not None,
        engine.close,
    )
    assert "given up" in str(error)
    engine.update_weights(str(policy), 1)
    assert engine.policy_version == 1
    engine.close()
