"""Random streams addressed by key, so that no draw depends on what is drawn beside it.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
is a counter-based generator: the n-th number of a stream is a function of seed and n alone.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(*parts: object) -> int:
    """Returns a seed in [0, 2**63) that depends on every part and on their order."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def turn_seeds(
    seed: int, task_ids: Sequence[str], sample_index: NDArray[np.int64], turn_index: int
) -> NDArray[np.int64]:
    """Returns one seed a turn, in [0, 2**63).

    Args:
        seed: Seed of the rollout.
        task_ids: [turns] group of each turn.
        sample_index: [turns] trajectory within its group.
        turn_index: Turn within the trajectory, the same for all.
    """
    by_task = {task: derive_seed(seed, task) for task in set(task_ids)}
    of_task = np.array([by_task[task] for task in task_ids], dtype=np.uint64)
    of_sample = _mix(of_task + _GOLDEN * (sample_index.astype(np.uint64) + np.uint64(1)))
    of_turn = _mix(of_sample + np.full_like(of_sample, turn_index + 1) * _GOLDEN)
    return (of_turn >> np.uint64(1)).astype(np.int64)


def uniforms(seeds: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Returns [streams, count] numbers, even over [0, 1), of the streams of the seeds."""
    counters = np.arange(1, count + 1, dtype=np.uint64)
    states = seeds.astype(np.uint64)[:, None] + _GOLDEN * counters[None, :]
    return (_mix(states) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
