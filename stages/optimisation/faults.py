"""Guards of an update: which turns are at fault when it must stop."""

from collections.abc import Callable

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.tables import TURN_KEY
from schemas.update_tables import Fault, OptimisationFaults
from stages.optimisation.batches import Batch
from stages.optimisation.trace import Trace


def faults_of_tokens(
    batch: Batch, trace: Trace, places: NDArray[np.int64], max_kl: float, step: int
) -> dy.DataFrame[OptimisationFaults]:
    """Returns the turns of a step that must not be learned from; none if all is well.

    Args:
        batch: Trajectories.
        trace: What was seen of them.
        places: Trained tokens of the step.
        max_kl: Largest mean divergence from the sampling policy, nats a token.
        step: Number of the step.
    """
    broken = faults_of_logprobs(batch, trace.logprob, places, step)
    if len(broken):
        return broken
    seen = pl.DataFrame({"row": batch.turns[places], "kl": trace.kl[places].astype(np.float64)})
    if seen["kl"].mean() <= max_kl:  # type: ignore[operator]
        return OptimisationFaults.create_empty()
    far = seen.group_by("row").agg(value=pl.col("kl").mean()).filter(pl.col("value") > max_kl)
    value = pl.col("value")
    far = far.with_columns(pl.when(value.is_finite()).then(value))
    return _named(batch, far, Fault.DIVERGENCE, step)


def faults_of_logprobs(
    batch: Batch, logprobs: NDArray[np.float32], places: NDArray[np.int64], step: int
) -> dy.DataFrame[OptimisationFaults]:
    """Returns the turns with a log-probability that is no number; none if all is well.

    Args:
        batch: Trajectories.
        logprobs: [tokens] under the policy.
        places: Trained tokens that are looked at.
        step: Number of the step that is not taken.
    """
    broken = np.unique(batch.turns[places[~np.isfinite(logprobs[places])]])
    return _named(batch, pl.DataFrame({"row": broken}), Fault.LOGPROB_NOT_FINITE, step)


def faults_of_gradient(
    batch: Batch, trajectories: NDArray[np.int64], step: int, is_finite: Callable[[int], bool]
) -> dy.DataFrame[OptimisationFaults]:
    """Returns the turns of those trajectories whose gradient is not finite.

    Args:
        batch: Trajectories.
        trajectories: Those of the step.
        step: Number of the step.
        is_finite: Says whether a trajectory alone has a finite gradient.

    Returns:
        Turns of all of them if each alone is finite, and only their sum is not.
    """
    broken = np.array([t for t in trajectories if not is_finite(int(t))], dtype=np.int64)
    at_fault = broken if len(broken) else trajectories
    rows = pl.DataFrame({"row": np.unique(batch.turns[batch.places(at_fault)])})
    return _named(batch, rows, Fault.GRADIENT_NOT_FINITE, step)


def _named(
    batch: Batch, rows: pl.DataFrame, reason: Fault, step: int
) -> dy.DataFrame[OptimisationFaults]:
    keys = batch.turn_keys.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    if "value" not in rows.columns:
        rows = rows.with_columns(value=pl.lit(None, pl.Float64))
    frame = keys.join(rows, on="row").select(
        *TURN_KEY,
        step=pl.lit(step, pl.Int32),
        reason=pl.lit(reason.value).cast(OptimisationFaults.create_empty().schema["reason"]),
        value="value",
    )
    return OptimisationFaults.validate(frame.sort(TURN_KEY))
