"""Loss and gradient of a step against a loop over tokens: every loss, term and aggregation."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from schemas.optimisation import Loss, OptimisationConfig
from stages.optimisation import Batch, make_batch, score_batch
from stages.optimisation.aggregation import token_weights
from stages.optimisation.objective import Objective
from stages.optimisation.trace import Trace, step_row
from tests.stages.optimisation.optimisation_batches import (
    advantages_of,
    gradients,
    ragged_batch,
    replaced,
    with_own_logprobs,
)
from tests.stages.optimisation.slow_objective import slow_loss
from tests.stages.rollout.rollout_policies import (
    executions_of,
    prompts_of,
    random_model,
    turns_of,
)

CONFIG = OptimisationConfig()
LENGTHS = [9, 4, 17, 12, 2, 6]


def computed(
    model: PreTrainedModel,
    batch: Batch,
    config: OptimisationConfig = CONFIG,
    reference: np.ndarray | None = None,
) -> tuple[dict[str, Any], torch.Tensor]:
    """Returns the figures of a step over the whole batch, and its gradient."""
    objective = Objective.of(
        model, batch, config, reference_logprobs=reference, on_part=lambda done, of: None
    )
    everything, trace = np.arange(len(batch)), Trace.of(batch)
    weights = token_weights(batch, everything, config)
    model.zero_grad(set_to_none=True)
    counts = objective.accumulate(everything, weights, trace)
    places = batch.places(everything)
    row = step_row(batch, trace, places, weights, objective.importance, config)
    return {**row, **counts}, gradients(model)


def near_policy(batch: Batch, model: PreTrainedModel, spread: float, seed: int) -> Batch:
    """Returns the batch as if a policy near the model had sampled it."""
    noise = np.random.default_rng(seed).normal(0, spread, len(batch.token_ids))
    own = with_own_logprobs(model, batch)
    return replaced(batch, logprobs=np.where(batch.trained, own.logprobs + noise, 0).astype("f4"))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / (1e-9 + theirs.norm()))


def agrees(model: PreTrainedModel, batch: Batch, config: OptimisationConfig, **more: Any) -> bool:
    """Whether loss and gradient are those of the loop."""
    row, ours = computed(model, batch, config, more.get("reference"))
    model.zero_grad(set_to_none=True)
    loss = slow_loss(model, batch, config, **more)
    loss.backward()
    same_loss = row["loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-5)
    theirs = gradients(model)
    return same_loss and float((ours - theirs).norm()) <= 1e-4 * (1 + float(theirs.norm()))


@settings(deadline=None, max_examples=10)
@pytest.mark.parametrize("loss", get_args(Loss))
@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([1.0, 0.7]),
    budget=st.sampled_from([1, 30, 10_000]),
    aggregation=st.sampled_from(["token_mean", "sequence_mean", "constant_length"]),
    spread=st.sampled_from([0.02, 0.5, 3.0]),
)
def test_loss_and_gradient_are_those_of_a_loop_over_tokens(
    loss: Loss,
    lengths: list[int],
    seed: int,
    temperature: float,
    budget: int,
    aggregation: Any,
    spread: float,
) -> None:
    model = random_model("llama")
    batch = ragged_batch(lengths, seed=seed, temperature=temperature)
    batch = near_policy(batch, model, spread, seed)
    config = OptimisationConfig(
        loss=loss, aggregation=aggregation, micro_batch_tokens=budget, dual_clip=1.5
    )
    assert agrees(model, batch, config)


@pytest.mark.parametrize("estimate", ["k1", "k2", "k3"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_divergence_and_entropy_are_terms_of_the_loss(estimate: Any, aggregation: Any) -> None:
    model = random_model("llama")
    batch = near_policy(ragged_batch(LENGTHS), model, 0.3, seed=1)
    reference = near_policy(batch, model, 0.4, seed=2).logprobs
    config = OptimisationConfig(
        reference_kl=0.3,
        reference_kl_estimate=estimate,
        entropy_bonus=0.2,
        aggregation=aggregation,
        micro_batch_tokens=20,
    )
    assert agrees(model, batch, config, reference=reference)
    row, _ = computed(model, batch, config, reference)
    without, _ = computed(model, batch, OptimisationConfig(aggregation=aggregation))
    assert row["policy_loss"] == pytest.approx(without["loss"])
    assert row["loss"] != pytest.approx(row["policy_loss"], abs=1e-4)


@pytest.mark.parametrize("mismatch", ["truncate", "mask"])
@pytest.mark.parametrize("loss", ["clipped", "gspo_turn", "cispo"])
def test_mismatch_weights_tokens_and_the_ratio_begins_at_one(mismatch: Any, loss: Any) -> None:
    model = random_model("llama")
    batch = near_policy(ragged_batch(LENGTHS), model, 1.0, seed=3)
    config = OptimisationConfig(mismatch=mismatch, mismatch_bound=1.7, loss=loss)
    proximal = score_batch(model, batch, config)
    assert agrees(model, batch, config, proximal=proximal)
    row, _ = computed(model, batch, config)
    assert row["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert 0 < row["mismatch_bounded"] < 1


def test_without_mismatch_its_correction_changes_nothing() -> None:
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    expected = computed(model, batch)[1]
    for form in ("truncate", "mask"):
        row, ours = computed(model, batch, OptimisationConfig(mismatch=form))
        assert relative(ours, expected) < 1e-5
        assert row["mismatch_weight"] == pytest.approx(1, abs=1e-5)
        assert row["mismatch_bounded"] == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", [1, 20, 40])
@pytest.mark.parametrize("loss", ["clipped", "gspo"])
def test_micro_batches_add_up_to_the_whole(kind: str, budget: int, loss: Any) -> None:
    model = random_model(kind).double()  # so that the order of sums does not show
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    whole, small = (
        OptimisationConfig(loss=loss, micro_batch_tokens=tokens) for tokens in (4096, budget)
    )
    row, ours = computed(model, batch, small)
    expected_row, expected = computed(model, batch, whole)
    assert relative(ours, expected) < 1e-6
    assert row["micro_batches"] > expected_row["micro_batches"] == 1


def test_gspo_has_the_gradient_of_the_sequence_where_advantages_are_equal() -> None:
    model = random_model("llama")
    batch = near_policy(ragged_batch(LENGTHS), model, 0.5, seed=4)
    of_trajectory = np.random.default_rng(5).normal(size=len(batch)).repeat(batch.lengths)
    equal = replaced(batch, advantages=np.where(batch.trained, of_trajectory, 0).astype("f4"))
    config = OptimisationConfig(loss="gspo", aggregation="sequence_mean", clip_high=0.1)
    ours = computed(model, equal, config)[1]
    model.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for index in range(len(equal)):
        places = equal.places(np.array([index]))
        ids = torch.from_numpy(equal.token_ids[equal.offsets[index] : equal.offsets[index + 1]])
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        local = torch.from_numpy(places - equal.offsets[index])
        own = logprobs[local - 1, ids[local]]
        s = (own - torch.from_numpy(equal.logprobs[places])).mean().exp()
        advantage = float(equal.advantages[places[0]])
        total = total - torch.minimum(s * advantage, s.clamp(0.8, 1.1) * advantage) / len(equal)
    total.backward()
    assert relative(ours, gradients(model)) < 1e-4


def test_a_longer_neighbour_leaves_a_gradient_as_it_is() -> None:
    model = random_model("llama").double()
    alone = with_own_logprobs(model, ragged_batch([9]))
    beside = ragged_batch([9, 40])
    nothing = np.zeros(40, dtype=np.float32)
    both = replaced(
        beside,
        token_ids=np.concatenate([alone.token_ids, beside.token_ids[9:]]),
        trained=np.concatenate([alone.trained, np.zeros(40, dtype=np.bool_)]),
        turns=np.concatenate([alone.turns, np.full(40, -1)]),
        logprobs=np.concatenate([alone.logprobs, nothing]),
        advantages=np.concatenate([alone.advantages, nothing]),
    )
    assert relative(computed(model, both)[1], computed(model, alone)[1]) < 1e-6


@pytest.mark.parametrize("column", ["logprobs", "advantages"])
def test_numbers_at_prompts_and_observations_change_nothing(column: str) -> None:
    model = random_model("llama")
    batch = ragged_batch(LENGTHS)
    values = getattr(batch, column)
    changed = replaced(batch, **{column: np.where(batch.trained, values, np.float32(-7))})
    assert torch.equal(computed(model, changed)[1], computed(model, batch)[1])


def test_a_turn_without_advantage_carries_no_loss_and_its_neighbour_does() -> None:
    model = random_model("llama")
    first, second = ("a", 0, 0), ("a", 0, 1)
    credit = advantages_of({first: None, second: 1.0})
    shown = executions_of({first: [7, 8]})

    def gradient_with(logprob: float) -> torch.Tensor:
        turns = turns_of({first: ([5, 6], [logprob] * 2), second: ([9], [-3.0])})
        return computed(model, make_batch(prompts_of({"a": [2, 3]}), turns, shown, credit))[1]

    assert torch.equal(gradient_with(-1.0), gradient_with(-9.0))
    assert gradient_with(-1.0).norm() > 0


def test_a_batch_of_clipped_tokens_has_no_gradient() -> None:
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    away = np.where(batch.advantages > 0, np.float32(-0.5), np.float32(0.5))
    clipped = replaced(batch, logprobs=np.where(batch.trained, batch.logprobs + away, 0))
    assert computed(model, clipped)[1].abs().max() == 0


def test_a_reference_that_is_needed_must_be_given() -> None:
    with pytest.raises(ValueError, match="reference"):
        computed(random_model("llama"), ragged_batch([4]), OptimisationConfig(reference_kl=1))
