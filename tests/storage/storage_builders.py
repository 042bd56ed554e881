"""Small valid values, for tests and for the processes that tests start."""

from typing import Any

import polars as pl

from schemas.tables import TABLES
from storage import Fingerprint, Slot


def slot(stage: str = "optimisation", **parts: Any) -> Slot:
    return Slot(**{"run": "demo", "iteration": 3, "split": "train", "stage": stage, **parts})


def fingerprint(**parts: Any) -> Fingerprint:
    known: dict[str, Any] = {
        "stage": "optimisation",
        "code": {"stages.optimisation": "c0"},
        "config": {"gamma": 0.9},
        "inputs": {"advantages": "d0"},
        "seed": 0,
        "libraries": {"torch": "2.13"},
    }
    return Fingerprint(**{**known, **parts})


def updates(rows: int = 2, loss: float = 0.5) -> pl.DataFrame:
    schema = pl.Schema(TABLES["updates"].schema)
    row = {name: 1 for name in schema} | {"loss": loss}
    return pl.DataFrame([{**row, "step": step} for step in range(rows)], schema=schema)


def turns(*keys: tuple[str, int, int]) -> pl.DataFrame:
    rows = [
        {
            "task_id": task_id,
            "sample_index": sample,
            "turn_index": turn,
            "text": "<answer>7</answer>",
            "token_ids": [5, 6],
            "logprobs": [-0.5, -0.25],
            "finish_reason": "answer",
            "reasoning": "",
            "code": None,
            "answer": "7",
            "parse_error": None,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "policy_version": 0,
            "seed": 1,
        }
        for task_id, sample, turn in keys
    ]
    schema = TABLES["turns"].schema
    return schema.cast(pl.DataFrame(rows, infer_schema_length=None))
