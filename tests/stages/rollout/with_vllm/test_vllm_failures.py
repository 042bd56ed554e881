"""A vLLM server that dies, hangs or runs out of memory: no row is lost, no wait is endless."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from schemas.errors import EngineError
from stages.rollout import vllm_server
from stages.rollout.engine import Generations, Requests
from stages.rollout.vllm_engine import VllmEngine
from tests.process_trees import processes_below
from tests.stages.rollout.with_vllm.vllm_environment import CONFIG, with_vllm
from tests.stages.rollout.with_vllm.vllm_requests import asked, worst_difference

pytestmark = with_vllm


def server_processes(engine: VllmEngine) -> dict[str, int]:
    """Returns the process of the server and that of its model, by name."""
    keeper = engine._server._running._kept.keeper.pid  # type: ignore[attr-defined]
    found = processes_below(keeper)
    return {
        "server": next(pid for pid, name in found.items() if "turnledger_serve" in name),
        "model": next(pid for pid, name in found.items() if "EngineCore" in name),
    }


def interrupted(engine: VllmEngine, requests: Requests, what: str, how: int) -> Generations:
    """Samples, and sends a process of the server a signal meanwhile."""
    victim = server_processes(engine)[what]
    timer = threading.Timer(0.7, os.kill, (victim, how))
    timer.start()
    got = engine.generate(requests)
    timer.join()
    return got


@pytest.mark.parametrize(
    ("what", "how"), [("server", signal.SIGKILL), ("model", signal.SIGSTOP)], ids=str
)
def test_a_server_that_dies_or_hangs_is_started_again_and_no_row_is_lost(
    engine: VllmEngine, policy: Path, other: Path, what: str, how: int
) -> None:
    engine.update_weights(str(other), 4)
    requests = asked(96, limit=250, stop_ids=())
    undisturbed = engine.generate(requests)
    before = engine._server.url, engine._session
    engine._config = CONFIG.model_copy(update={"silence_time_s": 15.0})
    began = time.monotonic()
    got = interrupted(engine, requests, what, how)
    assert time.monotonic() - began < 300
    engine._config = CONFIG
    assert engine._session is not before[1]
    assert got.token_ids == undisturbed.token_ids
    assert worst_difference(other, requests, got) < 1e-4
    assert engine._restarts_left == CONFIG.restarts - 1


@pytest.mark.parametrize("what", ["server", "model"])
def test_a_server_killed_in_an_update_is_started_again_with_the_new_policy(
    engine: VllmEngine, other: Path, what: str
) -> None:
    os.kill(server_processes(engine)[what], signal.SIGKILL)
    engine.update_weights(str(other), 5)
    requests = asked(8)
    got = engine.generate(requests)
    assert (engine.policy_version, got.policy_version) == (5, 5)
    assert worst_difference(other, requests, got) < 1e-4


def test_a_server_that_hangs_in_an_update_is_started_again_with_the_new_policy(
    engine: VllmEngine, other: Path
) -> None:
    os.kill(server_processes(engine)["model"], signal.SIGSTOP)
    engine._config = CONFIG.model_copy(update={"start_time_s": 5.0})
    engine.update_weights(str(other), 6)
    engine._config = CONFIG
    requests = asked(8)
    got = engine.generate(requests)
    assert got.policy_version == 6
    assert worst_difference(other, requests, got) < 1e-4
    assert engine._restarts_left == CONFIG.restarts - 1


@contextlib.contextmanager
def no_more_memory(pids: Iterable[int]) -> Iterator[None]:
    """Has the kernel kill processes that ask for more memory than they have."""
    root = Path("/sys/fs/cgroup")
    one = root / "memory" if (root / "memory").is_dir() else root  # version 1 or 2
    group = one / f"turnledger-test-{os.getpid()}"
    limit = "memory.max" if one == root else "memory.limit_in_bytes"
    try:
        group.mkdir()
        (group / limit).write_text("0")
    except OSError as error:
        pytest.skip(f"no control group for memory can be made here: {error}")
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))
    yield
    for pid in (group / "cgroup.procs").read_text().split():
        (one / "cgroup.procs").write_text(pid)
    group.rmdir()


@pytest.fixture
def fresh(engine: VllmEngine, policy: Path) -> VllmEngine:
    """An engine whose server has sampled nothing yet, so that it will need more memory."""
    os.kill(server_processes(engine)["server"], signal.SIGKILL)
    engine.update_weights(str(policy), 0)
    return engine


def test_a_server_that_runs_out_of_memory_is_started_again_and_no_row_is_lost(
    fresh: VllmEngine, policy: Path
) -> None:
    requests = asked(96, limit=250, stop_ids=())
    before = fresh._session
    with no_more_memory(server_processes(fresh).values()):
        got = fresh.generate(requests)
    assert fresh._session is not before
    assert got.token_ids == fresh.generate(requests).token_ids
    assert worst_difference(policy, requests, got) < 1e-4


def test_out_of_memory_is_told_with_what_to_lower(fresh: VllmEngine) -> None:
    fresh._restarts_left = 0
    with (
        no_more_memory(server_processes(fresh).values()),
        pytest.raises(EngineError, match=r"if memory ran out, lower vllm\.kv_cache_gib"),
    ):
        fresh.generate(asked(96, limit=250, stop_ids=()))


def test_restarts_are_bounded(engine: VllmEngine) -> None:
    engine._restarts_left = 0
    with pytest.raises(EngineError, match=r"once more than vllm\.restarts=3 allows.*signal 9"):
        interrupted(engine, asked(96, limit=250, stop_ids=()), "server", signal.SIGKILL)
    with pytest.raises(EngineError, match="allows"):
        engine.generate(asked(2))


def test_a_taken_port_does_not_matter(
    started: VllmEngine, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.close()
    free = vllm_server._free_port
    with vllm_server.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(vllm_server, "_free_port", lambda: next(ports, None) or free())
        started.update_weights(str(policy), 0)
    assert not started._server.url.endswith(str(taken))
    assert len(started.generate(asked(4)).token_ids) == 4
