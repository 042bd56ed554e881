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
from stages.optimisation.batches import Batch
from stages.optimisation.forward import pairs_per_token, trained_logprobs
from stages.optimisation.losses import clipped_token_loss
from stages.optimisation.packing import make_pack, split_by_tokens


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
    pairs = pairs_per_token(model)
    limit = config.micro_batch_tokens
    for part in split_by_tokens(batch, trajectories, limit, pairs_per_token=pairs):
        pack = make_pack(batch, part, model.device, pairs_per_token=pairs)
        logprobs, entropy = trained_logprobs(model, pack, config)
        parts = clipped_token_loss(logprobs, pack.logprobs, pack.advantages, config)
        loss = parts.loss.sum() / tokens
        loss.backward()
        sums["loss"] += float(loss.detach())
        sums["clip_fraction_low"] += float(parts.clipped_low.sum()) / tokens
        sums["clip_fraction_high"] += float(parts.clipped_high.sum()) / tokens
        sums["kl"] += float(parts.kl.sum()) / tokens
        sums["entropy"] += float(entropy.sum()) / tokens
        ratio_max = max(ratio_max, float(parts.ratio.max()))
    return {**sums, "ratio_max": ratio_max, "tokens": tokens}
