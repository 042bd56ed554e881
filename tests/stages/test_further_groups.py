"""How many further groups are asked, by the outcomes so far."""

import dataframely as dy
import polars as pl
import pytest

from schemas.config import TurnRewardsConfig
from schemas.tables import Executions, TurnRewards
from stages.further_groups import further_groups
from stages.turn_rewards import score_turns
from tests.stages.reward_frames import prompts_frame, turns_frame


def outcomes(*groups: str) -> dy.DataFrame[TurnRewards]:
    """Scores groups of trajectories: `r` is a right one, `w` a wrong one."""
    answers = {"r": "1", "w": "2"}
    turns = turns_frame(
        {
            (f"task{number}", sample): [{"answer": answers[outcome]}]
            for number, group in enumerate(groups)
            for sample, outcome in enumerate(group)
        }
    )
    asked = prompts_frame({f"task{number}": "1" for number in range(len(groups))})
    return score_turns(asked, turns, Executions.create_empty(), TurnRewardsConfig())


@pytest.mark.parametrize(
    ("groups", "wanted", "further"),
    [
        (["rw", "wr"], 2, 0),
        (["rw", "wr", "rrw"], 2, 0),
        (["rw", "ww"], 2, 2),  # one is missing, and every other one varies
        (["rw", "ww", "rr", "wr"], 3, 2),
        (["ww", "rr", "ww"], 3, 3),  # none varies: as many again
        (["rw", *["ww"] * 9], 4, 4),  # 30 would be needed; never more than a batch
    ],
)
def test_so_many_further_groups_are_asked_as_are_missing(
    groups: list[str], wanted: int, further: int
) -> None:
    assert further_groups(outcomes(*groups), wanted=wanted) == further


def test_a_trajectory_without_outcome_makes_no_group_vary() -> None:
    scored = outcomes("rw", "rw")
    first_wrong = (pl.col("task_id") == "task0") & (pl.col("sample_index") == 1)
    lost = scored.with_columns(outcome=pl.when(~first_wrong).then("outcome"))
    assert further_groups(TurnRewards.cast(lost), wanted=2) == 2
