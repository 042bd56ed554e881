"""What an update computes on: here alone, or as one of several processes of equal code.

With several, each computes its share of the trajectories; what a step needs to know of all is
added up, so that all decide alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from stages.optimisation.batches import Batch
from stages.optimisation.forward import trained_logprobs
from stages.optimisation.packing import Pack, split_by_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process computes of some trajectories; a pass each, in this order."""

    parts: list[NDArray[np.int64]]
    """Trajectories of each micro-batch."""
    idle: list[NDArray[np.int64]]
    """Trajectories of further passes that count nothing: all processes make equally many."""
    micro_batches: int
    """Those of all processes."""


class Devices(Protocol):
    """Where forward and backward passes are computed, and by how many processes."""

    def share(
        self,
        batch: Batch,
        trajectories: NDArray[np.int64],
        max_tokens: int,
        *,
        pairs_per_token: int,
    ) -> Share:
        """Returns what this process computes; arguments as those of `split_by_tokens`."""

    def start_pass(self, *, is_last: bool) -> None:
        """Tells that a pass with gradient begins, and whether it is the last one of a step."""

    def logprobs(
        self,
        model: PreTrainedModel,
        pack: Pack,
        config: OptimisationConfig,
        *,
        entropy_has_gradient: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes as `trained_logprobs`; the gradient comes to the sum over all processes."""

    def add_up(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Replaces arrays by their sums over all processes."""

    def clip_gradient(self, weights: Sequence[torch.nn.Parameter], max_norm: float) -> float:
        """Bounds the norm of the whole gradient; returns what it was before."""

    def has_finite_gradient(self, weights: Sequence[torch.nn.Parameter]) -> bool:
        """Says whether the gradient is finite on every process."""

    def own_state(
        self, state: dict[str, Any], weights: Sequence[torch.nn.Parameter]
    ) -> dict[str, Any]:
        """Returns this process's part of an optimiser's whole state."""

    def whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Returns the state that one process alone would have, in its memory."""


class OneDevice:
    """This process alone."""

    def share(
        self,
        batch: Batch,
        trajectories: NDArray[np.int64],
        max_tokens: int,
        *,
        pairs_per_token: int,
    ) -> Share:
        """Returns all micro-batches."""
        parts = list(
            split_by_tokens(batch, trajectories, max_tokens, pairs_per_token=pairs_per_token)
        )
        return Share(parts=parts, idle=[], micro_batches=len(parts))

    def start_pass(self, *, is_last: bool) -> None:
        """Does nothing."""

    def logprobs(
        self,
        model: PreTrainedModel,
        pack: Pack,
        config: OptimisationConfig,
        *,
        entropy_has_gradient: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes them."""
        return trained_logprobs(model, pack, config, entropy_has_gradient=entropy_has_gradient)

    def add_up(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Leaves them as they are."""

    def clip_gradient(self, weights: Sequence[torch.nn.Parameter], max_norm: float) -> float:
        """Bounds its norm."""
        return float(torch.nn.utils.clip_grad_norm_(weights, max_norm))

    def has_finite_gradient(self, weights: Sequence[torch.nn.Parameter]) -> bool:
        """Looks at all of it."""
        return all(bool(w.grad.isfinite().all()) for w in weights if w.grad is not None)

    def own_state(
        self, state: dict[str, Any], weights: Sequence[torch.nn.Parameter]
    ) -> dict[str, Any]:
        """Returns it as it is."""
        return state

    def whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Returns it as it is."""
        return state


ONE_DEVICE = OneDevice()
