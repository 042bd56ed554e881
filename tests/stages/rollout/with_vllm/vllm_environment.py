"""The environment of the real vLLM server, and the policies that the tests serve."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from schemas.config import VllmConfig
from schemas.config_text import parse_config
from stages.cold_start.start import start_policy
from stages.rollout.weight_check import forward_logprobs
from storage.checkpoints import load_policy, save_policy

ROOT = Path(__file__).parents[4]
PYTHON = os.environ.get("TURNLEDGER_VLLM_PYTHON", str(ROOT / ".venv-vllm/bin/python"))
needs_vllm = pytest.mark.skipif(
    not Path(PYTHON).is_file(), reason="no environment with vLLM: make vllm builds it"
)
with_vllm = [pytest.mark.long, needs_vllm, pytest.mark.timeout(900)]
"""Marks of a file whose tests all need the server."""
CONFIG = VllmConfig(python=PYTHON, start_time_s=400, silence_time_s=120)
SHAPE = "{hidden_size = 64, heads = 2, layers = 2, feed_forward_size = 96, vocabulary_size = 300}"
"""vLLM's attention on a CPU knows heads of 32 numbers, and none that are smaller."""


def write_policy(folder: Path, *, changed_by: float = 0.0) -> Path:
    """Writes a policy that was trained for some seconds, its weights moved by noise."""
    config = parse_config(
        f"""
        problems.levels = [1]
        policy = {SHAPE}
        cold_start = {{steps = 80, demonstrations = 640, batch_size = 8, warmup_steps = 5}}
        """
    )
    started = start_policy(config, given=None, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in started.model.parameters():
            weights.add_(changed_by * torch.randn_like(weights))
    folder.mkdir()
    save_policy(folder, started.model, started.tokenizer, None)
    return folder


def forward(
    folder: str, contexts: Sequence[list[int]], tokens: Sequence[list[int]]
) -> list[list[float]]:
    return forward_logprobs(load_policy(folder)[0], contexts, tokens)


@lru_cache(maxsize=4)
def model_of(folder: Path) -> PreTrainedModel:
    return load_policy(folder)[0]
