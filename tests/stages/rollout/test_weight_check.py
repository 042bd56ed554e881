"""Bounds of the check of weights, by a pretrained model whose numbers have 16 bits."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from stages.rollout.transformers_engine import TransformersEngine
from stages.rollout.weight_check import BOUNDS, forward_logprobs, probe_requests
from storage.checkpoints import load_policy

SMOLLM2 = Path(
    os.environ.get("TURNLEDGER_SMOLLM2", Path.home() / ".cache/turnledger/smollm2-135m-instruct")
)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="the converted model is not there")
def test_the_bound_of_bfloat16_lies_between_rounding_and_a_wrong_matrix() -> None:
    model, tokenizer = load_policy(SMOLLM2)
    probes = probe_requests(vocabulary=model.config.vocab_size, max_context_tokens=2_048)
    rounded = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]
    said = TransformersEngine(rounded, tokenizer, policy_version=0).generate(probes)

    def difference(other: PreTrainedModel) -> float:
        expected = forward_logprobs(other, probes.contexts, said.token_ids)
        gaps = np.abs(np.concatenate(said.logprobs) - np.concatenate(expected))
        return float(gaps.mean())

    assert 2 * difference(model) < BOUNDS["bfloat16"]
    torch.manual_seed(0)
    torch.nn.init.normal_(model.model.layers[15].mlp.down_proj.weight, std=0.02)
    assert difference(model) > 2 * BOUNDS["bfloat16"]
