"""LoRA: small matrices beside those of a policy are trained, and merged for whoever samples.

W' = W + (alpha / rank) B A, of Hu et al., "LoRA" (arXiv 2106.09685), through peft. A merged policy
cannot be taken apart again to the bit, so what was merged is kept: the `Adapter`, and the matrices
it stands beside, which stay the same as long as it is trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from schemas.errors import ConfigError
from schemas.optimisation import OptimisationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter as it is stored."""

    rank: int
    alpha: int
    weights: dict[str, torch.Tensor]
    """By name in the model that it is attached to."""

    def fits(self, config: OptimisationConfig) -> bool:
        """Says whether it is what these settings train."""
        return (self.rank, self.alpha) == (config.lora_rank, config.lora_alpha)


def require_peft() -> None:
    """Refuses LoRA where its package is missing.

    Raises:
        ConfigError: If it is so.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "optimisation.lora_rank needs the package peft: install turnledger[lora], or set "
            "lora_rank=0"
        ) from error


def attach(
    model: PreTrainedModel,
    config: OptimisationConfig,
    stored: Adapter | None = None,
    base: Mapping[str, torch.Tensor] | None = None,
    *,
    seed: int,
) -> None:
    """Puts an adapter beside every linear layer but the head, in place; only it is trained then.

    Args:
        model: Merged policy.
        config: Rank and alpha.
        stored: Adapter of this policy, which is continued; a new one begins where the policy is.
        base: The matrices that it was merged into, by name; they go with it.
        seed: Seed of a new adapter.

    Raises:
        ConfigError: If peft is missing.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    with torch.no_grad():
        for name, matrix in (base or {}).items():
            model.get_parameter(name).copy_(matrix)
    settings = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    if stored is not None:
        model.load_state_dict(stored.weights, strict=False)
    for name, weight in model.named_parameters():
        weight.requires_grad_(".lora_" in name)


def detach(
    model: PreTrainedModel, config: OptimisationConfig
) -> tuple[Adapter, dict[str, torch.Tensor]]:
    """Merges the adapter into the model, in place.

    Returns:
        The adapter, and the matrices that it was merged into, by name.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[tuple[str, Any]] = [
        (n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)
    ]
    kept = {n: t.detach().cpu().clone() for n, t in model.state_dict().items() if ".lora_" in n}
    base: dict[str, torch.Tensor] = {}
    for name, layer in layers:
        base[f"{name}.weight"] = layer.get_base_layer().weight.detach().cpu().clone()
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    for weight in model.parameters():
        weight.requires_grad_(True)
    return Adapter(rank=config.lora_rank, alpha=config.lora_alpha, weights=kept), base
