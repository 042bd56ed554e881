"""Which vLLM an environment has, and the policies that it is sure to refuse."""

import json
from pathlib import Path

import pytest

from schemas.errors import EngineError
from stages.rollout.vllm_release import Release, head_size, installed_release
from tests.stages.rollout.with_vllm.vllm_environment import PYTHON, needs_vllm


@needs_vllm
def test_the_installed_vllm_tells_version_and_head_sizes() -> None:
    release = installed_release(PYTHON)
    assert [int(part) for part in release.version.split(".")[:2]] >= [0, 1]
    assert release.cpu_head_sizes is not None
    assert {64, 128} <= set(release.cpu_head_sizes)
    assert 24 not in release.cpu_head_sizes


def test_a_policy_with_other_heads_is_refused_by_name() -> None:
    cpu = Release(version="0.32.0", cpu_head_sizes=(32, 64))
    with pytest.raises(EngineError, match=r"heads of 24 numbers; vLLM 0\.32\.0 on a CPU knows 32"):
        cpu.refuse_heads(24)


@pytest.mark.parametrize(("sizes", "size"), [((32, 64), 64), ((32, 64), None), (None, 24)], ids=str)
def test_what_is_known_or_not_sure_is_not_refused(sizes: tuple[int, ...] | None, size: int) -> None:
    Release(version="0.32.0", cpu_head_sizes=sizes).refuse_heads(size)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"head_dim": 24, "hidden_size": 64, "num_attention_heads": 4}, 24),
        ({"head_dim": None, "hidden_size": 64, "num_attention_heads": 4}, 16),
        ({"n_embd": 96, "n_head": 3}, 32),
        ({"text_config": {"hidden_size": 64, "num_attention_heads": 2}}, 32),
        ({"kv_lora_rank": 512, "hidden_size": 64, "num_attention_heads": 2}, None),
        ({"hidden_size": 64, "num_attention_heads": 0}, None),
        ([], None),
    ],
)
def test_the_size_of_a_head_is_read_from_the_config(
    tmp_path: Path, config: object, size: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert head_size(tmp_path) == size


def test_a_folder_without_config_does_not_tell(tmp_path: Path) -> None:
    assert head_size(tmp_path) is None
