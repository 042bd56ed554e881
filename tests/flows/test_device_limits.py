"""One flow at a time on a device: names of limits, and two real flows on a real server."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from flows.binding import Place
from flows.device_limits import LEASE_S, held, limits_of
from flows.events import StageEvent, listening
from schemas.config_text import parse_config
from tests.process_trees import wait_until

HOST = socket.gethostname()
ROOT = Path(__file__).parents[2]

HOLDER = """
import sys
from pathlib import Path
from prefect import flow
from flows.binding import Place
from flows.device_limits import held

@flow(persist_result=False)
def holding():
    with held(Place(store="nowhere", run="other", iteration=0), [sys.argv[1]]):
        print("held", flush=True)
        sys.stdin.readline()

holding()
"""


def names(*overrides: str, samples: bool = True, learns: bool = True) -> list[str]:
    return limits_of(parse_config(overrides=overrides), samples=samples, learns=learns)


def holder_of(name: str) -> "subprocess.Popen[str]":
    """Starts another process whose flow holds a limit; returns it once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name],
        cwd=ROOT,
        env={**os.environ, "PREFECT_LOGGING_LEVEL": "CRITICAL"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def slots(name: str) -> tuple[int, int]:
    """Returns slots that are taken, and slots there are."""
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(name)
    return limit.active_slots, limit.limit


def hold(limits: Sequence[str]) -> list[StageEvent]:
    """Holds limits in a flow of this process for a moment; returns what was told."""

    @flow(persist_result=False)
    def holding() -> None:
        with held(Place(store="nowhere", run="mine", iteration=0), limits):
            for name in limits:
                assert slots(name)[0] >= 1

    told: list[StageEvent] = []
    with listening(told.append):
        holding()
    return told


def test_a_flow_on_a_cpu_waits_for_nobody() -> None:
    assert names() == []


def test_a_device_is_named_by_its_machine() -> None:
    assert names("compute.device=mps") == [f"turnledger-{HOST}-mps-0"]
    assert names("compute.device=xpu", "compute.processes=2") == [
        f"turnledger-{HOST}-xpu-0",
        f"turnledger-{HOST}-xpu-1",
    ]


def test_a_gpu_is_named_alike_whatever_number_it_has_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")
    assert names("compute.device=cuda") == [f"turnledger-{HOST}-cuda-3"]
    assert names("compute.device=cuda:1") == [f"turnledger-{HOST}-cuda-GPU-5f"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert names("compute.device=cuda:1") == [f"turnledger-{HOST}-cuda-1"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://sampler:8000", "turnledger-vllm-sampler-8000"),
        ("https://someone:secret@sampler/path", "turnledger-vllm-sampler-443"),
    ],
)
def test_a_server_is_named_by_its_address_from_every_machine(url: str, name: str) -> None:
    assert names("rollout.engine=vllm", f"vllm.url={url}") == [name]


def test_a_flow_takes_only_what_it_uses() -> None:
    served = ("compute.device=mps", "rollout.engine=vllm", "vllm.url=http://sampler:8000")
    assert names(*served, learns=False) == ["turnledger-vllm-sampler-8000"]
    assert names(*served, samples=False) == [f"turnledger-{HOST}-mps-0"]
    assert names(*served, samples=False, learns=False) == []


def test_a_second_flow_waits_until_the_first_gives_back() -> None:
    name = "turnledger-test-waits"
    other = holder_of(name)
    assert slots(name) == (1, 1)
    assert other.stdin is not None
    stdin = other.stdin

    def release(event: StageEvent) -> None:
        assert event.kind == "notice"
        assert name in event.reason
        stdin.write("\n")
        stdin.flush()

    with listening(release):
        assert len(hold([name])) == 1
    assert other.wait(timeout=60) == 0
    assert wait_until(lambda: slots(name) == (0, 1), 30)


def test_nobody_is_told_to_wait_where_nobody_does() -> None:
    assert hold(["turnledger-test-free"]) == []
    assert slots("turnledger-test-free") == (0, 1)


def test_a_limit_that_somebody_has_set_stays_as_it_is() -> None:
    name = "turnledger-test-two"
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=2))
    other = holder_of(name)
    assert hold([name]) == []
    assert slots(name)[1] == 2
    other.communicate("\n", timeout=60)


@pytest.mark.soak
def test_the_slot_of_a_killed_flow_is_free_again() -> None:
    name = "turnledger-test-killed"
    other = holder_of(name)
    other.send_signal(signal.SIGKILL)
    other.wait(timeout=10)
    assert slots(name) == (1, 1)
    # Prefect looks for leases that have ended every 15 seconds.
    assert wait_until(lambda: slots(name)[0] == 0, LEASE_S + 60)
    assert hold([name]) == []
