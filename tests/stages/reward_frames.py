"""Typed frames of few rows for the tests of scoring, shaping and credit, and their settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import dataframely as dy
import polars as pl
from hypothesis import settings

from schemas.tables import Executions, Prompts, ShapedRewards, Turns

Turn = Mapping[str, Any]

LAW = settings(deadline=None, max_examples=50)
"""Settings of property tests; without deadline, for a busy machine proves nothing wrong."""


def prompts_frame(answers: Mapping[str, str]) -> dy.DataFrame[Prompts]:
    """Returns one prompt a task, from task to gold answer."""
    rows = [
        {
            "task_id": task,
            "problem": "?",
            "answer": answer,
            "source": "test",
            "level": None,
            "prompt_token_ids": [1],
            "round": 0,
        }
        for task, answer in answers.items()
    ]
    return Prompts.validate(pl.DataFrame(rows), cast=True)


def turns_frame(trajectories: Mapping[tuple[str, int], Sequence[Turn]]) -> dy.DataFrame[Turns]:
    """Returns turns with what is given of code, answer and parse error, the rest filled in."""
    given = dict.fromkeys(("code", "answer", "parse_error"), pl.String())
    rows = [
        {
            "task_id": task,
            "sample_index": sample,
            "turn_index": index,
            **{name: turn.get(name) for name in given},
        }
        for (task, sample), turns in trajectories.items()
        for index, turn in enumerate(turns)
    ]
    keys = {"task_id": pl.String(), "sample_index": pl.Int32(), "turn_index": pl.Int32()}
    frame = pl.DataFrame(rows, schema={**keys, **given}).with_columns(
        text=pl.lit(""),
        token_ids=pl.lit([1], dtype=pl.List(pl.Int32)),
        logprobs=pl.lit([-0.5], dtype=pl.List(pl.Float32)),
        finish_reason=pl.lit("end"),
        reasoning=pl.lit(""),
        temperature=pl.lit(1.0),
        top_p=pl.lit(1.0),
        top_k=pl.lit(0),
        policy_version=pl.lit(0),
        seed=pl.lit(0),
    )
    return Turns.validate(frame, cast=True)


def executions_frame(
    statuses: Mapping[tuple[str, int, int], str] | None = None,
) -> dy.DataFrame[Executions]:
    """Returns one execution a key, from (task, sample, turn) to status."""
    rows = [
        {
            "task_id": task,
            "sample_index": sample,
            "turn_index": turn,
            "status": status,
            "stdout": "",
            "stderr": "",
            "exit_code": 0,
            "wall_s": 0.1,
            "cpu_s": 0.1,
            "observation": "",
            "observation_token_ids": [2],
        }
        for (task, sample, turn), status in (statuses or {}).items()
    ]
    if not rows:
        return Executions.create_empty()
    return Executions.validate(pl.DataFrame(rows), cast=True)


def shaped_frame(
    groups: Mapping[str, Sequence[Sequence[float]]],
    *,
    right: Sequence[tuple[str, int]] = (),
    excluded: Sequence[tuple[str, int]] = (),
) -> dy.DataFrame[ShapedRewards]:
    """Returns shaped rewards from each task's rewards, [trajectories][turns].

    The GRPO reward of a trajectory is its outcome: 1 if it is among `right`, else 0.
    """
    rows = []
    for task, trajectories in groups.items():
        for sample, rewards in enumerate(trajectories):
            out = (task, sample) in excluded
            outcome = None if out else float((task, sample) in right)
            for turn, reward in enumerate(rewards):
                value = None if out else float(reward)
                rows.append(
                    {
                        "task_id": task,
                        "sample_index": sample,
                        "turn_index": turn,
                        "shaping": "excluded" if out else "right" if outcome else "no_peers",
                        "peers": 0,
                        "similarity_mean": None,
                        "similarity_max": None,
                        "accuracy": value,
                        "shaped_accuracy": value,
                        "total": value,
                        "shaped_total": value,
                        "outcome": outcome,
                        "grpo_reward": outcome,
                        "state": turn,
                        "excluded": "infrastructure" if out else None,
                    }
                )
    if not rows:
        return ShapedRewards.create_empty()
    return ShapedRewards.validate(pl.DataFrame(rows, infer_schema_length=None), cast=True)
