"""Log-probabilities of trained tokens: a packed forward pass, then the head in chunks.

Logits of a whole batch never exist. The model's body runs over the pack; its hidden states at the
tokens that predict a trained one go to the head a chunk at a time, and the backward pass computes
each chunk anew.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from schemas.errors import TurnledgerError
from schemas.optimisation import OptimisationConfig
from stages.distribution import entropy_of, log_distribution
from stages.optimisation.attention import can_pack, packed_attention
from stages.optimisation.packing import Pack

LOGITS_OF_A_CHUNK = 2**23
"""Most logits that exist at once."""


def pairs_per_token(model: PreTrainedModel) -> int:
    """Returns how many pairs of tokens attend at the cost of one token's matrices; 0 if unknown.

    The matrices of a block have about 12 hidden^2 numbers; a pair costs 2 hidden products.
    """
    return 6 * int(model.config.get_text_config().hidden_size) if can_pack(model) else 0


def trained_logprobs(
    model: PreTrainedModel,
    pack: Pack,
    config: OptimisationConfig,
    *,
    entropy_has_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes log-probabilities and entropies of the trained tokens, [trained] float32 each.

    Both are of the distribution that was sampled from, cut by top-p and top-k as the weights now
    have it; a token that was sampled stays in it.

    Args:
        model: Policy.
        pack: Trajectories.
        config: Numbers to compute with, and whether blocks are computed anew.
        entropy_has_gradient: Whether the loss uses the entropies.

    Raises:
        TurnledgerError: If blocks are to be computed anew and the model has none to tell apart.
    """
    with _numbers(model.device, config.dtype):
        with _recomputed_blocks(model) if config.recompute_activations else nullcontext():
            output, hidden = _run_body(model, pack)
        # As a look-up, for its backward pass adds rows up much faster than that of an index.
        hidden = embedding(pack.predictors, hidden)
        rows = max(1, LOGITS_OF_A_CHUNK // int(model.config.get_text_config().vocab_size))
        columns = (hidden, pack.targets, pack.temperatures, pack.top_ps, pack.top_ks)
        chunks = list(zip(*(column.split(rows) for column in columns), strict=True))
        score = partial(_score, partial(_logits, model, output), entropy_has_gradient)
        if len(chunks) > 1:
            score = partial(checkpoint, score, use_reentrant=False)
        scored = [score(*chunk) for chunk in chunks]
    logprobs, entropies = zip(*scored, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _numbers(device: torch.device, dtype: str) -> torch.autocast | nullcontext[None]:
    """Computes in bfloat16 where that is safe, if asked."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def _run_body(model: PreTrainedModel, pack: Pack) -> tuple[type[ModelOutput], torch.Tensor]:
    """Returns in what form the body answers, and the last hidden states, [packed, hidden]."""
    if can_pack(model):
        with packed_attention(model):
            output = model.base_model(
                input_ids=pack.token_ids[None],
                position_ids=pack.position_ids[None],
                use_cache=False,
                packed=pack.layout,
            )
        return type(output), output.last_hidden_state[0]
    # Its prompts are not shared either: see `pairs_per_token`.
    pieces = pack.token_ids.split(pack.layout.lengths)
    alone = [model.base_model(input_ids=piece[None], use_cache=False) for piece in pieces]
    return type(alone[0]), torch.cat([output.last_hidden_state[0] for output in alone])


@contextmanager
def _recomputed_blocks(model: PreTrainedModel) -> Iterator[None]:
    """Keeps only the inputs of the model's blocks for the backward pass.

    Not transformers' own switch: that one works in training mode only, where dropout would part
    the ratios from what was sampled.
    """
    blocks = [block for block in model.modules() if isinstance(block, GradientCheckpointingLayer)]
    if not blocks:
        raise TurnledgerError(
            f"optimisation.recompute_activations: {type(model).__name__} does not tell its blocks"
        )

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), packed_attention(model) if can_pack(model) else nullcontext()

    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _score(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    entropy_has_gradient: bool,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    temperatures: torch.Tensor,
    top_ps: torch.Tensor,
    top_ks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-probabilities of the targets and entropies, [rows] each."""
    distribution = log_distribution(
        logits_of(hidden),
        temperature=temperatures,
        top_p=top_ps,
        top_k=top_ks,
        kept=targets,
    )
    with nullcontext() if entropy_has_gradient else torch.no_grad():
        entropies = entropy_of(distribution)
    return distribution.gather(1, targets[:, None])[:, 0], entropies


def _logits(
    model: PreTrainedModel, output: type[ModelOutput], hidden: torch.Tensor
) -> torch.Tensor:
    """Returns the logits of hidden states, [rows, vocabulary].

    The model computes them itself, from a body that answers with these states: what it does to
    logits besides its matrix, such as a bias, a scale or a cap, is its own affair.
    """
    body = model.base_model
    body.forward = lambda *_args, **_options: output(last_hidden_state=hidden[None])
    try:
        logits: torch.Tensor = model(
            input_ids=torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device),
            use_cache=False,
        ).logits[0]
    finally:
        del body.forward
    return logits
