"""Keys and values of the rows that are being decoded, in buffers that are written in place.

Rows are aligned on the right, so that every row writes its next key into the same column.
"""

from collections.abc import Sequence
from typing import cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """One layer."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        """Takes buffers whose first `filled` columns hold something.

        Args:
            keys: [rows, heads, columns, size].
            values: Likewise.
            filled: Columns in use.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.filled = filled
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the next columns; returns all of them, as transformers asks for."""
        end = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Returns the columns in use."""
        return self.filled


def gather(
    caches: Sequence[DynamicCache], source: torch.Tensor, *, width: int, capacity: int
) -> DynamicCache:
    """Makes one cache of rows of several, aligned on column `width`.

    Args:
        caches: Each with its rows aligned on its own last column in use.
        source: [rows] which rows, numbered through all caches in their order.
        width: Columns in use of the result. Rows lose or gain columns on the left.
        capacity: Columns of the result in all.
    """
    gathered = DynamicCache()
    gathered.layers = []
    for index in range(len(caches[0].layers)):
        both = []
        for name in ("keys", "values"):
            parts = [_used(cache, index, name) for cache in caches]
            aligned = _aligned(parts, width)
            buffer = aligned.new_empty(
                (len(source), *aligned.shape[1:2], capacity, aligned.shape[3])
            )
            buffer[:, :, :width] = aligned[source]
            both.append(buffer)
        gathered.layers.append(PreallocatedLayer(both[0], both[1], width))
    return gathered


def bytes_per_token(cache: DynamicCache) -> int:
    """Returns what one row of one column takes, bytes."""
    layers = [cast(DynamicLayer, layer) for layer in cache.layers]
    buffers = [buffer for layer in layers for buffer in (layer.keys, layer.values)]
    return sum(b.shape[1] * b.shape[3] * b.element_size() for b in buffers if b is not None)


def _used(cache: DynamicCache, index: int, name: str) -> torch.Tensor:
    buffer: torch.Tensor = getattr(cache.layers[index], name)
    return buffer[:, :, : cache.get_seq_length(index)]


def _aligned(parts: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Stacks rows on the right; zeros where there is nothing, as masked garbage could be NaN."""
    if len(parts) == 1 and parts[0].shape[2] == width:
        return parts[0]
    rows = sum(part.shape[0] for part in parts)
    _, heads, _, size = parts[0].shape
    aligned = parts[0].new_zeros((rows, heads, width, size))
    start = 0
    for part in parts:
        columns = min(width, part.shape[2])
        aligned[start : start + part.shape[0], :, width - columns :] = part[
            :, :, part.shape[2] - columns :
        ]
        start += part.shape[0]
    return aligned
