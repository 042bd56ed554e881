"""Supervised fine-tuning on examples: next-token loss on the policy's own tokens, packed.

    loss = - sum over own tokens of log pi(token | all before) / number of own tokens of the step

Trajectories are laid end to end as the optimiser does it, a prompt that several share once, in
micro-batches by tokens, with logits in chunks. AdamW trains every weight, with betas 0.9 and 0.95
and no weight decay; its rate rises linearly over the warm-up, then falls linearly to a twentieth.
Gradients are clipped at a norm of 1. Dropout is off, as in the update.

It does not make the demonstrations, which have a recipe of their own: `stages.cold_start.training`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dataframely as dy
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import ColdStartExamples, ColdStartUpdates
from schemas.errors import TurnledgerError
from schemas.optimisation import OptimisationConfig
from stages.cold_start.start import ColdStartSettings, Policy, untrained_policy
from stages.cold_start.training import schedule
from stages.dialogue import Dialogue, make_dialogue
from stages.optimisation.batches import Batch
from stages.optimisation.forward import pairs_per_token, trained_logprobs
from stages.optimisation.packing import make_pack, split_by_tokens
from stages.randomness import derive_seed

GRADIENT_CLIP = 1.0

ExamplesFor = Callable[[Dialogue, int], dy.DataFrame[ColdStartExamples]]
"""Returns the examples for a dialogue, within a context of so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imitator:
    """What a cold start on examples yields."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    examples: dy.DataFrame[ColdStartExamples]
    updates: dy.DataFrame[ColdStartUpdates]


def start_by_imitation(
    config: ColdStartSettings,
    numbers: OptimisationConfig,
    *,
    given: Policy | None,
    examples_for: ExamplesFor,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Imitator:
    """Makes the first policy and trains it on examples in place of demonstrations.

    Args:
        config: A whole configuration, or what has its sections.
        numbers: Its `micro_batch_tokens`, `dtype` and `recompute_activations` count.
        given: Model and tokenizer to start from; null makes the embedded tiny policy.
        examples_for: Finds the examples, once the policy's dialogue is known.
        seed: Seed of weights and order.
        on_step: Told each step and its loss.

    Raises:
        schemas.errors.PolicyError: If the dialogue does not suit the tokenizer.
        TurnledgerError: If there is nothing to imitate, or a gradient is not finite.
    """
    model, tokenizer = untrained_policy(config, given=given, seed=seed)
    dialogue = make_dialogue(config.rollout.dialogue, tokenizer)
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2**31 - 1))
    examples = examples_for(dialogue, context)
    updates = imitate(
        model,
        examples,
        config.cold_start,
        numbers,
        seed=derive_seed(seed, "order"),
        on_step=on_step,
    )
    return Imitator(model=model, tokenizer=tokenizer, examples=examples, updates=updates)


def imitate(
    model: PreTrainedModel,
    examples: dy.DataFrame[ColdStartExamples],
    config: ColdStartConfig,
    numbers: OptimisationConfig,
    *,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> dy.DataFrame[ColdStartUpdates]:
    """Trains the model in place.

    Args:
        model: Policy, on its device.
        examples: Those that are left out are not learnt from.
        config: Steps, trajectories of a step, learning rate and warm-up.
        numbers: As in `start_by_imitation`.
        seed: Seed of the order of examples: each is learnt once before any is learnt again.
        on_step: Told each step and its loss.

    Returns:
        One row a step.

    Raises:
        TurnledgerError: If a gradient is not finite; the step is not taken.
    """
    batch = _batch_of(examples)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.95)
    )
    rows = []
    model.eval()
    model.zero_grad(set_to_none=True)
    for step, trajectories in enumerate(_steps(len(batch), config, seed)):
        started = time.perf_counter()
        rate = config.learning_rate * schedule(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = _accumulate(model, batch, trajectories, numbers)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        if not bool(norm.isfinite()):
            raise TurnledgerError(
                f"cold start step {step}: the gradient is not finite; lower "
                "cold_start.learning_rate"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rows.append(
            {
                "step": step,
                "loss": loss,
                "learning_rate": rate,
                "tokens": int(batch.lengths[trajectories].sum()),
                "seconds": time.perf_counter() - started,
            }
        )
        on_step(step, loss)
    return ColdStartUpdates.validate(
        pl.DataFrame(rows, schema=ColdStartUpdates.create_empty().schema)
    )


def _accumulate(
    model: PreTrainedModel,
    batch: Batch,
    trajectories: NDArray[np.int64],
    numbers: OptimisationConfig,
) -> float:
    """Adds up the gradient of the token-mean loss over micro-batches; returns the loss."""
    own = int(batch.trained_lengths[trajectories].sum())
    pairs, total = pairs_per_token(model), 0.0
    limit = numbers.micro_batch_tokens
    for part in split_by_tokens(batch, trajectories, limit, pairs_per_token=pairs):
        pack = make_pack(batch, part, model.device, pairs_per_token=pairs)
        logprobs, _ = trained_logprobs(model, pack, numbers)
        loss = -logprobs.sum() / own
        loss.backward()
        total += float(loss.detach())
    return total


def _steps(count: int, config: ColdStartConfig, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yields the trajectories of each step; the last step of a pass may have fewer."""
    random = np.random.default_rng(seed)
    step = 0
    while step < config.steps:
        order = random.permutation(count)
        for start in range(0, count, config.batch_size)[: config.steps - step]:
            yield order[start : start + config.batch_size]
            step += 1


def _batch_of(examples: dy.DataFrame[ColdStartExamples]) -> Batch:
    """Lays the learnt examples end to end; of the whole distribution, all own tokens alike."""
    learnt = examples.filter(pl.col("left_out").is_null())
    lengths = learnt["token_ids"].list.len().to_numpy().astype(np.int64)
    trained = learnt["carries_loss"].explode(empty_as_null=False).to_numpy()
    return Batch(
        token_ids=learnt["token_ids"].explode(empty_as_null=False).to_numpy().astype(np.int64),
        trained=trained,
        logprobs=np.zeros(len(trained), dtype=np.float32),
        advantages=trained.astype(np.float32),
        turns=np.where(trained, np.arange(len(lengths)).repeat(lengths), -1),
        turn_keys=learnt.select(pl.row_index("turn")),
        temperatures=np.ones(len(lengths), dtype=np.float32),
        top_ps=np.ones(len(lengths), dtype=np.float32),
        top_ks=np.zeros(len(lengths), dtype=np.int64),
        prompt_lengths=learnt["prompt_tokens"].to_numpy().astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
