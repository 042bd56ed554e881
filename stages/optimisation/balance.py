"""Shares of a step's trajectories, one a process: equal in tokens, shared prompts kept together.

Every process computes all shares, from what all know, so nothing needs to be sent.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from stages.optimisation.batches import Batch
from stages.optimisation.packing import shared_prompts


def balanced_shares(
    batch: Batch, trajectories: NDArray[np.int64], shares: int, *, pairs_per_token: int
) -> list[NDArray[np.int64]]:
    """Splits trajectories so that the heaviest share has few tokens.

    Trajectories that share a prompt make a unit, as the prompt is then computed once. The
    heaviest unit goes to the lightest share until none is left (Graham, "Bounds on
    multiprocessing timing anomalies", 1969). Units are tried whole, and cut in ever more parts,
    for a cut costs a prompt and may even out the shares; the best split is taken.

    Args:
        batch: What the trajectories are of.
        trajectories: Indices.
        shares: How many shares are made; some may be empty.
        pairs_per_token: As in `worth_sharing`.
    """
    units: dict[bytes | int, list[int]] = {}
    prompts = shared_prompts(batch, trajectories, pairs_per_token)
    for trajectory, prompt in zip(trajectories, prompts, strict=True):
        units.setdefault(prompt, []).append(int(trajectory))
    largest = max((len(unit) for unit in units.values()), default=0)
    best: tuple[int, list[list[int]]] | None = None
    parts = 1
    while best is None or parts < 2 * largest:
        cut = [part for unit in units.values() for part in _cut(unit, parts)]
        found = _spread(batch, cut, shares)
        if best is None or found[0] < best[0]:
            best = found
        parts *= 2
    return [np.array(sorted(share), dtype=np.int64) for share in best[1]]


def _cut(unit: list[int], parts: int) -> list[list[int]]:
    count = min(parts, len(unit))
    return [unit[len(unit) * i // count : len(unit) * (i + 1) // count] for i in range(count)]


def _spread(batch: Batch, units: list[list[int]], shares: int) -> tuple[int, list[list[int]]]:
    """Returns the tokens of the heaviest share, and the shares."""
    prompts = batch.prompt_lengths
    sizes = [
        int(sum(batch.lengths[t] for t in unit) - (len(unit) - 1) * prompts[unit[0]])
        for unit in units
    ]
    loads = [(0, number) for number in range(shares)]
    found: list[list[int]] = [[] for _ in range(shares)]
    for index in sorted(range(len(units)), key=lambda index: -sizes[index]):
        load, number = heapq.heappop(loads)
        found[number] += units[index]
        heapq.heappush(loads, (load + sizes[index], number))
    return max(load for load, _ in loads), found
