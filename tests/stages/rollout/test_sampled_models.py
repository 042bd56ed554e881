"""Models that the embedded engine refuses, by their configuration."""

from pathlib import Path

import pytest
from transformers import (
    Gemma3TextConfig,
    Llama4TextConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from schemas.errors import PolicyError
from stages.rollout.sampled_models import refuse_other_folder, refuse_other_models


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (MistralConfig(sliding_window=4_096, max_position_embeddings=32_768), "4096 tokens"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=512, max_window_layers=2),
            "512 tokens",
        ),
        (Gemma3TextConfig(sliding_window=512), "512 tokens"),
        (
            Llama4TextConfig(attention_chunk_size=128, max_position_embeddings=512),
            r"128 tokens \(attention_chunk_size\)",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_policy_that_forgets_a_part_of_its_context_is_refused_in_one_line(
    config: PreTrainedConfig, window: str
) -> None:
    with pytest.raises(PolicyError, match=window) as refusal:
        refuse_other_models(config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=None),
        MistralConfig(sliding_window=4_096, max_position_embeddings=4_096),
        Qwen2Config(use_sliding_window=False, sliding_window=512),
    ],
    ids=["no window", "as long as the context", "not in use"],
)
def test_a_policy_that_attends_to_its_whole_context_is_not(config: PreTrainedConfig) -> None:
    refuse_other_models(config)


def test_a_folder_is_refused_by_its_config_alone(tmp_path: Path) -> None:
    MistralConfig(sliding_window=512).save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="512 tokens"):
        refuse_other_folder(str(tmp_path))


def test_a_config_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(PolicyError, match="cannot be opened as a policy") as refusal:
        refuse_other_folder(str(tmp_path))
    assert "\n" not in str(refusal.value)
