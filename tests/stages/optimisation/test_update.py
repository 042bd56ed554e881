"""Optimiser steps of an iteration, and what is recorded of them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from transformers import PreTrainedModel

from schemas.errors import TurnledgerError
from schemas.optimisation import OptimisationConfig
from schemas.tables import TURN_KEY
from schemas.update_tables import Updates
from stages.optimisation import Batch, Update, make_batch, optimise
from storage.checkpoints import load_optimiser_state, load_policy, save_policy
from tests.stages.optimisation.optimisation_batches import (
    advantages_of,
    ragged_batch,
    replaced,
    weights,
    with_own_logprobs,
)
from tests.stages.rollout.rollout_policies import (
    CONTEXT,
    Policy,
    executions_of,
    letters_tokenizer,
    prompts_of,
    random_model,
    recomputed_logprobs,
    requests,
    turns_of,
)

# Random batches are far from what any policy would have sampled.
CONFIG = OptimisationConfig(minibatches=1, learning_rate=1e-3, max_kl=1e30)
LENGTHS = [9, 4, 17, 12, 2, 6]


def step(model: PreTrainedModel, batch: Batch, **options: Any) -> Update:
    known: dict[str, Any] = {"config": CONFIG, "optimiser_state": None, "seed": 0}
    return optimise(model, batch, **{**known, **options})


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2 has dropout
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.9, 0), (1.0, 5)])
def test_ratios_of_fresh_samples_are_one(
    kind: str, temperature: float, top_p: float, top_k: int
) -> None:
    from stages.rollout.transformers_engine import TransformersEngine

    model = random_model(kind)
    asked = requests([[3, 4], [5]] * 4, temperature=temperature, top_p=top_p, top_k=top_k)
    got = TransformersEngine(model, letters_tokenizer(), policy_version=0).generate(asked)
    prompts = {str(row): context for row, context in enumerate(asked.contexts)}
    turns = {
        (str(row), 0, 0): (tokens, logprobs)
        for row, (tokens, logprobs) in enumerate(zip(got.token_ids, got.logprobs, strict=True))
    }
    batch = make_batch(
        prompts_of(prompts),
        turns_of(turns, temperature=temperature, top_p=top_p, top_k=top_k),
        executions_of({}),
        advantages_of(dict.fromkeys(turns, 1.0)),
    )
    updates = step(model, batch).updates
    assert abs(updates["ratio_max"][0] - 1) < 1e-4
    assert updates["kl"][0] < 1e-7
    assert updates["clip_fraction_low"][0] == updates["clip_fraction_high"][0] == 0


def test_an_empty_batch_changes_no_bit() -> None:
    model = random_model("llama")
    before = weights(model)
    update = step(model, make_batch(*no_rows()))
    assert update.updates.is_empty()
    assert update.turn_updates.is_empty()
    assert Updates.is_valid(update.updates)
    assert update.optimiser_state is not None
    assert torch.equal(weights(model), before)


def no_rows() -> tuple[Any, Any, Any, Any]:
    prompts = prompts_of({"a": [2, 3]})
    turns = turns_of({("a", 0, 0): ([5], [-1.0])})
    return prompts, turns, executions_of({}), advantages_of({("a", 0, 0): None})


def test_same_seed_gives_the_same_bits() -> None:
    batch, config = ragged_batch(LENGTHS), CONFIG.model_copy(update={"minibatches": 3})
    models = [random_model("gpt2") for _ in range(2)]
    for model in models:
        step(model, batch, config=config)
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_another_seed_takes_another_order() -> None:
    batch, config = ragged_batch(LENGTHS), CONFIG.model_copy(update={"minibatches": 3})
    models = [random_model("llama") for _ in range(2)]
    for seed, model in enumerate(models):
        step(model, batch, config=config, seed=seed)
    assert not torch.equal(weights(models[0]), weights(models[1]))


def test_a_gradient_left_on_the_model_does_not_count() -> None:
    batch = ragged_batch(LENGTHS)
    clean, stale = random_model("llama"), random_model("llama")
    for parameter in stale.parameters():
        parameter.grad = torch.ones_like(parameter)
    for model in (clean, stale):
        step(model, batch)
    assert torch.equal(weights(clean), weights(stale))


def test_minibatches_train_every_trajectory_once() -> None:
    batch = ragged_batch(LENGTHS)
    told: list[str] = []
    updates = step(
        random_model("llama"),
        batch,
        config=CONFIG.model_copy(update={"minibatches": 4}),
        on_progress=told.append,
    ).updates
    assert updates["trajectories"].sum() == len(batch)
    assert updates["tokens"].sum() == batch.trained.sum()
    assert told[:4] == [f"step {number} of 4" for number in (1, 2, 3, 4)]
    assert told[-1] == "change measured: 6 of 6 trajectories"


@pytest.mark.parametrize(("advantage", "sign"), [(1.0, 1), (-1.0, -1)])
def test_a_turn_moves_with_its_advantage(advantage: float, sign: int) -> None:
    model = random_model("llama")
    prompt, tokens, key = [2, 3], [5, 6, 7], ("a", 0, 0)
    before = recomputed_logprobs(model, prompt, tokens, 1.0)
    turns = turns_of({key: (tokens, before.tolist())})
    batch = make_batch(
        prompts_of({"a": prompt}), turns, executions_of({}), advantages_of({key: advantage})
    )
    step(model, batch)
    after = recomputed_logprobs(model, prompt, tokens, 1.0)
    assert sign * float(after.sum() - before.sum()) > 1e-3


def test_a_stored_optimiser_continues_bit_for_bit(policy: Policy, tmp_path: Path) -> None:
    batches = [ragged_batch(LENGTHS, seed=seed) for seed in range(2)]
    whole = copy.deepcopy(policy.model)
    state = step(whole, batches[0]).optimiser_state
    save_policy(tmp_path, whole, policy.tokenizer, state)
    step(whole, batches[1], optimiser_state=state)
    resumed, _ = load_policy(tmp_path)
    step(resumed, batches[1], optimiser_state=load_optimiser_state(tmp_path))
    assert torch.equal(weights(resumed), weights(whole))
    forgetful, _ = load_policy(tmp_path)
    step(forgetful, batches[1])
    assert not torch.equal(weights(forgetful), weights(whole))


@pytest.mark.parametrize(
    ("setting", "stored"), [("learning_rate", "lr"), ("weight_decay", "weight_decay")]
)
def test_a_setting_of_the_configuration_wins_over_the_stored_one(setting: str, stored: str) -> None:
    batch = ragged_batch(LENGTHS)
    state = step(random_model("llama"), batch).optimiser_state
    config = CONFIG.model_copy(update={setting: 7e-4})
    again = step(random_model("llama"), batch, config=config, optimiser_state=state)
    assert again.optimiser_state is not None
    assert again.optimiser_state["param_groups"][0][stored] == 7e-4


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_gradient_is_shortened_to_its_bound_and_told_as_it_was(share: float) -> None:
    batch = ragged_batch(LENGTHS)
    norm = step(random_model("llama"), batch).updates["gradient_norm"][0]
    config = CONFIG.model_copy(update={"gradient_clip": share * norm})
    update = step(random_model("llama"), batch, config=config)
    assert update.updates["gradient_norm"][0] == pytest.approx(norm)
    assert update.optimiser_state is not None
    moments = [state["exp_avg"].flatten() for state in update.optimiser_state["state"].values()]
    # After one step the first moment is a tenth of the gradient.
    assert 10 * float(torch.cat(moments).norm()) == pytest.approx(min(1.0, share) * norm, rel=1e-4)


def test_an_observation_beyond_the_context_does_not_break_the_step() -> None:
    key = ("a", 0, 0)
    batch = make_batch(
        prompts_of({"a": [2, 3]}),
        turns_of({key: ([5], [-3.0])}),
        executions_of({key: [7] * CONTEXT}),
        advantages_of({key: 1.0}),
    )
    updates = step(random_model("gpt2"), batch).updates
    assert updates["tokens"].to_list() == [1]


def test_the_rate_follows_the_schedule_of_the_run() -> None:
    config = CONFIG.model_copy(update={"minibatches": 2, "schedule": "linear"})
    batch = ragged_batch(LENGTHS)
    updates = step(random_model("llama"), batch, config=config, iteration=3, iterations=4).updates
    assert updates["learning_rate"].to_list() == pytest.approx([5e-4, 3.75e-4])


def test_a_turn_is_told_apart_from_its_neighbours() -> None:
    model, config = random_model("llama"), CONFIG.model_copy(update={"minibatches": 3})
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    update = step(model, batch, config=config)
    turns, updates = update.turn_updates, update.updates
    after = with_own_logprobs(model, batch).logprobs.astype(np.float64)
    by_hand = []
    for number, key in enumerate(batch.turn_keys.rows()):
        places = np.flatnonzero(batch.turns == number)
        change = (after[places] - batch.logprobs[places]).mean()
        by_hand.append((*key, len(places), batch.logprobs[places].mean(), change))
    found = turns.select(*TURN_KEY, "tokens", "logprob", "logprob_change").rows()
    for ours, theirs in zip(found, sorted(by_hand), strict=True):
        assert ours[:4] == theirs[:4]
        assert ours[4:] == pytest.approx(theirs[4:], abs=1e-5)
    # The first step sees what was sampled, later ones what the first has made of it.
    assert turns.filter(pl.col("step") == 0)["log_ratio"].abs().max() < 1e-5
    assert turns.filter(pl.col("step") > 0)["log_ratio"].abs().min() > 1e-5
    # Weighted by their tokens, the turns of a step are the step.
    tokens = pl.col("tokens")
    of_steps = turns.group_by("step").agg(
        tokens.sum().cast(pl.Int64),
        *(
            (pl.col(name) * tokens).sum() / tokens.sum()
            for name in ("kl", "entropy", "clip_fraction_low", "clip_fraction_high")
        ),
        pl.col("ratio_max").max(),
        turns=pl.len().cast(pl.Int32),
    )
    assert_frame_equal(of_steps.sort("step"), updates.select(of_steps.columns), check_exact=False)


def test_without_the_last_pass_the_change_is_not_known() -> None:
    config = CONFIG.model_copy(update={"measure_change": False})
    update = step(random_model("llama"), ragged_batch(LENGTHS), config=config)
    assert update.turn_updates["logprob_change"].null_count() == len(update.turn_updates) > 0


def test_measuring_the_change_changes_no_bit() -> None:
    batch, models = ragged_batch(LENGTHS), [random_model("llama") for _ in range(2)]
    for measured, model in zip((True, False), models, strict=True):
        step(model, batch, config=CONFIG.model_copy(update={"measure_change": measured}))
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize(
    ("kind", "error"),
    [("gpt2", r"it has 28 weights, the policy 21"), ("qwen3", r"it has 28 weights, the policy 25")],
)
def test_an_optimiser_of_another_architecture_is_refused(kind: str, error: str) -> None:
    batch = ragged_batch(LENGTHS)
    state = step(random_model("gpt2"), batch).optimiser_state
    other = "llama" if kind == "gpt2" else kind
    with pytest.raises(TurnledgerError, match=error):
        step(random_model(other), batch, optimiser_state=state)


def test_an_optimiser_of_other_shapes_is_refused_by_the_name_of_the_weight() -> None:
    batch = ragged_batch(LENGTHS)
    state = step(random_model("llama"), batch).optimiser_state
    assert state is not None
    state["state"][1]["exp_avg"] = torch.zeros(3, 5)
    with pytest.raises(TurnledgerError, match=r"q_proj\.weight has the shape \(32, 32\), there"):
        step(random_model("llama"), batch, optimiser_state=state)


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq", "step"])
def test_an_optimiser_with_numbers_that_are_none_is_refused_by_the_name_of_the_weight(
    moment: str,
) -> None:
    batch = ragged_batch(LENGTHS)
    state = step(random_model("llama"), batch).optimiser_state
    assert state is not None
    state["state"][1][moment].fill_(torch.nan)
    with pytest.raises(TurnledgerError, match=rf"broken: {moment} of .*q_proj\.weight has numbers"):
        step(random_model("llama"), batch, optimiser_state=state)


def test_tokens_of_another_vocabulary_are_refused_by_key() -> None:
    batch = ragged_batch(LENGTHS)
    tokens = batch.token_ids.copy()
    tokens[batch.offsets[1]] = 99  # in the prompt of the second trajectory
    with pytest.raises(TurnledgerError, match=r"token 99 of the trajectory of turn \('g0', 1, 0\)"):
        step(random_model("llama"), replaced(batch, token_ids=tokens))


def test_two_threads_give_the_same_bits_twice() -> None:
    batch, models = ragged_batch([60, 44, 63, 50] * 3), [random_model("llama") for _ in range(2)]
    torch.set_num_threads(2)
    for model in models:
        step(model, batch)
    assert torch.equal(weights(models[0]), weights(models[1]))
