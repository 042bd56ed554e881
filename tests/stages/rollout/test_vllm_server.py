"""The server's process without vLLM: what is refused before a start, and who ends it."""

import sys

import pytest

from schemas.config import VllmConfig
from schemas.errors import EngineError
from stages.rollout.vllm_server import _cause, release_of


@pytest.mark.parametrize(
    ("python", "match"),
    [
        ("nowhere/python", "nowhere/python is no program: `make vllm` builds"),
        (sys.executable, "has no package vllm"),
        ("/bin/false", "has no package vllm"),
    ],
)
def test_a_python_without_vllm_is_refused_in_one_line(python: str, match: str) -> None:
    with pytest.raises(EngineError, match=match) as raised:
        release_of(VllmConfig(python=python))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "log", "cause"),
    [
        (1, "Error in x\nOSError: [Errno 98] address already in use\n", "status 1: OSError: [Err"),
        (137, "", "it was killed (signal 9); if memory ran out, lower vllm.kv_cache_gib or"),
        (
            1,
            "torch.OutOfMemoryError: CUDA out of memory. Tried\nRuntimeError: Engine core "
            "initialization failed. See root cause above.\n",
            "status 1: torch.OutOfMemoryError: CUDA out of memory. Tried; if memory ran out",
        ),
    ],
)
def test_the_cause_of_an_end_is_told_from_status_and_log(status: int, log: str, cause: str) -> None:
    assert _cause(status, log).startswith(cause)
