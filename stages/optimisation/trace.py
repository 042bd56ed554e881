"""What was seen of every trained token while it was learned from, and the rows made of it."""

from dataclasses import dataclass, fields
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from schemas.optimisation import OptimisationConfig
from schemas.tables import TURN_KEY
from schemas.update_tables import TurnUpdates
from stages.optimisation.batches import Batch
from stages.optimisation.devices import Devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """[tokens] of a batch each, as its step saw them; 0 where nothing is trained."""

    loss: NDArray[np.float32]  # all terms
    policy_loss: NDArray[np.float32]
    logprob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    ratio: NDArray[np.float32]
    clipped_low: NDArray[np.float32]  # 1 or 0
    clipped_high: NDArray[np.float32]  # 1 or 0
    kl: NDArray[np.float32]  # from the sampling policy
    reference_kl: NDArray[np.float32]  # from the reference
    step: NDArray[np.int32]  # that was taken; -1 where none was

    @classmethod
    def of(cls, batch: Batch) -> "Trace":
        """Returns one in which nothing is noted yet."""
        names = [field.name for field in fields(cls) if field.name != "step"]
        size = len(batch.token_ids)
        seen: dict[str, Any] = {name: np.zeros(size, dtype=np.float32) for name in names}
        return cls(**seen, step=np.full(size, -1, dtype=np.int32))

    def note(self, places: NDArray[np.int64], **values: torch.Tensor | None) -> None:
        """Notes values of the tokens at some places, each [places]; null for none."""
        for name, value in values.items():
            if value is not None:
                getattr(self, name)[places] = value.detach().float().cpu().numpy()

    def add_up(self, devices: Devices, places: NDArray[np.int64], count: int) -> int:
        """Notes at some places what other processes noted there; returns the sum of a count.

        Each place is noted by one process, before which all have 0 there.
        """
        names = [field.name for field in fields(self) if field.name != "step"]
        seen = np.stack([getattr(self, name)[places] for name in names])
        counts = np.array([count])
        devices.add_up([seen])
        devices.add_up([counts])
        for name, values in zip(names, seen, strict=True):
            getattr(self, name)[places] = values
        return int(counts[0])


def step_row(
    batch: Batch,
    trace: Trace,
    places: NDArray[np.int64],
    weights: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
    config: OptimisationConfig,
) -> dict[str, Any]:
    """Returns what `Updates` says of the tokens of a step.

    Args:
        batch: Trajectories.
        trace: What was seen of them.
        places: Trained tokens of the step.
        weights: [tokens] of the aggregation.
        importance: [tokens] weights against mismatch; null without.
        config: For what is known only where it is switched on.
    """

    def mean(values: NDArray[np.float32]) -> float:
        return float(values[places].mean(dtype=np.float64))

    def aggregated(values: NDArray[np.float32]) -> float:
        return float(np.dot(values[places].astype(np.float64), weights[places]))

    row: dict[str, Any] = {
        "loss": aggregated(trace.loss),
        "policy_loss": aggregated(trace.policy_loss),
        "reference_kl": mean(trace.reference_kl) if config.reference_kl else None,
        "entropy": mean(trace.entropy),
        "kl": mean(trace.kl),
        "ratio_mean": mean(trace.ratio),
        "ratio_max": float(trace.ratio[places].max()),
        "clip_fraction_low": mean(trace.clipped_low),
        "clip_fraction_high": mean(trace.clipped_high),
        "mismatch_weight": None,
        "mismatch_bounded": None,
        "advantage_mean": mean(batch.advantages),
        "advantage_std": float(batch.advantages[places].std(dtype=np.float64)),
        "tokens": len(places),
        "turns": len(np.unique(batch.turns[places])),
    }
    if importance is not None:
        bounded = np.isin(importance[places], [np.float32(0), np.float32(config.mismatch_bound)])
        row["mismatch_weight"] = mean(importance)
        row["mismatch_bounded"] = float(bounded.mean())
    return row


def turn_rows(
    batch: Batch, trace: Trace, after: NDArray[np.float32] | None
) -> dy.DataFrame[TurnUpdates]:
    """Returns what every turn came to that a step learned from.

    Args:
        batch: Trajectories.
        trace: What was seen of them.
        after: [tokens] log-probabilities after the last step; null if they were not measured.
    """
    places = np.flatnonzero(trace.step >= 0)
    noted = ("logprob", "ratio", "clipped_low", "clipped_high", "kl", "entropy")
    seen = pl.DataFrame(
        {
            "row": batch.turns[places].astype(np.int64),
            "step": trace.step[places],
            "sampled": batch.logprobs[places],
            **{name: getattr(trace, name)[places] for name in noted},
        }
    ).with_columns(after=pl.lit(None, pl.Float32) if after is None else pl.Series(after[places]))

    def mean(values: pl.Expr) -> pl.Expr:
        return values.cast(pl.Float64).mean()

    rows = seen.group_by("row").agg(
        pl.col("step").first(),
        tokens=pl.len().cast(pl.Int32),
        logprob=mean(pl.col("sampled")),
        log_ratio=mean(pl.col("logprob").cast(pl.Float64) - pl.col("sampled")),
        ratio_mean=mean(pl.col("ratio")),
        ratio_max=pl.col("ratio").max().cast(pl.Float64),
        clip_fraction_low=mean(pl.col("clipped_low")),
        clip_fraction_high=mean(pl.col("clipped_high")),
        kl=mean(pl.col("kl")),
        entropy=mean(pl.col("entropy")),
        logprob_change=mean(pl.col("after").cast(pl.Float64) - pl.col("sampled")),
    )
    keys = batch.turn_keys.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    frame = keys.join(rows, on="row").sort(TURN_KEY)
    return TurnUpdates.validate(frame.select(TurnUpdates.column_names()))
