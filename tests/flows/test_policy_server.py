"""The server of a process, lent to one policy after the other."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flows.policy_server import PolicyServer
from schemas.errors import EngineError
from stages.rollout.engine import Requests
from tests.stages.rollout.vllm_environment import (
    CONFIG,
    forward,
    needs_vllm,
    processes_below,
    write_policy,
)

pytestmark = [needs_vllm, pytest.mark.timeout(900), pytest.mark.xdist_group("vllm")]


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    server = PolicyServer()
    yield server
    server.close()


def test_who_comes_after_the_last_restart_finds_the_server_started_again(
    server: PolicyServer, tmp_path: Path
) -> None:
    folder = str(write_policy(tmp_path / "policy"))
    config = CONFIG.model_copy(update={"restarts": 0})
    asked = Requests(
        contexts=[[5, 6, 7]] * 96,
        seeds=np.arange(96, dtype=np.int64),
        max_new_tokens=np.full(96, 250, dtype=np.int64),
        stop_ids=(),
    )
    lent = {"folder": folder, "policy": "digest", "version": 3}
    with (
        pytest.raises(EngineError, match="once more than"),
        server.lend(config, forward=forward, **lent) as engine,  # type: ignore[arg-type]
    ):
        keeper = engine._server._running._keeper.pid  # type: ignore[attr-defined]
        threading.Timer(0.5, os.kill, (max(processes_below(keeper)), signal.SIGKILL)).start()
        engine.generate(asked)
    with server.lend(config, forward=forward, **lent) as engine:  # type: ignore[arg-type]
        got = engine.generate(asked)
    assert got.policy_version == 3
    assert [len(tokens) for tokens in got.token_ids] == [250] * 96
