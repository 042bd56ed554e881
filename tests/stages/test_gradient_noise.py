"""Gradient noise: dot products of the groups' gradients, against gradients that are kept whole."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from schemas.tables import Advantages, Executions, Prompts, Turns
from stages.gradient_noise import measure_noise, summarise_noise
from stages.optimisation import Batch, make_batch
from stages.optimisation.aggregation import token_weights
from stages.optimisation.objective import Objective
from stages.optimisation.trace import Trace
from tests.stages.optimisation.optimisation_batches import (
    gradients,
    ragged_batch,
    weights,
    with_own_logprobs,
)
from tests.stages.rollout.rollout_policies import random_model

CONFIG = OptimisationConfig()
LENGTHS = [9, 4, 17, 12, 2, 6]


def gradient_of(
    model: PreTrainedModel, batch: Batch, trajectories: list[int], config: OptimisationConfig
) -> torch.Tensor:
    """Returns the gradient of the loss of the whole batch, as far as some trajectories decide."""
    objective = Objective.of(model, batch, config, reference_logprobs=None, on_part=lambda *_: None)
    model.zero_grad(set_to_none=True)
    chosen = np.array(trajectories)
    weighted = token_weights(batch, np.arange(len(batch)), config)
    objective.accumulate(chosen, weighted, Trace.of(batch))
    return gradients(model).double()


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_groups_have_the_gradients_whose_mean_is_that_of_the_batch(aggregation: str) -> None:
    config = OptimisationConfig.model_validate({"aggregation": aggregation})
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    parts = [3 * gradient_of(model, batch, [2 * k, 2 * k + 1], config) for k in range(3)]
    whole = gradient_of(model, batch, list(range(6)), config)
    noise = measure_noise(model, batch, config)
    assert noise["task_id"].to_list() == ["g0", "g1", "g2"]
    assert noise["trajectories"].to_list() == [2, 2, 2]
    assert noise["tokens"].sum() == batch.trained.sum()
    assert noise["squared_norm"].to_list() == pytest.approx([float(p @ p) for p in parts], rel=1e-4)
    of_mean = (noise["squared_norm"].sum() + 2 * noise["with_earlier"].sum()) / 9
    assert of_mean == pytest.approx(float(whole @ whole), rel=1e-4)


def test_terms_that_no_estimator_decides_are_left_out() -> None:
    model = random_model("llama")
    batch = with_own_logprobs(model, ragged_batch(LENGTHS))
    more = OptimisationConfig(entropy_bonus=0.5, reference_kl=0.5)
    assert measure_noise(model, batch, more).equals(measure_noise(model, batch, CONFIG))


def test_measuring_leaves_the_model_as_it_is() -> None:
    model = random_model("gpt2").train()
    before = weights(model).clone()
    measure_noise(model, ragged_batch(LENGTHS), CONFIG)
    assert torch.equal(weights(model), before)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_batch_without_trajectories_has_no_rows() -> None:
    empty = make_batch(
        Prompts.create_empty(),
        Turns.create_empty(),
        Executions.create_empty(),
        Advantages.create_empty(),
    )
    assert measure_noise(random_model("llama"), empty, CONFIG).is_empty()


def rows_of(vectors: np.ndarray) -> pl.DataFrame:
    before = np.cumsum(vectors, axis=0) - vectors
    return pl.DataFrame(
        {
            "iteration": 1,
            "squared_norm": (vectors**2).sum(axis=1),
            "with_earlier": (vectors * before).sum(axis=1),
        }
    )


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_signal_is_the_mean_product_of_different_groups(groups: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(0.3, 1, size=(groups, 5))
    found = summarise_noise(rows_of(vectors), ["iteration"]).row(0, named=True)
    signal = np.mean([a @ b for a, b in combinations(vectors, 2)])
    assert found["signal"] == pytest.approx(signal)
    assert found["noise"] == pytest.approx(np.trace(np.cov(vectors.T)))
    expected = found["noise"] / signal if signal > 0 else None
    assert found["noise_scale"] == (None if expected is None else pytest.approx(expected))


def test_equal_gradients_have_no_noise() -> None:
    found = summarise_noise(rows_of(np.ones((4, 3))), ["iteration"])
    assert found.rows() == [(1, 4, 3.0, 0.0, 0.0)]


def test_one_group_says_nothing_of_noise() -> None:
    assert summarise_noise(rows_of(np.ones((1, 3))), ["iteration"]).is_empty()
