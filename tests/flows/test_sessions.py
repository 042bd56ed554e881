"""What is refused before a flow is started."""

from pathlib import Path

import pytest
from transformers import MistralConfig

from flows.sessions import check_inputs
from schemas.config import parse_config
from schemas.errors import PolicyError


def test_a_policy_that_the_engine_cannot_sample_from_is_told_before_the_cold_start(
    tmp_path: Path,
) -> None:
    MistralConfig(sliding_window=512, max_position_embeddings=2_048).save_pretrained(tmp_path)
    config = parse_config(overrides=[f"policy.path={tmp_path}"])
    with pytest.raises(PolicyError, match=r"attend to 512 tokens .* of 2048"):
        check_inputs(config, None, runs_code=False)
    check_inputs(config, None, runs_code=False, samples=False)
