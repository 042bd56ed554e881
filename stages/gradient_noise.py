"""Gradient noise: how much of an update's gradient all groups of the batch agree on.

Nothing of it is trained on; it compares estimators on the same trajectories.
"""

from collections.abc import Iterable

import dataframely as dy
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from schemas.tables import TRAJECTORY_KEY
from schemas.update_tables import GradientNoise
from stages.optimisation.aggregation import token_weights
from stages.optimisation.batches import Batch
from stages.optimisation.objective import Objective
from stages.optimisation.trace import Trace


def measure_noise(
    model: PreTrainedModel, batch: Batch, config: OptimisationConfig
) -> dy.DataFrame[GradientNoise]:
    """Returns what each group of a batch asks of the model's weights; the model stays as it is.

    The gradient is that of the policy loss of the whole batch in one step, without the terms that
    no estimator decides: entropy bonus and divergence from the reference.

    Args:
        model: Policy that the update begins with.
        batch: Trajectories with token-level credit; an empty one has no rows.
        config: Loss and batching.
    """
    if not len(batch):
        return GradientNoise.create_empty()
    model.eval()
    plain = config.model_copy(update={"entropy_bonus": 0.0, "reference_kl": 0.0})
    objective = Objective.of(
        model, batch, plain, reference_logprobs=None, on_part=lambda done, of: None
    )
    groups = _groups(batch)
    weights = token_weights(batch, np.arange(len(batch)), plain) * np.float32(len(groups))
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    before = [torch.zeros_like(weight) for weight in learnt]
    rows = []
    for task_id, trajectories in groups.items():
        model.zero_grad(set_to_none=True)
        objective.accumulate(trajectories, weights, Trace.of(batch))
        gradient = [torch.zeros_like(w) if w.grad is None else w.grad for w in learnt]
        rows.append(
            {
                "task_id": task_id,
                "trajectories": len(trajectories),
                "tokens": len(batch.places(trajectories)),
                "squared_norm": _dot(gradient, gradient),
                "with_earlier": _dot(gradient, before),
            }
        )
        before = [total + part for total, part in zip(before, gradient, strict=True)]
    model.zero_grad(set_to_none=True)
    return GradientNoise.validate(
        pl.DataFrame(rows, schema=GradientNoise.create_empty().schema), cast=True
    )


def summarise_noise(groups: pl.DataFrame, by: Iterable[str]) -> pl.DataFrame:
    """Returns how large the gradient is and how much it varies from group to group.

    With the gradients g_k of K groups, drawn independently around their expectation G,

        signal = sum over k, l != k of g_k g_l / (K (K - 1))     expectation |G|^2
        noise = sum over k of |g_k|^2 / K - signal               expectation trace of the covariance

    and `noise_scale` = noise / signal, the number of groups in whose mean the noise is as large as
    the signal (the simple noise scale of McCandlish et al. 2018, arXiv 1812.06162, in groups).

    Args:
        groups: Rows of `GradientNoise` of one or more batches, and the columns of `by`.
        by: What tells the batches apart.

    Returns:
        One row a batch of two or more groups: the columns of `by`, `groups`, `signal`, `noise`;
        `noise_scale`, null where the signal is not above 0, as noise alone can make it.
    """
    pairs = pl.len() * (pl.len() - 1)
    return (
        groups.group_by(*by, maintain_order=True)
        .agg(
            groups=pl.len(),
            signal=2 * pl.col("with_earlier").sum() / pairs,
            norm=pl.col("squared_norm").mean(),
        )
        .filter(pl.col("groups") > 1)
        .with_columns(noise=pl.col("norm") - pl.col("signal"))
        .with_columns(noise_scale=noise_scale())
        .drop("norm")
    )


def noise_scale() -> pl.Expr:
    """Returns `noise` / `signal`; null where the signal is not above 0."""
    return pl.when(pl.col("signal") > 0).then(pl.col("noise") / pl.col("signal"))


def _groups(batch: Batch) -> dict[str, NDArray[np.int64]]:
    """Returns the trajectories of each group, by its task."""
    numbered = (
        batch.turn_keys.select(TRAJECTORY_KEY).unique(maintain_order=True).with_row_index("number")
    )
    parts = numbered.group_by("task_id", maintain_order=True).agg("number")
    return {
        task_id: np.array(numbers, dtype=np.int64)
        for task_id, numbers in parts.select("task_id", "number").iter_rows()
    }


def _dot(left: Iterable[torch.Tensor], right: Iterable[torch.Tensor]) -> float:
    """Returns the dot product over all weights, in float64: sums of squares are long."""
    return float(
        sum(
            torch.dot(a.flatten().double(), b.flatten().double())
            for a, b in zip(left, right, strict=True)
        )
    )
