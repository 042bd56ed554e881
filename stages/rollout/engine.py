"""What a rollout asks of an engine: token ids in, token ids and log-probabilities out."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """A batch of contexts to continue, one row each."""

    contexts: list[list[int]]
    """[rows][context_tokens] everything the policy has seen so far."""
    seeds: NDArray[np.int64]
    """[rows] seed of the row's random stream; a row's result does not depend on other seeds."""
    max_new_tokens: NDArray[np.int64]
    """[rows] most tokens to sample, each at least 1."""
    stop_ids: tuple[int, ...]
    """Tokens that end a row; the stopping token is part of the result."""
    temperature: float
    """Divisor of the logits; 0 takes the likeliest token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """What was sampled, in the order of the requests."""

    token_ids: list[list[int]]
    """[rows][new_tokens] sampled tokens."""
    logprobs: list[list[float]]
    """[rows][new_tokens] natural log-probabilities under the sampling distribution.

    Greedy rows have those at temperature 1.
    """


class Engine(Protocol):
    """Samples continuations from one policy."""

    @property
    def policy_version(self) -> int:
        """Version of the policy that samples."""

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of a context with its continuation."""

    def generate(self, requests: Requests) -> Generations:
        """Samples a continuation of every context; safe to call from several threads."""
