"""The optimiser steps of one iteration."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.errors import TurnledgerError
from schemas.optimisation import OptimisationConfig
from schemas.update_tables import OptimisationFaults, TurnUpdates, Updates
from stages.optimisation.aggregation import token_weights
from stages.optimisation.batches import Batch
from stages.optimisation.devices import ONE_DEVICE, Devices
from stages.optimisation.faults import (
    faults_of_gradient,
    faults_of_logprobs,
    faults_of_tokens,
)
from stages.optimisation.objective import Objective
from stages.optimisation.schedule import learning_rate
from stages.optimisation.scoring import score_batch
from stages.optimisation.trace import Trace, step_row, turn_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an iteration's steps came to."""

    updates: dy.DataFrame[Updates]  # one row a step that was taken
    turn_updates: dy.DataFrame[TurnUpdates]
    faults: dy.DataFrame[OptimisationFaults]  # why it was stopped; else no rows
    optimiser_state: dict[str, Any] | None  # null if it was stopped


def optimise(  # noqa: PLR0913  # what an update depends on
    model: PreTrainedModel,
    batch: Batch,
    config: OptimisationConfig,
    *,
    optimiser_state: dict[str, Any] | None,
    seed: int,
    iteration: int = 1,
    iterations: int = 1,
    reference_logprobs: NDArray[np.float32] | None = None,
    devices: Devices = ONE_DEVICE,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Update:
    """Trains the model in place on one batch, one optimiser step a minibatch.

    A guard stops it before a step whose log-probabilities or gradient are not finite, or which
    has moved further from the sampling policy than `max_kl`; the turns at fault are named then. So
    it does after the last step, where `measure_change` looks what became of the log-probabilities.

    Args:
        model: Policy that sampled the batch, or a later one.
        batch: Trajectories with token-level credit; an empty one is a recorded no-op.
        config: Loss, learning rate and batching.
        optimiser_state: AdamW state after the last iteration; null at the first.
        seed: Seed of the order of trajectories.
        iteration: Number of the iteration, from 1, for the schedule of the learning rate.
        iterations: Iterations of the run.
        reference_logprobs: [tokens] under the reference; needed where `reference_kl` is not 0.
        devices: What computes it; on several processes, all of them call this.
        on_progress: Told in a few words how far it is.

    Raises:
        TurnledgerError: If the optimiser's state or the token ids are not of this model, or that
            state is broken.
    """

    def scored(what: str, done: int, of: int) -> None:
        on_progress(f"{what}: {done} of {of} trajectories")

    _refuse_unknown_tokens(model, batch)
    optimiser = _optimiser(model, optimiser_state, config, devices)
    # Not in training mode: dropout would part the ratios from what was sampled.
    model.eval()
    model.zero_grad(set_to_none=True)
    objective = Objective.of(
        model,
        batch,
        config,
        devices,
        reference_logprobs=reference_logprobs,
        on_part=partial(scored, "scored as the update begins"),
    )
    trace = Trace.of(batch)
    rows: list[dict[str, Any]] = []
    faults = OptimisationFaults.create_empty()
    order = np.random.default_rng(seed).permutation(len(batch))
    minibatches = [part for part in np.array_split(order, config.minibatches) if len(part)]
    for step, trajectories in enumerate(minibatches):
        rate = learning_rate(config, iteration - 1 + step / len(minibatches), iterations)
        for group in optimiser.param_groups:
            group["lr"] = rate
        row, faults = _step(objective, optimiser, trajectories, trace, step)
        if len(faults):
            break
        rows.append({"step": step, "learning_rate": rate, **row})
        on_progress(f"step {step + 1} of {len(minibatches)}")
    after = None
    if config.measure_change and len(batch) and faults.is_empty():
        after = score_batch(
            model, batch, config, devices, on_part=partial(scored, "change measured")
        )
        faults = faults_of_logprobs(batch, after, batch.places(order), len(minibatches))
    return Update(
        updates=Updates.validate(pl.DataFrame(rows, schema=Updates.create_empty().schema)),
        turn_updates=turn_rows(batch, trace, after if faults.is_empty() else None),
        faults=faults,
        optimiser_state=devices.whole_state(optimiser.state_dict()) if faults.is_empty() else None,
    )


def _step(
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    trajectories: NDArray[np.int64],
    trace: Trace,
    step: int,
) -> tuple[dict[str, Any], dy.DataFrame[OptimisationFaults]]:
    """Takes a step unless a guard stops it; returns the row of it, or the turns at fault."""
    began = time.perf_counter()
    model, batch, config = objective.model, objective.batch, objective.config
    weights = token_weights(batch, trajectories, config)
    counts = objective.accumulate(trajectories, weights, trace)
    places = batch.places(trajectories)
    norm = objective.devices.clip_gradient(list(model.parameters()), config.gradient_clip)
    faults = faults_of_tokens(batch, trace, places, config.max_kl, step)
    if faults.is_empty() and not math.isfinite(norm):
        is_finite = partial(objective.has_finite_gradient, weights=weights)
        faults = faults_of_gradient(batch, trajectories, step, is_finite)
    if len(faults):
        model.zero_grad(set_to_none=True)
        return {}, faults
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    trace.step[places] = step
    row = {
        **step_row(batch, trace, places, weights, objective.importance, config),
        **counts,
        "gradient_norm": norm,
        "trajectories": len(trajectories),
        "seconds": time.perf_counter() - began,
    }
    return row, faults


def _optimiser(
    model: PreTrainedModel,
    state: dict[str, Any] | None,
    config: OptimisationConfig,
    devices: Devices,
) -> torch.optim.Optimizer:
    named = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
    weights = [weight for _, weight in named]
    optimiser = torch.optim.AdamW(
        weights, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    if state is None:
        return optimiser
    known = state["state"]
    if len(state["param_groups"][0]["params"]) != len(named):
        raise TurnledgerError(
            "the stored optimiser is not of this policy: it has "
            f"{len(state['param_groups'][0]['params'])} weights, the policy {len(named)}"
        )
    for number, (name, weight) in enumerate(named):
        moment = known[number]["exp_avg"] if number in known else weight
        if moment.shape != weight.shape:
            raise TurnledgerError(
                f"the stored optimiser is not of this policy: {name} has the shape "
                f"{tuple(weight.shape)}, there {tuple(moment.shape)}"
            )
        for moment, values in known.get(number, {}).items():
            if not bool(torch.as_tensor(values).isfinite().all()):
                raise TurnledgerError(
                    f"the stored optimiser is broken: {moment} of {name} has numbers that are none"
                )
    optimiser.load_state_dict(devices.own_state(state, weights))
    for group in optimiser.param_groups:
        group["weight_decay"] = config.weight_decay
    return optimiser


def _refuse_unknown_tokens(model: PreTrainedModel, batch: Batch) -> None:
    vocabulary = int(model.config.get_text_config().vocab_size)
    unknown = np.flatnonzero(batch.token_ids >= vocabulary)
    if len(unknown):
        turns = batch.turns[unknown[0] :]
        key = batch.turn_keys.row(int(turns[turns >= 0][0]))
        raise TurnledgerError(
            f"token {batch.token_ids[unknown[0]]} of the trajectory of turn {key} is beyond the "
            f"policy's vocabulary of {vocabulary}: it was sampled by a policy of another kind"
        )
