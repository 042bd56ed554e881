"""The server of a process, lent to one policy after the other."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from flows.policy_server import PolicyServer
from schemas.errors import EngineError
from stages.rollout.engine import Requests
from stages.rollout.vllm_engine import VllmEngine
from tests.process_trees import processes_below
from tests.stages.rollout.with_vllm.vllm_environment import (
    CONFIG,
    forward,
    with_vllm,
    write_policy,
)

pytestmark = with_vllm


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

    def lent() -> AbstractContextManager[VllmEngine]:
        return server.lend(config, folder=folder, policy="digest", version=3, forward=forward)

    def killed_while_sampling() -> None:
        with lent() as engine:
            keeper = engine._server._running._kept.keeper.pid  # type: ignore[attr-defined]
            victim = max(processes_below(keeper))
            threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
            engine.generate(asked)

    with pytest.raises(EngineError, match="once more than"):
        killed_while_sampling()
    with lent() as engine:
        got = engine.generate(asked)
    assert got.policy_version == 3
    assert [len(tokens) for tokens in got.token_ids] == [250] * 96
