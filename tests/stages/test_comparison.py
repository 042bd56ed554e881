"""Comparison of two results: what counts as a change, the figures by an oracle, and its laws."""

from collections.abc import Mapping, Sequence
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from schemas.config import AdvantagesConfig
from schemas.tables import TURN_KEY
from stages.advantages import estimate_advantages
from stages.comparison import (
    Side,
    compare,
    compared_columns,
    count_changed_columns,
    largest_changes,
    summarise_changes,
    trajectory_outcomes,
)
from tests.stages.reward_frames import LAW, shaped_frame

Trajectory = tuple[str, Sequence[float | None]]
"""Outcome and the value of each turn."""
Result = Mapping[tuple[str, int], Trajectory]
"""Trajectories by task and sample."""

OUTCOMES = {"right": 1.0, "wrong": 0.0, "excluded": None}
SCHEMA = {
    "iteration": pl.Int32,
    "task_id": pl.String,
    "sample_index": pl.Int32,
    "turn_index": pl.Int32,
    "value": pl.Float64,
    "outcome": pl.Float64,
}


def frame_of(result: Result) -> pl.DataFrame:
    rows = [
        (1, task, sample, index, value, OUTCOMES.get(outcome))
        for (task, sample), (outcome, values) in result.items()
        for index, value in enumerate(values)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def side_of(frame: pl.DataFrame) -> Side:
    rows = frame.lazy()
    return Side(rows=rows.drop("outcome"), trajectories=trajectory_outcomes(rows))


def rows_of(a: Result, b: Result) -> pl.DataFrame:
    return compare(side_of(frame_of(a)), side_of(frame_of(b)), value="value")


def one_turn(a: float | None, b: float | None) -> dict[str, Any]:
    rows = rows_of({("t", 0): ("right", [a])}, {("t", 0): ("right", [b])})
    return rows.row(0, named=True)


def overall(a: Result, b: Result) -> dict[str, Any]:
    return summarise_changes(rows_of(a, b)).row(0, named=True)


VALUE = st.sampled_from([None, -1.5, -0.5, -0.1, 0.0, 0.1, 0.7, 2.0])
RESULTS = st.dictionaries(
    st.tuples(st.sampled_from(["s", "t"]), st.integers(0, 3)),
    st.tuples(st.sampled_from([*OUTCOMES]), st.lists(VALUE, min_size=1, max_size=4)),
    max_size=8,
)

# --- what a change is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "changed", "flipped", "difference"),
    [
        (None, 0.0, True, False, None),
        (0.0, None, True, False, None),
        (None, None, False, False, None),
        (0.5, 0.5, False, False, 0.0),
        (-0.5, 0.5, True, True, 1.0),
        (0.5, -0.25, True, True, -0.75),
        (0.0, 0.5, True, False, 0.5),
        (-0.5, 0.0, True, False, 0.5),
        (0.0, -0.0, False, False, 0.0),
        (1e-200, -1e-200, True, True, -2e-200),
    ],
)
def test_null_is_not_zero_and_zero_has_no_sign(
    a: float | None, b: float | None, changed: bool, flipped: bool, difference: float | None
) -> None:
    row = one_turn(a, b)
    assert (row["changed"], row["flipped"], row["difference"]) == (changed, flipped, difference)


def test_a_last_bit_is_a_change() -> None:
    assert one_turn(0.1 + 0.2, 0.3)["changed"]


def test_a_turn_in_one_result_only_is_changed_and_has_no_other_side() -> None:
    rows = rows_of({("t", 0): ("right", [1.0, 2.0])}, {("t", 0): ("wrong", [1.0])})
    gone = rows.row(1, named=True)
    assert (gone["in_a"], gone["in_b"], gone["changed"]) == (True, False, True)
    assert (gone["a"], gone["b"], gone["changed_columns"]) == (2.0, None, [])
    assert (gone["outcome_a"], gone["outcome_b"]) == ("right", None)
    assert (gone["turns_a"], gone["turns_b"]) == (2, None)


def test_results_keep_their_own_outcomes_and_lengths() -> None:
    row = rows_of({("t", 0): ("right", [1.0, 2.0])}, {("t", 0): ("wrong", [1.0])}).row(
        0, named=True
    )
    assert (row["outcome_a"], row["outcome_b"]) == ("right", "wrong")
    assert (row["turns_a"], row["turns_b"]) == (2, 1)


def test_without_rewards_the_outcome_is_unknown() -> None:
    frame = frame_of({("t", 0): ("right", [1.0])}).drop("outcome").lazy()
    row = compare(Side(rows=frame), Side(rows=frame), value="value").row(0, named=True)
    assert (row["outcome_a"], row["turns_a"]) == ("unknown", None)


def test_left_out_before_grading_is_excluded_and_not_wrong() -> None:
    row = rows_of({("t", 0): ("excluded", [None])}, {("t", 0): ("wrong", [0.0])}).row(0, named=True)
    assert (row["outcome_a"], row["outcome_b"]) == ("excluded", "wrong")


def test_truth_values_compare_as_0_and_1() -> None:
    a = pl.LazyFrame({"task_id": ["t"], "sample_index": [0], "correct": [False]})
    b = a.with_columns(correct=pl.lit(True))
    row = compare(Side(rows=a), Side(rows=b), value="correct").row(0, named=True)
    assert (row["a"], row["b"], row["changed"], row["flipped"]) == (0.0, 1.0, True, False)


CONTENT: list[tuple[str, Any, Any]] = [
    ("text", "", None),
    ("text", "x", "y"),
    ("tokens", [], None),
    ("tokens", [1, 2], [2, 1]),
    ("tokens", [1, 2], [1, 2, 0]),
    ("logprobs", [-0.5], [-0.25]),
    ("status", "ok", "error"),
    ("exit", 0, None),
]


@pytest.mark.parametrize(("column", "a", "b"), CONTENT)
def test_content_that_differs_is_named_by_its_column(column: str, a: Any, b: Any) -> None:
    schema = {
        **{"task_id": pl.String(), "sample_index": pl.Int32(), "turn_index": pl.Int32()},
        **{"text": pl.String(), "tokens": pl.List(pl.Int32()), "logprobs": pl.List(pl.Float32())},
        **{"status": pl.Enum(["ok", "error"]), "exit": pl.Int32()},
    }
    same = {"task_id": "t", "sample_index": 0, "turn_index": 0, "text": "x", "tokens": [1]}
    before, after = (
        Side(rows=pl.LazyFrame([same | {column: value}], schema=schema)) for value in (a, b)
    )
    rows = compare(before, after)
    assert rows["changed_columns"].to_list() == [[column]]
    assert rows["a"].to_list() == [None]
    assert count_changed_columns(rows).rows() == [(column, 1)]
    assert not compare(after, after)["changed"].any()


def test_measurements_and_keys_are_not_compared() -> None:
    class Timed(dy.Schema):
        task_id = dy.String(primary_key=True)
        exit_code = dy.Int32()
        wall_s = dy.Float64(metadata={"doc": "Wall time.", "measured": True})
        status = dy.String(metadata={"doc": "What happened."})

    assert compared_columns(Timed) == ["exit_code", "status"]


def test_largest_changes_come_first_and_those_without_a_difference_last() -> None:
    a: Result = {("t", 0): ("right", [0.0, 0.0, None, 1.0, 0.0])}
    b: Result = {("t", 0): ("right", [0.5, -2.0, 1.0, 1.0, -0.5])}
    largest = largest_changes(rows_of(a, b), 4)
    assert largest["turn_index"].to_list() == [1, 0, 4, 2]


# --- the figures ----------------------------------------------------------------------------


def slope(pairs: Sequence[tuple[Any, float, float]]) -> float | None:
    """Least squares of y on x with an intercept for each cell, by a matrix."""
    if not any(c == d and x != z for c, x, _ in pairs for d, z, _ in pairs):
        return None
    cells = sorted({cell for cell, _, _ in pairs})
    matrix = [[x, *(float(cell == c) for c in cells)] for cell, x, _ in pairs]
    solution = np.linalg.lstsq(np.array(matrix), np.array([y for *_, y in pairs]), rcond=None)[0]
    return float(solution[0])


def oracle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    both = [(r["a"], r["b"]) for r in rows if r["difference"] is not None]
    figures: dict[str, Any] = {
        "turns": len(rows),
        "only_a": sum(not r["in_b"] for r in rows),
        "only_b": sum(not r["in_a"] for r in rows),
        "changed": sum(r["a"] != r["b"] or not (r["in_a"] and r["in_b"]) for r in rows),
        "flips": sum(a * b < 0 for a, b in both),
        "correlation": None,
        "mean_abs_difference": np.mean([abs(b - a) for a, b in both]) if both else None,
        "max_abs_difference": max((abs(b - a) for a, b in both), default=None),
    }
    if all(len({pair[i] for pair in both}) > 1 for i in (0, 1)):
        figures["correlation"] = np.corrcoef(np.array(both).T)[0, 1]
    for s in ("a", "b"):
        there = [r for r in rows if r[s] is not None]
        figures[f"mean_{s}"] = np.mean([r[s] for r in there]) if there else None
        figures[f"turn_count_bias_{s}"] = slope(
            [
                ((r["task_id"], r[f"outcome_{s}"]), r[f"turns_{s}"], r[s])
                for r in there
                if r[f"outcome_{s}"] in ("right", "wrong")
            ]
        )
        figures[f"turn_index_bias_{s}"] = slope(
            [((r["task_id"], r["sample_index"]), r["turn_index"], r[s]) for r in there]
        )
    return figures


@LAW
@given(a=RESULTS, b=RESULTS)
def test_summary_agrees_with_plain_loops(a: Result, b: Result) -> None:
    rows = rows_of(a, b)
    for part in summarise_changes(rows).iter_rows(named=True):
        chosen = [
            row
            for row in rows.iter_rows(named=True)
            if part["turn_index"] in (None, row["turn_index"])
            and part["outcome"] in (None, row["outcome_a"] or row["outcome_b"])
        ]
        for name, value in oracle(chosen).items():
            wanted = None if value is None else pytest.approx(value, abs=1e-9)
            assert part[name] == wanted, (name, part)


def test_summary_has_all_turns_then_turn_indices_then_outcomes() -> None:
    result: Result = {("t", 0): ("right", [1.0, 2.0]), ("t", 1): ("wrong", [0.0])}
    parts = summarise_changes(rows_of(result, result)).select("part", "turn_index", "outcome")
    assert parts.rows() == [
        ("all", None, None),
        ("turn_index", 0, None),
        ("turn_index", 1, None),
        ("outcome", None, "right"),
        ("outcome", None, "wrong"),
    ]


def test_nothing_compared_is_one_row_of_zero_turns() -> None:
    summary = summarise_changes(rows_of({}, {}))
    assert summary.select("part", "turns", "changed", "flips").rows() == [("all", 0, 0, 0)]
    assert summary["correlation"].to_list() == [None]


@LAW
@given(a=RESULTS, b=RESULTS)
def test_no_figure_is_nan_or_infinite(a: Result, b: Result) -> None:
    summary = summarise_changes(rows_of(a, b))
    floats = summary.select(pl.col(pl.Float64))
    assert floats.select(pl.all().is_finite().fill_null(True).all()).row(0) == (True,) * 9


# --- turn-count bias ------------------------------------------------------------------------


def credited(rewards: Sequence[Sequence[float]], **settings: Any) -> pl.DataFrame:
    """Advantages of one group in which those with a positive reward are right."""
    right = [("t", i) for i, trajectory in enumerate(rewards) if sum(trajectory) > 0]
    shaped = shaped_frame({"t": rewards}, right=right)
    credit = estimate_advantages(shaped, AdvantagesConfig(**settings))
    return credit.join(shaped.select(*TURN_KEY, "outcome"), on=TURN_KEY)


def bias_of(credit: pl.DataFrame, column: str = "advantage") -> dict[str, Any]:
    side = Side(
        rows=credit.lazy().select(*TURN_KEY, column),
        trajectories=trajectory_outcomes(credit.lazy().select(*TURN_KEY, "outcome")),
    )
    return summarise_changes(compare(side, side, value=column)).row(0, named=True)


SHORT_AND_LONG = [[1.0], [0.0, 0.0, 1.0], [0.0]]


def test_a_discount_makes_long_right_trajectories_worth_less() -> None:
    credit = credited(SHORT_AND_LONG, gamma=0.9)
    # Returns are 1 for one turn, and 0.81, 0.9, 1 for three: the means differ by -0.29 / 3, over
    # two turns more.
    expected = -0.29 / 3 / 2
    assert bias_of(credit, "return")["turn_count_bias_a"] == pytest.approx(expected)
    scale = credit["scale"][0]
    assert bias_of(credit)["turn_count_bias_a"] == pytest.approx(expected / scale)


def test_a_discount_makes_later_turns_of_right_trajectories_worth_more() -> None:
    returns = bias_of(credited([[0.0, 1.0], [0.0]], gamma=0.9), "return")
    assert returns["turn_index_bias_a"] == pytest.approx(0.1)


@pytest.mark.parametrize("settings", [{"estimator": "grpo"}, {"gamma": 1.0}], ids=str)
def test_grpo_and_no_discount_have_no_bias(settings: dict[str, Any]) -> None:
    bias = bias_of(credited(SHORT_AND_LONG, **settings))
    assert bias["turn_count_bias_a"] == pytest.approx(0.0, abs=1e-12)
    assert bias["turn_index_bias_a"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "result",
    [
        {("t", 0): ("right", [1.0, 1.0]), ("t", 1): ("wrong", [0.0])},
        {("s", 0): ("right", [1.0, 1.0]), ("t", 0): ("right", [0.0])},
        {("t", 0): ("right", [1.0]), ("t", 1): ("right", [0.0])},
        {("t", 0): ("excluded", [1.0, 1.0]), ("t", 1): ("excluded", [0.0])},
        {("t", 0): ("right", [None, None]), ("t", 1): ("right", [0.0])},
    ],
    ids=["other outcome", "other task", "equal length", "not graded", "no value"],
)
def test_lengths_are_compared_at_equal_task_and_outcome_only(result: Result) -> None:
    assert overall(result, result)["turn_count_bias_a"] is None


# --- laws -----------------------------------------------------------------------------------


@LAW
@given(result=RESULTS)
def test_a_result_does_not_differ_from_itself(result: Result) -> None:
    rows = rows_of(result, result)
    assert not rows["changed"].any()
    assert not rows["flipped"].any()
    assert set(rows["difference"].drop_nulls()) <= {0.0}


@LAW
@given(a=RESULTS, b=RESULTS)
def test_exchanged_results_mirror_every_row_and_figure(a: Result, b: Result) -> None:
    forward, back = rows_of(a, b), rows_of(b, a)
    swapped = {
        f"{name}_{letter}": f"{name}_{other}"
        for name in ("in", "outcome", "turns")
        for letter, other in ("ab", "ba")
    }
    mirrored = back.rename({"a": "b", "b": "a"} | swapped).with_columns(
        difference=-pl.col("difference")
    )
    assert_frame_equal(mirrored.select(forward.columns), forward)
    there, again = (summarise_changes(r).row(0, named=True) for r in (forward, back))
    for name, value in there.items():
        letters = {"_a": "_b", "_b": "_a"}
        other = name[:-2] + letters[name[-2:]] if name[-2:] in letters else name
        assert again[other] == (pytest.approx(value) if isinstance(value, float) else value)


@LAW
@given(a=RESULTS, b=RESULTS, seed=st.integers(0, 99))
def test_the_order_of_rows_changes_nothing(a: Result, b: Result, seed: int) -> None:
    moved = [
        side_of(frame_of(result).sample(fraction=1.0, shuffle=True, seed=seed)) for result in (a, b)
    ]
    assert_frame_equal(compare(*moved, value="value"), rows_of(a, b))
