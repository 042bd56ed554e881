"""Checks that an engine holds the weights of a policy, by the log-probabilities that it returns.

An engine may answer that it has loaded weights and sample from others. What it says of a few
sampled tokens tells: each is compared with the trainer's own forward pass over the same tokens.

In 16 bits two right computations differ by more than a small step of training. There the check
tells a wrong policy, or weights that were loaded in part, but not one step from the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from schemas.errors import EngineError, PolicyError
from stages.rollout.engine import Generations, Requests

BOUNDS = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.15}
"""Numbers the engine computes with, to the largest mean difference, nats.

SmolLM2-135M-Instruct that samples in bfloat16 is 0.052 off the float32 pass over its own weights.
Weights that all moved by 3e-4 show as 0.056, by 1e-3 as 0.10, one matrix of its 30 layers at random
as 0.49, one layer in the place of another as 0.58: the bound is thrice the rounding, and a third of
the least fault (tests/stages/rollout/test_weight_check.py).
"""
PROBE_LENGTHS = (1, 9, 60, 300)
"""Tokens of the probes' contexts. The longest spans blocks of any prefix cache, so that one that
was not reset shows: the probes are the same every time."""
PROBE_TOKENS = 8
"""Tokens sampled from each."""
_SEED = 20_260


class Forward(Protocol):
    """The trainer's forward pass over a policy that is stored in a folder."""

    def __call__(
        self, folder: str, contexts: Sequence[list[int]], tokens: Sequence[list[int]]
    ) -> list[list[float]]:
        """Returns the log-probability of each token behind its context, at temperature 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCheck:
    """What a check measured."""

    difference: float
    """Mean absolute difference of log-probabilities, nats."""
    bound: float
    """Largest difference that is taken for rounding."""


def forward_logprobs(
    model: PreTrainedModel, contexts: Sequence[list[int]], tokens: Sequence[list[int]]
) -> list[list[float]]:
    """Returns the log-probability of each token behind its context, by plain forward passes."""
    rows = []
    for context, continuation in zip(contexts, tokens, strict=True):
        ids = torch.tensor([context + continuation], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        of_tokens = logprobs.gather(1, ids[0, len(context) :, None])[:, 0]
        rows.append([float(value) for value in of_tokens])
    return rows


def probe_requests(*, vocabulary: int, max_context_tokens: int) -> Requests:
    """Returns the requests of the check, the same for all policies of one shape."""
    random = np.random.default_rng(_SEED)
    room = max(1, max_context_tokens - PROBE_TOKENS)
    lengths = [min(length, room) for length in PROBE_LENGTHS]
    return Requests(
        contexts=[random.integers(vocabulary, size=length).tolist() for length in lengths],
        seeds=np.arange(len(lengths), dtype=np.int64),
        max_new_tokens=np.full(len(lengths), PROBE_TOKENS, dtype=np.int64),
        stop_ids=(),
    )


def check_weights(
    sample: Callable[[Requests], Generations],
    probes: Requests,
    *,
    folder: str,
    dtype: str,
    forward: Forward,
    name: str,
) -> WeightCheck:
    """Compares what an engine says of tokens that it samples with the forward pass of a policy.

    Args:
        sample: Samples from the engine.
        probes: What to sample.
        folder: Policy that the engine must hold.
        dtype: Numbers that it computes with, a key of `BOUNDS`.
        forward: The trainer's forward pass.
        name: What errors call the engine.

    Raises:
        EngineError: If they differ by more than rounding.
        PolicyError: If the policy yields no finite numbers.
    """
    sampled = sample(probes)
    expected = np.concatenate(forward(folder, probes.contexts, sampled.token_ids))
    if not np.isfinite(expected).all():
        raise PolicyError(f"{folder} yields no finite log-probabilities: its weights diverged")
    difference = float(np.abs(np.concatenate(sampled.logprobs) - expected).mean())
    bound = BOUNDS[dtype]
    if not difference <= bound:
        raise EngineError(
            f"{name} samples from other weights than {folder}: log-probabilities differ by "
            f"{difference:.2g} on average, {bound:g} is the bound for {dtype}"
        )
    return WeightCheck(difference=difference, bound=bound)
