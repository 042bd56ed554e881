"""Guards: an update stops before a step that would do harm, and names the turns at fault."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.optimisation import OptimisationConfig
from schemas.tables import TURN_KEY
from stages.optimisation import Batch, Update, optimise
from tests.stages.optimisation.optimisation_batches import (
    ragged_batch,
    replaced,
    weights,
    with_own_logprobs,
)
from tests.stages.rollout.rollout_policies import random_model

LENGTHS = [9, 4, 17, 12, 2, 6]
FAR = OptimisationConfig(minibatches=1, max_kl=1e30)


def stopped(model: Any, batch: Batch, config: OptimisationConfig) -> Update:
    """Returns an update that was stopped, and has changed no weight since its last step."""
    update = optimise(model, batch, config, optimiser_state=None, seed=0)
    assert update.optimiser_state is None
    assert len(update.faults)
    return update


def changed(batch: Batch, turns: list[int], logprob: float, advantage: float) -> Batch:
    """Returns the batch with some turns sampled at another log-probability."""
    rows = np.isin(batch.turns, turns)
    return replaced(
        batch,
        logprobs=np.where(rows, np.float32(logprob), batch.logprobs),
        advantages=np.where(rows, np.float32(advantage), batch.advantages),
    )


def test_weights_that_are_no_number_stop_it_at_the_tokens_they_reach() -> None:
    model = random_model("llama")
    batch = ragged_batch(LENGTHS)
    broken = int(batch.token_ids[batch.offsets[2]])  # first token of the third trajectory
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = torch.nan
    update = stopped(model, batch, FAR)
    reached = {
        batch.turn_keys.row(int(batch.turns[place]))
        for place in np.flatnonzero(batch.trained)
        for start in [batch.offsets[batch.offsets <= place][-1]]
        if broken in batch.token_ids[start:place]
    }
    assert set(update.faults.select("task_id", "sample_index", "turn_index").rows()) == reached
    assert set(update.faults["reason"]) == {"logprob_not_finite"}
    assert update.faults["value"].null_count() == len(update.faults)
    assert update.updates.is_empty()
    assert update.turn_updates.is_empty()


def test_a_gradient_that_is_no_number_is_traced_to_its_trajectory() -> None:
    model = random_model("llama")
    # The ratio overflows, and with a negative advantage it is not bounded.
    batch = changed(with_own_logprobs(model, ragged_batch(LENGTHS)), [1], -200.0, -1.0)
    before = weights(model)
    update = stopped(model, batch, FAR.model_copy(update={"max_kl": float("inf")}))
    task, sample, _ = batch.turn_keys.row(1)
    of_trajectory = batch.turn_keys.filter(task_id=task, sample_index=sample).rows()
    assert update.faults.select("task_id", "sample_index", "turn_index").rows() == of_trajectory
    assert set(update.faults["reason"]) == {"gradient_not_finite"}
    assert torch.equal(weights(model), before)


def test_a_policy_too_far_from_the_sampling_one_stops_it_at_the_turns_beyond() -> None:
    model = random_model("llama")
    batch = changed(with_own_logprobs(model, ragged_batch(LENGTHS)), [0, 3], -9.0, 0.1)
    before = weights(model)
    update = stopped(model, batch, OptimisationConfig(minibatches=1))
    assert update.faults.select("task_id", "sample_index", "turn_index").rows() == [
        batch.turn_keys.row(0),
        batch.turn_keys.row(3),
    ]
    assert set(update.faults["reason"]) == {"divergence"}
    assert update.faults["value"].min() > 1
    assert torch.equal(weights(model), before)


def test_steps_before_the_one_that_was_stopped_are_told() -> None:
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    config = OptimisationConfig(minibatches=2, learning_rate=1e6)
    update = stopped(model, batch, config)
    assert update.updates["step"].to_list() == [0]
    assert set(update.turn_updates["step"]) == {0}
    assert set(update.faults["step"]) == {1}


def test_a_last_step_that_breaks_the_policy_is_noticed_where_the_change_is_measured() -> None:
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    config = OptimisationConfig(minibatches=1, learning_rate=1e30)
    update = stopped(model, batch, config)
    assert update.updates["step"].to_list() == [0]
    assert update.turn_updates["logprob_change"].null_count() == len(update.turn_updates) > 0
    assert set(update.faults["step"]) == {1}
    assert set(update.faults["reason"]) == {"logprob_not_finite"}
    assert set(update.faults.select(TURN_KEY).rows()) <= set(batch.turn_keys.rows())


@pytest.mark.parametrize("loss", ["gspo", "cispo", "policy_gradient"])
def test_a_healthy_update_has_no_faults(loss: Any) -> None:
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    config = OptimisationConfig(loss=loss)
    assert optimise(model, batch, config, optimiser_state=None, seed=0).faults.is_empty()
