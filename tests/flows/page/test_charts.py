"""Where points, bands and labels of a chart stand."""

import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.page.charts import Series, line_chart, series_of

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False, width=32)
POINTS = st.lists(NUMBERS, min_size=1, max_size=20).map(lambda ys: list(enumerate(ys)))


@given(POINTS)
def test_every_point_is_inside_the_axes(points: list[tuple[int, float]]) -> None:
    chart = line_chart("y", [Series(name="a", points=points)])
    assert chart is not None
    for mark in chart.lines[0].marks:
        assert chart.left <= mark.x <= chart.right
        assert chart.top - 0.1 <= mark.y <= chart.bottom + 0.1


@given(POINTS)
def test_a_larger_value_is_never_lower(points: list[tuple[int, float]]) -> None:
    chart = line_chart("y", [Series(name="a", points=points)])
    assert chart is not None
    heights = [(y, -mark.y) for (_, y), mark in zip(points, chart.lines[0].marks, strict=True)]
    assert [h for _, h in sorted(heights)] == sorted(h for _, h in heights)


@given(POINTS)
def test_ticks_are_few_distinct_and_in_order(points: list[tuple[int, float]]) -> None:
    chart = line_chart("y", [Series(name="a", points=points)])
    assert chart is not None
    heights = [tick.at for tick in chart.y_ticks]
    assert heights == sorted(set(heights), reverse=True)
    assert 2 <= len(heights) <= 8
    assert 1 <= len(chart.x_ticks) <= 8


def test_ticks_of_iterations_are_whole() -> None:
    chart = line_chart("y", [Series(name="a", points=[(1, 0.5), (2, 0.7)])])
    assert chart is not None
    assert [tick.label for tick in chart.x_ticks] == ["1", "2"]


def test_an_interval_is_around_its_line() -> None:
    series = Series(name="a", points=[(0, 0.5), (1, 0.6)], interval=[(0, 0.4, 0.6), (1, 0.5, 0.7)])
    chart = line_chart("y", [series], y_range=(0.0, 1.0))
    assert chart is not None
    (line,) = chart.lines
    lowest, highest = (float(line.band[1:].split(" L")[i].split()[1]) for i in (0, 3))
    assert highest < line.marks[0].y < lowest


def test_nothing_known_makes_no_chart() -> None:
    frame = pl.DataFrame({"iteration": [1, 2], "y": [None, float("nan")]})
    assert line_chart("y", [series_of(frame, "y", "a")]) is None


@pytest.mark.parametrize("y", [0.0, 1.0, -3.5, 1e-9, 1e9])
def test_a_constant_line_is_in_the_middle(y: float) -> None:
    chart = line_chart("y", [Series(name="a", points=[(0, y), (1, y)])])
    assert chart is not None
    assert chart.top < chart.lines[0].marks[0].y < chart.bottom


def test_the_interval_of_a_single_point_can_be_seen() -> None:
    chart = line_chart("y", [Series(name="a", points=[(1, 0.5)], interval=[(1, 0.2, 0.9)])])
    assert chart is not None
    corners = re.findall(r"([\d.]+) ([\d.]+)", chart.lines[0].band)
    xs, ys = ([float(corner[n]) for corner in corners] for n in (0, 1))
    assert max(xs) - min(xs) > 2
    assert max(ys) - min(ys) > 20


@pytest.mark.parametrize("value", [0.05, 3.0, -0.4, 0.0])
def test_a_single_value_has_an_axis_of_its_own_size(value: float) -> None:
    chart = line_chart("y", [Series(name="a", points=[(1, value)])])
    assert chart is not None
    ends = [float(tick.label) for tick in chart.y_ticks]
    assert ends[0] <= value <= ends[-1]
    assert ends[-1] - ends[0] <= 3 * abs(value) or value == 0
