"""One real vLLM server for the tests of this folder, and the policies that it serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.rollout.vllm_engine import VllmEngine
from tests.stages.rollout.with_vllm.vllm_environment import CONFIG, forward, write_policy


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policies") / "first")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policies") / "other", changed_by=0.02)


@pytest.fixture(scope="session")
def started(policy: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(CONFIG, forward=forward)
    engine.update_weights(str(policy), 0)
    yield engine
    engine.close()


@pytest.fixture
def engine(started: VllmEngine, policy: Path) -> VllmEngine:
    started.update_weights(str(policy), 0)
    return started
