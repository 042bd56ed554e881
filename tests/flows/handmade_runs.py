"""Runs made by hand, a few rows a table, credited by the real stage: no training needed."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from schemas.config import AdvantagesConfig
from stages.advantages import estimate_advantages
from storage import Fingerprint, Slot, Store
from tests.stages.reward_frames import shaped_frame, turns_frame

REWARDS = [[0.0, 0.0, 1.0], [1.0], [0.0, -0.1], [0.0]]
"""Of the one task, `t`; the first two trajectories are right."""


def put(store: Store, run: str, iteration: int, stage: str, **tables: pl.DataFrame) -> None:
    """Stores tables as results of a stage."""
    split = "evaluation" if stage == "evaluation" else "train"
    slot = Slot(run=run, iteration=iteration, split=split, stage=stage)
    made_by = Fingerprint(
        stage=stage, code={}, config={"slot": slot.uri}, inputs={}, seed=None, libraries={}
    )
    store.write(slot, made_by, tables=tables, seconds=0.0, parents=[])


def put_run(
    store: Store,
    run: str,
    *,
    iteration: int = 1,
    rewards: Sequence[Sequence[float]] = REWARDS,
    texts: Mapping[tuple[int, int], str] | None = None,
    **settings: Any,
) -> None:
    """Stores turns, shaped rewards and advantages of an iteration.

    Args:
        store: Where to.
        run: Name of the run.
        iteration: Iteration to make.
        rewards: Reward of each turn, [trajectories][turns].
        texts: Sample and turn to text; the others say their key.
        settings: Of the advantages.
    """
    right = [("t", i) for i, trajectory in enumerate(rewards) if sum(trajectory) > 0]
    shaped = shaped_frame({"t": rewards}, right=right)
    named = {
        (sample, turn): f"text {sample} {turn}"
        for sample, trajectory in enumerate(rewards)
        for turn in range(len(trajectory))
    } | dict(texts or {})
    turns = turns_frame({("t", i): [{}] * len(turns) for i, turns in enumerate(rewards)})
    turns = turns.with_columns(text=pl.Series([*named.values()]))
    put(store, run, iteration, "rollout", turns=turns)
    put(store, run, iteration, "similarity", shaped_rewards=shaped)
    credit = estimate_advantages(shaped, AdvantagesConfig(**settings))
    put(store, run, iteration, "advantages", advantages=credit)
