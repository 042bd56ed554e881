"""Evaluations of few problems, from the outcomes of their samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from schemas.tables import Evaluations


def evaluations_frame(
    outcomes: Mapping[str, Sequence[bool | None]], **columns: Any
) -> pl.DataFrame:
    """Returns evaluations from each problem's outcomes, one a sample."""
    rows = [
        {
            "benchmark": "toy",
            "task_id": task,
            "sample_index": sample,
            "source": "test",
            "level": None,
            "prediction": None,
            "verdict": None if correct is None else "right" if correct else "wrong",
            "correct": correct,
            "turns": 1,
            "tool_calls": 0,
            "failed_tool_calls": 0,
            "tokens": 1,
            "policy_version": 0,
            **columns,
        }
        for task, samples in outcomes.items()
        for sample, correct in enumerate(samples)
    ]
    return Evaluations.validate(pl.DataFrame(rows, infer_schema_length=None), cast=True)
