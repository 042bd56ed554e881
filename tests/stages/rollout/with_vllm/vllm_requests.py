"""What the tests ask the vLLM engine for, and how far its answers are from the trainer's."""

from pathlib import Path

import numpy as np
import torch

from stages.rollout.engine import Generations, Requests
from tests.stages.rollout.rollout_policies import recomputed_logprobs
from tests.stages.rollout.with_vllm.vllm_environment import model_of

VOCABULARY = 300


def asked(
    rows: int = 32,
    *,
    longest: int = 250,
    limit: int = 40,
    stop_ids: tuple[int, ...] = (1,),
    stop_strings: tuple[str, ...] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Requests:
    random = np.random.default_rng(0)
    lengths = random.integers(1, longest, size=rows)
    return Requests(
        contexts=[random.integers(VOCABULARY, size=length).tolist() for length in lengths],
        seeds=np.arange(rows, dtype=np.int64) + 2**62,
        max_new_tokens=np.full(rows, limit, dtype=np.int64),
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )


def worst_difference(folder: Path, requests: Requests, got: Generations) -> float:
    """Compares with a plain forward pass, cut to the tokens of top-k and top-p one by one."""
    return max(
        float(
            (
                recomputed_logprobs(
                    model_of(folder),
                    context,
                    tokens,
                    requests.temperature,
                    top_p=requests.top_p,
                    top_k=requests.top_k,
                )
                - torch.tensor(logprobs)
            )
            .abs()
            .max()
        )
        for context, tokens, logprobs in zip(
            requests.contexts, got.token_ids, got.logprobs, strict=True
        )
    )
