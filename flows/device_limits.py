"""Devices and engines that one flow at a time may use, kept by concurrency limits of Prefect.

A limit of one slot stands for each GPU of a machine and for each vLLM server that several flows
reach. A flow takes what it uses when it begins and gives it back at its end: its policy and its
server's share of the memory stay on the device all the while, and a server that two flows gave
weights to would sample for one from the policy of the other.

The slots are leases. A flow renews them; one that was killed loses them within `LEASE_S` and the
round of the Prefect server that looks for such leases. A temporary server knows no other flow, so
limits need one that lasts.
"""

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings

from flows.binding import Place
from flows.events import StageEvent, tell
from schemas.config import RunConfig

LEASE_S = 60.0
"""How long a slot stays taken after its flow was killed; the least that Prefect takes."""


def limits_of(config: RunConfig, *, samples: bool, learns: bool) -> list[str]:
    """Returns the names of the limits that a flow takes a slot of; none on a CPU.

    A GPU is named by its machine and its own number or identifier, a server by its address, so
    that flows on several machines do not wait for each other.

    Args:
        config: Settings of the flow.
        samples: Whether it may sample turns.
        learns: Whether it may train, or embed texts, on the device.
    """
    engine, compute = config.rollout.engine, config.compute
    names: set[str] = set()
    if learns or (samples and engine == "transformers"):
        names |= set(_devices(compute.device, compute.processes))
    if samples and engine == "vllm":
        url = config.vllm.url
        names |= set(_devices(_server_device(config), 1)) if url is None else {_server(url)}
    return sorted(names)


@contextmanager
def held(place: Place, names: Sequence[str]) -> Iterator[None]:
    """Holds one slot of each limit within the block, inside a flow; waits until they are free.

    A limit that does not exist is made, with one slot. One that somebody has given more slots
    stays as it is. Without a lasting Prefect server nothing is held.

    Args:
        place: Where the flow is, for those who are told that it waits.
        names: Of the limits.
    """
    if not names or get_current_settings().api.url is None:
        yield
        return
    taken = _taken(names)
    if taken:
        told = f"waits for another flow to give back {', '.join(taken)}"
        tell(StageEvent(slot=place.slot("cold_start"), kind="notice", reason=told))
    with concurrency(list(names), occupy=1, lease_duration=LEASE_S):
        yield


def _taken(names: Sequence[str]) -> list[str]:
    """Makes the limits that are missing; returns those without a free slot."""
    taken = []
    with get_client(sync_client=True) as client:
        for name in names:
            try:
                limit = client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                with suppress(ObjectAlreadyExists):  # where another flow was quicker
                    client.create_global_concurrency_limit(
                        GlobalConcurrencyLimitCreate(name=name, limit=1)
                    )
                continue
            if limit.active_slots >= limit.limit:
                taken.append(name)
    return taken


def _devices(device: str, count: int) -> Iterator[str]:
    """Yields the names of the devices that a flow on `device` uses."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return
    first = int(number or 0)
    for index in range(first, first + count):
        yield f"turnledger-{socket.gethostname()}-{kind}-{_identifier(kind, index)}"


def _identifier(kind: str, index: int) -> str:
    """Returns what names a device in every process of a machine, however it numbers them."""
    if kind == "cuda":
        import torch

        if index < torch.cuda.device_count():
            return str(torch.cuda.get_device_properties(index).uuid)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if index < len(visible) and visible[index]:
            return visible[index]
    return str(index)


def _server_device(config: RunConfig) -> str:
    """Returns the device of a vLLM server that the flow starts: a GPU unless it is a CPU build."""
    from stages.rollout.vllm_server import release_of

    if release_of(config.vllm).cpu_head_sizes is not None:
        return "cpu"
    return config.compute.device if config.compute.device != "cpu" else "cuda"


def _server(url: str) -> str:
    parts = urlsplit(url)
    address = f"{parts.hostname}-{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"
    return f"turnledger-vllm-{re.sub(r'[^A-Za-z0-9.-]+', '-', address)}"
