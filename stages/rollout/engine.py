"""What a rollout asks of an engine: token ids in, token ids and log-probabilities out."""

from collections.abc import Sequence
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
    stop_strings: tuple[str, ...] = ()
    """Texts that end a row, however they are cut into tokens; the token that completes one is the
    last of the result."""
    temperature: float = 1.0
    """Divisor of the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Share of probability that is sampled from, the likeliest tokens first, at least one."""
    top_k: int = 0
    """Most tokens that are sampled from, the likeliest ones; 0 for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """What was sampled, in the order of the requests."""

    token_ids: list[list[int]]
    """[rows][new_tokens] sampled tokens."""
    logprobs: list[list[float]]
    """[rows][new_tokens] natural log-probabilities under the distribution that was sampled from:
    after temperature, top-k and top-p. Greedy rows have those at temperature 1, of all tokens."""
    stopped: Sequence[bool]
    """[rows] whether a stopping token or text ended the row, not its limit."""
    policy_version: int
    """Version of the policy that sampled all of them."""
    cached_tokens: Sequence[int] | None = None
    """[rows] tokens of each context found in the engine's prefix cache; null if it does not tell
    of every row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do beyond sampling."""

    live_weights: bool
    """Whether `update_weights` goes on with the same process and memory."""
    prefix_cache: bool
    """Whether tokens that a later turn shares with an earlier one are not computed again."""


class Engine(Protocol):
    """Samples continuations from one policy at a time."""

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""

    @property
    def policy_version(self) -> int:
        """Version of the policy that samples."""

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of a context with its continuation."""

    def generate(self, requests: Requests) -> Generations:
        """Samples a continuation of every context.

        Safe to call from several threads: calls in flight share the engine, so that many shards
        keep it busy.

        Raises:
            schemas.errors.EngineError: If the engine failed and could not be brought back.
            schemas.errors.PolicyError: If the policy cannot do what is asked.
        """

    def update_weights(self, folder: str, policy_version: int) -> None:
        """Samples from another policy of the same architecture from now on.

        Waits for the calls in flight; none mixes two policies.

        Args:
            folder: Hugging Face folder of the policy.
            policy_version: Its version.

        Raises:
            schemas.errors.PolicyError: If the folder holds no such policy.
            schemas.errors.EngineError: If the engine samples from other weights than those.
        """
