"""Which vLLM an environment has, and what it is sure to refuse, found without starting it."""

import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import EngineError

EXTENSION = Path(__file__).with_name("vllm_extension")
_ADVICE = "`make vllm` builds an environment for CPUs; or name the python of one with vLLM"
_ASK_TIME_S = 60


class Release(BaseModel):
    """A vLLM, as its package tells."""

    model_config = ConfigDict(frozen=True)

    version: str
    """Without what stands behind a plus: a server by URL does not tell that of its package."""
    cpu_head_sizes: tuple[int, ...] | None = None
    """Sizes of heads that its attention on a CPU knows; null for one that computes elsewhere, or
    does not say."""

    def refuse_heads(self, size: int | None) -> None:
        """Refuses heads of a size for which there is no attention.

        Args:
            size: Numbers of a head; null if it is not known.

        Raises:
            EngineError: If so. A server would end with its first request.
        """
        if self.cpu_head_sizes is None or size is None or size in self.cpu_head_sizes:
            return
        known = ", ".join(map(str, self.cpu_head_sizes))
        raise EngineError(
            f"the policy has heads of {size} numbers; vLLM {self.version} on a CPU knows {known}: "
            "policy.hidden_size / policy.heads is what the embedded policy has"
        )


@lru_cache
def installed_release(python: str) -> Release:
    """Returns the vLLM of an environment, asked once a process.

    Args:
        python: Path of the environment's python.

    Raises:
        EngineError: If there is no such python, or it has no vLLM.
    """
    if not os.access(python, os.X_OK) or not Path(python).is_file():
        raise EngineError(f"vllm.python: {python} is no program: {_ADVICE}")
    # Absolute, but not resolved: the link is what makes it the python of an environment.
    command = [os.path.abspath(python), str(EXTENSION / "turnledger_release.py")]
    try:
        told = subprocess.run(command, capture_output=True, timeout=_ASK_TIME_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"vllm.python: {python} does not run as a python: {_ADVICE}") from error
    try:
        return Release.model_validate_json(told.stdout)
    except ValidationError as error:
        raise EngineError(f"vllm.python: {python} has no package vllm: {_ADVICE}") from error


def head_size(folder: str | Path) -> int | None:
    """Returns the numbers of one attention head of a policy; null where that is not sure.

    Args:
        folder: Of the policy; one without a config.json does not tell.
    """
    try:
        config = json.loads((Path(folder) / "config.json").read_bytes())
        text = config.get("text_config", config)
        if "kv_lora_rank" in text:  # keys and values are stored compressed, in another size
            return None
        if text.get("head_dim") is not None:
            return int(text["head_dim"])
        width, heads = text.get("hidden_size"), text.get("num_attention_heads")
        return int(width or text["n_embd"]) // int(heads or text["n_head"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
