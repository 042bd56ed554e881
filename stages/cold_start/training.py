"""Supervised cold start: next-token loss on the turns of demonstrations.

Muon trains the matrices of the blocks and AdamW the rest: on the tiny policy Muon reaches in a
minute what AdamW alone does not reach in five. Loss falls only on the policy's own tokens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import dataframely as dy
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import ColdStartUpdates, Demonstrations
from schemas.errors import TurnledgerError
from stages.dialogue import Dialogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Tokenised transcripts, ragged."""

    token_ids: list[NDArray[np.int64]]
    """[tokens] int64 each."""
    carries_loss: list[NDArray[np.bool_]]
    """[tokens] bool each: whether the policy is to produce the token."""


def tokenise(demonstrations: dy.DataFrame[Demonstrations], dialogue: Dialogue) -> Sequences:
    """Encodes transcripts part by part, exactly as rollouts will build them."""
    parts = (
        demonstrations.select("demonstration_id", "segments").explode("segments").unnest("segments")
    )
    encoders = {
        "problem": dialogue.encode_prompts,
        "turn": dialogue.encode_turns,
        "observation": dialogue.encode_observations,
    }
    encoded = pl.concat(
        part.with_columns(
            token_ids=pl.Series(encoders[str(role)](part["text"].to_list()), dtype=_IDS),
            position=pl.col("position"),
        )
        for (role,), part in parts.with_row_index("position").group_by("role")
    ).sort("position")
    tokens = encoded.select("demonstration_id", "token_ids", turn=pl.col("role") == "turn").explode(
        "token_ids"
    )
    joined = tokens.group_by("demonstration_id", maintain_order=True).agg("token_ids", "turn")
    return Sequences(
        token_ids=[row.to_numpy() for row in joined["token_ids"]],
        carries_loss=[row.to_numpy() for row in joined["turn"]],
    )


_IDS = pl.List(pl.Int64)


def train_on_demonstrations(
    model: PreTrainedModel,
    sequences: Sequences,
    config: ColdStartConfig,
    *,
    pad_id: int,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> dy.DataFrame[ColdStartUpdates]:
    """Trains the model in place.

    Args:
        model: Policy, on its device.
        sequences: Transcripts to imitate.
        config: Steps, batch size and learning rates.
        pad_id: Token that fills short rows.
        seed: Seed of the order of batches.
        on_step: Told each step and its loss.

    Returns:
        One row a step.

    Raises:
        TurnledgerError: If a gradient is not finite; the step is not taken.
    """
    optimisers = _make_optimisers(model, config)
    batches = _batches(sequences, config, seed)
    rows = []
    model.train()
    for step, indices in enumerate(batches):
        started = time.perf_counter()
        factor = schedule(step, config)
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
        ids, labels, tokens = _padded(sequences, indices, pad_id, model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not bool(norm.isfinite()):
            raise TurnledgerError(
                f"cold start step {step}: the gradient is not finite; lower "
                "cold_start.muon_learning_rate and cold_start.adamw_learning_rate"
            )
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        rows.append(
            {
                "step": step,
                "loss": value,
                "learning_rate": config.adamw_learning_rate * factor,
                "tokens": tokens,
                "seconds": time.perf_counter() - started,
            }
        )
        on_step(step, value)
    model.eval()
    empty = ColdStartUpdates.create_empty()
    return ColdStartUpdates.validate(pl.DataFrame(rows, schema=empty.schema))


def _make_optimisers(
    model: PreTrainedModel, config: ColdStartConfig
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases."""
    embeddings = {
        id(p)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
        for p in layer.parameters()
    }
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        (
            torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=0.0),
            config.muon_learning_rate,
        ),
        (
            torch.optim.AdamW(
                rest, lr=config.adamw_learning_rate, weight_decay=0.0, betas=(0.9, 0.95)
            ),
            config.adamw_learning_rate,
        ),
    ]


def schedule(step: int, config: ColdStartConfig) -> float:
    """Linear warm-up, then linear decay to a twentieth of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = (config.steps - step) / max(1, config.steps - config.warmup_steps)
    return max(0.05, left)


def _batches(sequences: Sequences, config: ColdStartConfig, seed: int) -> list[NDArray[np.int64]]:
    """Draws batches of similar lengths, so that little is padding, in random order."""
    random = np.random.default_rng(seed)
    lengths = np.array([len(ids) for ids in sequences.token_ids])
    batches: list[NDArray[np.int64]] = []
    window = 32 * config.batch_size
    while len(batches) < config.steps:
        order = random.permutation(len(lengths))
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(lengths[part], kind="stable")]
            cuts = range(0, len(part), config.batch_size)
            found = [part[cut : cut + config.batch_size] for cut in cuts]
            batches += [found[i] for i in random.permutation(len(found))]
    return batches[: config.steps]


def _padded(
    sequences: Sequences, indices: NDArray[np.int64], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Returns token ids and labels, [rows, longest] each, and the number of real tokens.

    Padding stands on the right, where causal attention never looks, so it needs no mask.
    """
    longest = max(len(sequences.token_ids[i]) for i in indices)
    ids = np.full((len(indices), longest), pad_id, dtype=np.int64)
    labels = np.full((len(indices), longest), -100, dtype=np.int64)
    for row, index in enumerate(indices):
        tokens = sequences.token_ids[index]
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = np.where(sequences.carries_loss[index], tokens, -100)
    real = sum(len(sequences.token_ids[i]) for i in indices)
    return torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device), real
