"""An update on several processes: FSDP2, data parallel over trajectories.

Weights, gradients and moments are cut in as many shards as there are processes. On devices with
memory of their own each block is put together when it computes and taken apart after (Zhao et al.,
"PyTorch FSDP", arXiv 2304.11277; ZeRO stage 3 of arXiv 1910.02054). What surrounds the blocks stays
whole from a forward pass to the end of its backward pass, for the head computes chunk by chunk,
each of them twice.

The loss of a token is divided by counts of the whole step, so gradients are added up, not averaged.

A collective is entered by all processes or by none, so they make equally many passes. Not covered:
models some of whose weights take part in some passes only, such as experts with a module each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from schemas.optimisation import OptimisationConfig
from stages.optimisation.attention import can_pack
from stages.optimisation.balance import balanced_shares
from stages.optimisation.batches import Batch
from stages.optimisation.devices import Share
from stages.optimisation.forward import trained_logprobs
from stages.optimisation.packing import Pack, split_by_tokens


class ShardedDevices:
    """One of the processes of torch's default process group, with a shard of a model."""

    def __init__(self, model: PreTrainedModel, *, by_block: bool) -> None:
        """Shards a model in place; every process must do so with the same one.

        Args:
            model: On the device of this process.
            by_block: Whether a block is put together when it computes, and its gradient added up
                in each pass. Else the model is put together once a step and its gradient added up
                once: no memory is saved, and little is sent.
        """
        self._by_block = by_block and can_pack(model)
        self._root = _Scoring(model)
        self._device = model.device
        mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
        # A model that cannot be packed runs its blocks once a trajectory, of which processes have
        # unequal numbers, so it is put together as a whole.
        blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        for module in (*(blocks if self._by_block else ()), self._root):
            fully_shard(module, mesh=mesh)
            assert isinstance(module, FSDPModule)  # it changes the class in place
            module.set_gradient_divide_factor(1.0)
            # Gloo neither averages nor multiplies by a factor while it adds up.
            module.set_force_sum_reduction_for_comms(True)
        self._fsdp: FSDPModule = module

    def share(
        self,
        batch: Batch,
        trajectories: NDArray[np.int64],
        max_tokens: int,
        *,
        pairs_per_token: int,
    ) -> Share:
        """Returns this process's micro-batches, and idle passes where others have more."""
        shares = balanced_shares(
            batch, trajectories, dist.get_world_size(), pairs_per_token=pairs_per_token
        )
        parts = [
            list(split_by_tokens(batch, share, max_tokens, pairs_per_token=pairs_per_token))
            for share in shares
        ]
        own, most = parts[dist.get_rank()], max(len(part) for part in parts)
        shortest = trajectories[np.argsort(batch.lengths[trajectories], kind="stable")[:1]]
        return Share(
            parts=own,
            idle=[shortest] * (most - len(own)),
            micro_batches=sum(len(part) for part in parts),
        )

    def start_pass(self, *, is_last: bool) -> None:
        """Leaves weights and gradient in one piece until the last pass of a step."""
        if not self._by_block:
            self._fsdp.set_requires_gradient_sync(is_last)
            self._fsdp.set_reshard_after_backward(is_last)

    def logprobs(
        self,
        model: PreTrainedModel,
        pack: Pack,
        config: OptimisationConfig,
        *,
        entropy_has_gradient: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes as `trained_logprobs` with the model that was sharded."""
        if model is not self._root.model:
            raise ValueError("this is not the model that was sharded")
        scored: tuple[torch.Tensor, torch.Tensor] = self._root(pack, config, entropy_has_gradient)
        if not torch.is_grad_enabled():
            self._fsdp.reshard()  # else the backward pass does it
        return scored

    def add_up(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Adds them up over all processes, in one message."""
        flat = np.concatenate([array.ravel() for array in arrays])
        sums = torch.from_numpy(flat).to(self._device)
        dist.all_reduce(sums)
        ends = np.cumsum([array.size for array in arrays])[:-1]
        for array, summed in zip(arrays, np.split(sums.cpu().numpy(), ends), strict=True):
            array[...] = summed.reshape(array.shape)

    def clip_gradient(self, weights: Sequence[torch.nn.Parameter], max_norm: float) -> float:
        """Bounds the norm over all shards."""
        return float(_whole(torch.nn.utils.clip_grad_norm_(weights, max_norm)))

    def has_finite_gradient(self, weights: Sequence[torch.nn.Parameter]) -> bool:
        """Looks at this process's shards, and asks the others of theirs."""
        shards = (_own(weight.grad) for weight in weights if weight.grad is not None)
        broken = np.array([sum(not bool(shard.isfinite().all()) for shard in shards)])
        self.add_up([broken])
        return int(broken[0]) == 0

    def own_state(
        self, state: dict[str, Any], weights: Sequence[torch.nn.Parameter]
    ) -> dict[str, Any]:
        """Cuts what has the shape of its weight as that weight is cut."""
        return {
            **state,
            "state": {
                number: {name: _cut_as(weights[number], value) for name, value in values.items()}
                for number, values in state["state"].items()
            },
        }

    def whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Puts the shards together, in the memory of the first process only."""
        return {
            **state,
            "state": {number: self.gather(values) for number, values in state["state"].items()},
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the model's whole weights; empty on all processes but the first."""
        return self.gather(self._root.model.state_dict())

    def gather(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Returns tensors put together, in memory; nothing on all processes but the first."""
        kept: dict[str, Any] = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor).cpu() if isinstance(tensor, torch.Tensor) else tensor
            if dist.get_rank() == 0:
                kept[name] = whole
        return kept


class _Scoring(torch.nn.Module):
    """Body and head in one forward pass, before and after which FSDP does its work."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pack: Pack, config: OptimisationConfig, entropy_has_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return trained_logprobs(self.model, pack, config, entropy_has_gradient=entropy_has_gradient)


def _cut_as(weight: torch.nn.Parameter, value: Any) -> Any:
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    # Each process has read the same file, so nothing is sent.
    whole = value.to(weight.device)
    return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
