"""Attention inside a pack: each piece sees itself and its prefix, never a neighbour.

It is one of transformers' attention functions, so it serves every model that asks for them by
name. The linear layers see a pack as one long row; only here is it taken apart, piece by piece, so
that neither padding nor a mask over the whole pack exists.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from schemas.errors import TurnledgerError
from stages.optimisation.packing import Layout

NAME = "turnledger_packed"
_UNKNOWN = ("s_aux", "position_bias")
"""Arguments of attention functions that would change the result and are not understood here."""


def can_pack(model: PreTrainedModel) -> bool:
    """Whether tokens of the model meet in attention only, and that by a function it looks up."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        model._supports_attention_backend
        and not model._is_stateful
        and layers <= {"full_attention", "sliding_attention"}
    )


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Lets the model attend by layout; what its configuration says returns at the end."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(  # noqa: PLR0913  # transformers decides what is passed
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attends as transformers asks for it: [1, heads, packed, size] to [1, packed, heads, size].

    Dropout is not applied, for a policy that is trained is the one that sampled.

    Raises:
        TurnledgerError: If the model needs what is not understood here.
    """
    unknown = [name for name in _UNKNOWN if others.get(name) is not None]
    if unknown:
        raise TurnledgerError(
            f"{type(module).__name__} attends with {unknown[0]}, which packed attention cannot"
        )
    keys, values = key.split(packed.lengths, dim=2), value.split(packed.lengths, dim=2)
    seen = [
        (keys[piece], values[piece])
        if prefix is None
        else (
            torch.cat([keys[prefix], keys[piece]], dim=2),
            torch.cat([values[prefix], values[piece]], dim=2),
        )
        for piece, prefix in enumerate(packed.prefixes)
    ]
    if query.is_cuda and query.element_size() == 2 and softcap is None:
        return _by_flash_attention(query, seen, packed, scaling, sliding_window), None
    outputs = [
        _of_piece(*piece, scaling=scaling, window=sliding_window, softcap=softcap).transpose(1, 2)
        for piece in (
            (asking, *there)
            for asking, there in zip(query.split(packed.lengths, dim=2), seen, strict=True)
        )
    ]
    return torch.cat(outputs, dim=1), None


def _of_piece(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attends from the last tokens of one sequence to all of it; [1, heads, tokens, size]."""
    tokens, length = query.shape[2], key.shape[2]
    narrow = window is not None and window < length
    if softcap is None and tokens == length and not narrow:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    visible = torch.ones(tokens, length, dtype=torch.bool, device=query.device)
    visible = visible.tril(length - tokens)
    if window is not None and narrow:
        visible = visible.triu(length - tokens - window + 1)
    if query.shape[1] != key.shape[1]:  # with a mask only the slow kernel knows of groups
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~visible, -torch.inf)
    return scores.float().softmax(-1).to(value.dtype) @ value


def _by_flash_attention(
    query: torch.Tensor,
    seen: list[tuple[torch.Tensor, torch.Tensor]],
    packed: Layout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attends to all pieces in one kernel, which takes the last tokens to be those that ask."""
    from torch.nn.attention.varlen import varlen_attn

    def ends(lengths: list[int]) -> torch.Tensor:
        counts = torch.tensor([0, *lengths], device=query.device)
        return counts.cumsum(0, dtype=torch.int32)

    asking, there = list(packed.lengths), [key.shape[2] for key, _ in seen]
    output = varlen_attn(
        query[0].transpose(0, 1),
        torch.cat([key for key, _ in seen], dim=2)[0].transpose(0, 1),
        torch.cat([value for _, value in seen], dim=2)[0].transpose(0, 1),
        ends(asking),
        ends(there),
        max(asking),
        max(there),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != seen[0][0].shape[1],
    )
    assert isinstance(output, torch.Tensor)  # nothing else was asked for
    return output[None]


AttentionInterface.register(NAME, attend)
