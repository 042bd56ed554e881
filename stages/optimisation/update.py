"""The optimiser steps of one iteration."""

import time
from collections.abc import Callable
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.config import OptimisationConfig
from schemas.errors import TurnledgerError
from schemas.tables import Updates
from stages.distribution import entropy_of, log_distribution
from stages.optimisation.batches import Batch, Padded, pad, split_by_tokens
from stages.optimisation.losses import clipped_token_loss


def optimise(
    model: PreTrainedModel,
    batch: Batch,
    config: OptimisationConfig,
    *,
    optimiser_state: dict[str, Any] | None,
    seed: int,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[dy.DataFrame[Updates], dict[str, Any]]:
    """Trains the model in place on one batch, one optimiser step a minibatch.

    Args:
        model: Policy that sampled the batch, or a later one.
        batch: Trajectories with token-level credit; an empty one is a recorded no-op.
        config: Learning rate, clipping and batching.
        optimiser_state: AdamW state after the last iteration; null at the first.
        seed: Seed of the order of trajectories.
        on_step: Told steps done and steps in all.

    Returns:
        One row a step, and the optimiser's state.

    Raises:
        TurnledgerError: If a gradient is not finite; the step is not taken.
    """
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    if optimiser_state is not None:
        optimiser.load_state_dict(optimiser_state)
        for group in optimiser.param_groups:
            group["lr"], group["weight_decay"] = config.learning_rate, config.weight_decay
    order = np.random.default_rng(seed).permutation(len(batch))
    minibatches = [part for part in np.array_split(order, config.minibatches) if len(part)]
    rows = []
    # Not in training mode: dropout would part the ratios from what was sampled.
    model.eval()
    model.zero_grad(set_to_none=True)
    for step, trajectories in enumerate(minibatches):
        started = time.perf_counter()
        measured = _accumulate(model, batch, trajectories, config)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        if not bool(norm.isfinite()):
            raise TurnledgerError(
                f"optimiser step {step}: the gradient is not finite; lower "
                "optimisation.learning_rate"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rows.append(
            {
                "step": step,
                **measured,
                "gradient_norm": float(norm),
                "learning_rate": config.learning_rate,
                "trajectories": len(trajectories),
                "seconds": time.perf_counter() - started,
            }
        )
        on_step(step + 1, len(minibatches))
    frame = pl.DataFrame(rows, schema=Updates.create_empty().schema)
    return Updates.validate(frame), optimiser.state_dict()


def _accumulate(
    model: PreTrainedModel,
    batch: Batch,
    trajectories: NDArray[np.int64],
    config: OptimisationConfig,
) -> dict[str, float | int]:
    """Adds up the gradient of the token-mean loss over micro-batches; returns its figures."""
    tokens = sum(
        int(batch.trained[batch.offsets[t] : batch.offsets[t + 1]].sum()) for t in trajectories
    )
    sums: dict[str, float] = dict.fromkeys(
        ("loss", "clip_fraction_low", "clip_fraction_high", "kl", "entropy"), 0.0
    )
    ratio_max = 0.0
    for part in split_by_tokens(batch, trajectories, config.micro_batch_tokens):
        padded = pad(batch, part, model.device)
        logprobs, entropy = trained_logprobs(model, padded)
        chosen = padded.trained[:, 1:]
        parts = clipped_token_loss(
            logprobs, padded.logprobs[:, 1:][chosen], padded.advantages[:, 1:][chosen], config
        )
        loss = parts.loss.sum() / tokens
        loss.backward()
        sums["loss"] += float(loss.detach())
        sums["clip_fraction_low"] += float(parts.clipped_low.sum()) / tokens
        sums["clip_fraction_high"] += float(parts.clipped_high.sum()) / tokens
        sums["kl"] += float(parts.kl.sum()) / tokens
        sums["entropy"] += float(entropy.sum()) / tokens
        ratio_max = max(ratio_max, float(parts.ratio.max()))
    return {**sums, "ratio_max": ratio_max, "tokens": tokens}


def trained_logprobs(model: PreTrainedModel, padded: Padded) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes log-probabilities and entropies of the trained tokens, [tokens] each.

    Both are of the distribution that was sampled from, cut by top-p and top-k as the weights now
    have it; a token that was sampled stays in it.

    Padding stands on the right, where causal attention never looks, so it needs no mask.
    """
    logits = model(input_ids=padded.token_ids, use_cache=False).logits[:, :-1]
    chosen = padded.trained[:, 1:]
    targets = padded.token_ids[:, 1:][chosen]

    def of_tokens(of_rows: torch.Tensor) -> torch.Tensor:
        return of_rows[:, None].expand(chosen.shape)[chosen]

    distribution = log_distribution(
        logits[chosen],
        temperature=of_tokens(padded.temperatures),
        top_p=of_tokens(padded.top_ps),
        top_k=of_tokens(padded.top_ks),
        kept=targets,
    )
    with torch.no_grad():
        entropy = entropy_of(distribution)
    return distribution.gather(1, targets[:, None])[:, 0], entropy
