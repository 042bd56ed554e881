"""What the report says shaping did, against a slow oracle and by hand."""

from itertools import combinations
from statistics import stdev

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.tables import ShapedRewards
from stages.similarity.report import shaping_report, summarise_shaping
from tests.stages.reward_frames import LAW, shaped_frame

HALVES = st.integers(-2, 2).map(lambda half: half / 2)
TURN = st.tuples(HALVES, HALVES, st.none() | st.sampled_from([0.25, 0.5, 1.0]))
GROUP = st.lists(st.lists(TURN, min_size=1, max_size=3), min_size=1, max_size=5)


def shaped_rows(groups: dict[str, list[list[tuple[float, float, float | None]]]]) -> pl.DataFrame:
    """Shaped rewards of turns given as total, shaped total and similarity."""
    frame = shaped_frame({t: [[turn[0] for turn in i] for i in g] for t, g in groups.items()})
    turns = [turn for group in groups.values() for trajectory in group for turn in trajectory]
    given_here = frame.with_columns(
        shaped_total=pl.Series([turn[1] for turn in turns], dtype=pl.Float64),
        similarity_mean=pl.Series([turn[2] for turn in turns], dtype=pl.Float64),
    )
    return ShapedRewards.validate(given_here)


def sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


@LAW
@given(st.lists(GROUP, min_size=1, max_size=3))
def test_report_is_that_of_a_slow_oracle(
    groups: list[list[list[tuple[float, float, float | None]]]],
) -> None:
    named = {f"g{number}": group for number, group in enumerate(groups)}
    report = shaping_report(shaped_rows(named))
    assert report["task_id"].to_list() == [*named]
    for row, group in zip(report.iter_rows(named=True), groups, strict=True):
        known = [[turn[2] for turn in i if turn[2] is not None] for i in group]
        means = [sum(values) / len(values) for values in known if values]
        sums = [(sum(t[0] for t in i), sum(t[1] for t in i)) for i in group]
        signs = [(sign(a[0] - b[0]), sign(a[1] - b[1])) for a, b in combinations(sums, 2)]
        assert row == {
            "task_id": row["task_id"],
            "trajectories": len(group),
            "shaped": len(means),
            "similarity_min": min(means, default=None),
            "similarity_max": max(means, default=None),
            "similarity_std": pytest.approx(stdev(means)) if len(means) > 1 else None,
            "pairs": len(signs),
            "order_changed": sum(before != after for before, after in signs),
            "order_reversed": sum(before * after < 0 for before, after in signs),
        }


def test_rounding_changes_no_order() -> None:
    shaped = shaped_rows({"g": [[(0.3, 0.1 + 0.2, None)], [(0.3, 0.3, None)]]})
    assert shaping_report(shaped)["order_changed"].to_list() == [0]


def test_excluded_trajectories_do_not_count() -> None:
    shaped = shaped_frame({"g": [[1.0], [0.0]]}, right=[("g", 0)], excluded=[("g", 1)])
    row = shaping_report(shaped).row(0, named=True)
    assert (row["trajectories"], row["pairs"]) == (1, 0)


def test_summary_is_of_all_groups() -> None:
    shaped = shaped_rows(
        {
            "a": [[(0.0, 0.2, 0.4)], [(0.0, 0.4, 0.8)], [(1.0, 1.0, None)]],
            "b": [[(1.0, 1.0, None)]],
        }
    )
    row = summarise_shaping(shaping_report(shaped)).row(0, named=True)
    assert row == {
        "groups": 2,
        "groups_shaped": 1,
        "trajectories": 4,
        "shaped": 2,
        "pairs": 3,
        "order_changed": 1,
        "order_reversed": 0,
        "similarity_min": 0.4,
        "similarity_max": 0.8,
        "mean_group_std": pytest.approx(0.4 / 2**0.5),
        "order_changed_share": pytest.approx(1 / 3),
    }


def test_no_rows_make_an_empty_report() -> None:
    report = shaping_report(ShapedRewards.create_empty())
    assert report.is_empty()
    assert summarise_shaping(report)["order_changed_share"].to_list() == [None]
