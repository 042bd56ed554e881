"""Optimiser steps against a slow loop over tokens."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from schemas.config import OptimisationConfig
from schemas.errors import TurnledgerError
from schemas.tables import Updates
from stages.optimisation import Batch, make_batch, optimise
from stages.optimisation.update import _accumulate
from storage.checkpoints import load_optimiser_state, load_policy, save_policy
from tests.stages.optimisation.optimisation_batches import (
    advantages_of,
    gradients,
    ragged_batch,
    replaced,
    slow_loss,
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

CONFIG = OptimisationConfig(minibatches=1, learning_rate=1e-3)
LENGTHS = [9, 4, 17, 12, 2, 6]


def gradient_of(
    model: PreTrainedModel, batch: Batch, config: OptimisationConfig = CONFIG
) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    _accumulate(model, batch, np.arange(len(batch)), config)
    return gradients(model)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def step(model: PreTrainedModel, batch: Batch, **options: Any) -> tuple[Any, dict[str, Any]]:
    known: dict[str, Any] = {"config": CONFIG, "optimiser_state": None, "seed": 0}
    return optimise(model, batch, **{**known, **options})


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    budget=st.sampled_from([1, 30, 10_000]),
)
def test_loss_and_gradient_are_those_of_a_loop_over_tokens(
    lengths: list[int], seed: int, temperature: float, budget: int
) -> None:
    model = random_model("llama")
    batch = ragged_batch(lengths, seed=seed, temperature=temperature)
    config = CONFIG.model_copy(update={"micro_batch_tokens": budget})
    measured = _accumulate(model, batch, np.arange(len(batch)), config)
    ours = gradients(model)
    model.zero_grad(set_to_none=True)
    loss = slow_loss(model, batch, config)
    loss.backward()
    assert measured["loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-5)
    assert measured["tokens"] == batch.trained.sum()
    assert float((ours - gradients(model)).norm()) <= 1e-4 * (1 + float(gradients(model).norm()))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", [1, 20, 60])
def test_micro_batches_add_up_to_the_whole(kind: str, budget: int) -> None:
    model = random_model(kind).double()  # so that the order of sums does not show
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    small = CONFIG.model_copy(update={"micro_batch_tokens": budget})
    assert relative(gradient_of(model, batch, small), gradient_of(model, batch)) < 1e-6


def test_a_longer_neighbour_leaves_a_gradient_as_it_is() -> None:
    model = random_model("llama").double()
    alone = with_own_logprobs(model, ragged_batch([9]))
    beside = ragged_batch([9, 40])
    untaught = np.concatenate([alone.trained, np.zeros(40, dtype=np.bool_)])
    both = replaced(
        beside,
        token_ids=np.concatenate([alone.token_ids, beside.token_ids[9:]]),
        trained=untaught,
        logprobs=np.concatenate([alone.logprobs, np.zeros(40, dtype=np.float32)]),
        advantages=np.concatenate([alone.advantages, np.zeros(40, dtype=np.float32)]),
    )
    assert relative(gradient_of(model, both), gradient_of(model, alone)) < 1e-6


@pytest.mark.parametrize("column", ["logprobs", "advantages"])
def test_numbers_at_prompts_and_observations_change_nothing(column: str) -> None:
    model = random_model("llama")
    batch = ragged_batch(LENGTHS)
    values = getattr(batch, column)
    changed = replaced(batch, **{column: np.where(batch.trained, values, np.float32(-7))})
    assert torch.equal(gradient_of(model, changed), gradient_of(model, batch))


def test_a_turn_without_advantage_carries_no_loss_and_its_neighbour_does() -> None:
    model = random_model("llama")
    first, second = ("a", 0, 0), ("a", 0, 1)
    credit = advantages_of({first: None, second: 1.0})
    shown = executions_of({first: [7, 8]})

    def gradient_with(logprob: float) -> torch.Tensor:
        turns = turns_of({first: ([5, 6], [logprob] * 2), second: ([9], [-3.0])})
        return gradient_of(model, make_batch(prompts_of({"a": [2, 3]}), turns, shown, credit))

    assert torch.equal(gradient_with(-1.0), gradient_with(-9.0))
    assert gradient_with(-1.0).norm() > 0


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
    updates, _ = step(model, batch)
    assert abs(updates["ratio_max"][0] - 1) < 1e-4
    assert updates["kl"][0] < 1e-7
    assert updates["clip_fraction_low"][0] == updates["clip_fraction_high"][0] == 0


def test_a_batch_of_clipped_tokens_has_no_gradient() -> None:
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    away = np.where(batch.advantages > 0, np.float32(-0.5), np.float32(0.5))
    clipped = replaced(batch, logprobs=np.where(batch.trained, batch.logprobs + away, 0))
    assert gradient_of(model, clipped).abs().max() == 0


def test_an_empty_batch_changes_no_bit() -> None:
    model = random_model("llama")
    before = weights(model)
    updates, _ = step(model, make_batch(*no_rows()))
    assert updates.is_empty()
    assert Updates.is_valid(updates)
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
    steps: list[tuple[int, int]] = []
    updates, _ = step(
        random_model("llama"),
        batch,
        config=CONFIG.model_copy(update={"minibatches": 4}),
        on_step=lambda done, of: steps.append((done, of)),
    )
    assert updates["trajectories"].sum() == len(batch)
    assert updates["tokens"].sum() == batch.trained.sum()
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


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
    _, state = step(whole, batches[0])
    save_policy(tmp_path, whole, policy.tokenizer, state)
    step(whole, batches[1], optimiser_state=state)
    resumed, _ = load_policy(tmp_path)
    step(resumed, batches[1], optimiser_state=load_optimiser_state(tmp_path))
    assert torch.equal(weights(resumed), weights(whole))
    forgetful, _ = load_policy(tmp_path)
    step(forgetful, batches[1])
    assert not torch.equal(weights(forgetful), weights(whole))


def test_learning_rate_of_the_configuration_wins_over_the_stored_one() -> None:
    batch = ragged_batch(LENGTHS)
    _, state = step(random_model("llama"), batch)
    config = CONFIG.model_copy(update={"learning_rate": 7e-4})
    _, after = step(random_model("llama"), batch, config=config, optimiser_state=state)
    assert after["param_groups"][0]["lr"] == 7e-4


def test_an_infinite_gradient_is_refused_and_changes_no_bit() -> None:
    model = random_model("llama")
    batch = ragged_batch(LENGTHS)
    broken = replaced(batch, logprobs=np.where(batch.trained, np.float32(-200), 0))
    lost = replaced(broken, advantages=np.where(batch.trained, np.float32(-1), 0))
    before = weights(model)
    with pytest.raises(TurnledgerError, match="step 0: the gradient is not finite"):
        step(model, lost)
    assert torch.equal(weights(model), before)


def test_an_observation_beyond_the_context_does_not_break_the_step() -> None:
    key = ("a", 0, 0)
    batch = make_batch(
        prompts_of({"a": [2, 3]}),
        turns_of({key: ([5], [-3.0])}),
        executions_of({key: [7] * CONTEXT}),
        advantages_of({key: 1.0}),
    )
    updates, _ = step(random_model("gpt2"), batch)
    assert updates["tokens"].to_list() == [1]
