"""Line charts as SVG: where everything stands; the template `_chart.html` writes it.

Colours are classes of the style sheet, so a chart follows the dark mode, and lines differ in their
dashes too, for those who do not see the colours apart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

WIDTH, HEIGHT = 420, 210
LONE_BAND = 8
"""Width of the interval of a line that is one point: a band between points would have none."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
"""Margins around the plot, for the labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its points, and where there is one the interval around each."""

    name: str
    points: Sequence[tuple[float, float]]
    """x and y, x ascending."""
    interval: Sequence[tuple[float, float, float]] = ()
    """x, low and high."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A number beside an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A point, and what it says."""

    x: float
    y: float
    says: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it is drawn."""

    name: str
    path: str
    band: str
    marks: Sequence[Mark]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart as it is drawn, in units of the SVG."""

    title: str
    x_label: str
    lines: Sequence[Line]
    has_legend: bool
    """Whether the lines are named beside it: there could be several."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    series: Iterable[Series],
    *,
    x_label: str = "iteration",
    y_range: tuple[float, float] | None = None,
) -> Chart | None:
    """Lays a chart out.

    Args:
        title: What the y axis shows.
        series: The lines; those without points are left out.
        x_label: What the x axis shows; its values are whole numbers.
        y_range: Lowest and highest y; null for those of the data.

    Returns:
        The chart; null if there is no point at all.
    """
    asked = list(series)
    drawn = [line for line in asked if line.points]
    if not drawn:
        return None
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    ys += [y for line in drawn for _, *ends in line.interval for y in ends]
    x_ticks = round_numbers(min(xs), max(xs), 6, whole=True)
    y_ticks = round_numbers(*(y_range or (min(ys), max(ys))), 4)
    low, high = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        span = max(xs) - min(xs)
        share = (x - min(xs)) / span if span else 0.5
        return round(LEFT + 8 + share * (WIDTH - RIGHT - LEFT - 16), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    return Chart(
        title=title,
        x_label=x_label,
        lines=[
            Line(
                name=line.name,
                path=_path((x_at(x), y_at(y)) for x, y in line.points),
                band=_band([(x_at(x), y_at(a), y_at(b)) for x, a, b in line.interval]),
                marks=[
                    Mark(x_at(x), y_at(y), f"{line.name}, {x_label} {x:g}: {y:.3g}")
                    for x, y in line.points
                ],
            )
            for line in drawn
        ],
        has_legend=len(asked) > 1,
        x_ticks=[Tick(x_at(x), f"{x:g}") for x in x_ticks if min(xs) <= x <= max(xs)],
        y_ticks=[Tick(y_at(y), f"{y:g}") for y in y_ticks],
    )


def series_of(
    frame: pl.DataFrame, y: str, name: str, *, x: str = "iteration", interval: bool = False
) -> Series:
    """Returns a line from the columns of a frame, in the order of x; rows without y are left out.

    Args:
        frame: With columns x and y; `y_low` and `y_high` too with an interval.
        y: Column of y.
        name: Name of the line.
        x: Column of x.
        interval: Whether the ends of an interval are drawn.
    """
    known = frame.filter(pl.col(y).is_not_null() & pl.col(y).cast(pl.Float64).is_finite()).sort(x)
    ends = [f"{y}_low", f"{y}_high"]
    bands = known.select(x, *ends).drop_nulls().rows() if interval else []
    return Series(name=name, points=known.select(x, y).rows(), interval=bands)


def round_numbers(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Returns round numbers from at most `low` to at least `high`, evenly spaced."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        half = abs(low) / 2 if abs(low) > 1e-6 else 0.5
        low, high = low - half, high + half
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x} {y}" for x, y in points)


def _band(ends: Sequence[tuple[float, float, float]]) -> str:
    if not ends:
        return ""
    if len(ends) == 1:
        (x, low, high), half = ends[0], LONE_BAND / 2
        ends = [(x - half, low, high), (x + half, low, high)]
    there = [(x, low) for x, low, _ in ends]
    back = [(x, high) for x, _, high in reversed(ends)]
    return f"{_path([*there, *back])} Z"
