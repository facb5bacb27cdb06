"""Draw histograms, learning curves and sparklines as inline SVG.

Colours come from ``style.css``, so a plot follows a light or a dark theme. Plots take plain arrays.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from avtd3.store.render.html import render
from avtd3.store.render.text import integer, number, percent

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 54, WIDTH - 10, 12, HEIGHT - 26
"""Edges of the plot inside the picture."""
SPARKLINE_HEIGHT = 34
SPARKLINE_POINTS = 240
"""Points of a sparkline: more than it has pixels on a phone."""
PARTS = 150
"""Parts of a curve, of which the smallest and the largest point are drawn, so no spike is lost."""
LOG_DECADES = 2.5
"""Powers of ten that positive values must span to get a logarithmic axis."""
LARGEST = 1e30
"""Values beyond are drawn here."""
SMALLEST = 1e-290
"""Size below which a constant is drawn as 0."""
LIMIT_DISTANCE = 1.0
"""How far outside the values a limit is still shown, in heights of the plot."""

_SHAPES = ("bars", "marks", "limits", "moments", "curves")
_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve over steps and how it is drawn."""

    label: str
    """What it is called."""
    steps: NDArray[np.int64]
    """int64 (N,), ascending."""
    values: _Floats
    """float64 (N,); values that are not finite become ticks at the upper edge."""
    kind: str
    """Class in the style sheet: ``after`` or ``before``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Something that happened at a step, drawn as a vertical line."""

    step: int
    kind: str
    """Class in the style sheet: ``note``, ``warn``, ``serious`` or ``stop``."""
    text: str
    """Shown when the line is pointed at."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Maps values to places in the picture."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, values: _Floats) -> _Floats:
        """Return the coordinates of values, float64 (N,)."""
        if self.is_log:
            values = np.log10(np.maximum(values, 10.0**self.low))
        share = (values - self.low) / (self.high - self.low)
        return np.asarray(self.start + (self.end - self.start) * share)

    def at(self, value: float) -> float:
        """Return the coordinate of one value, rounded."""
        return round(float(self.place(np.array([value]))[0]), 1)

    def holds(self, value: float) -> bool:
        """Return whether a value is on the axis, bar an error of rounding."""
        if self.is_log and value <= 0.0:
            return False
        slack = 1e-9 * (self.high - self.low)
        place = math.log10(value) if self.is_log else value
        return self.low - slack <= place <= self.high + slack

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """Return coordinate and text of about so many round values."""
        if self.is_log:
            step = max(1, round((self.high - self.low) / about))
            powers = range(math.ceil(self.low), math.floor(self.high) + 1, step)
            values = [10.0**power for power in powers]
        else:
            values = [v for v in nice_ticks(self.low, self.high, about) if self.holds(v)]
        return [(self.at(value), _tick(value)) for value in values]


def histogram(
    edges: _Floats,
    counts: _Floats,
    *,
    name: str,
    marks: Mapping[str, float | None] | None = None,
) -> Markup:
    """Draw a histogram of edges float64 (N + 1,), with lines at the `marks` that are on the axis.

    Each bar shows its range and count when pointed at.
    """
    low, high, total = float(edges[0]), float(edges[-1]), float(counts.sum())
    most = max(1.0, float(counts.max(initial=0.0)))
    x = _Axis(low=low, high=high, start=LEFT, end=RIGHT)
    y = _Axis(low=0.0, high=nice_ticks(0.0, most, 3)[-1], start=BOTTOM, end=TOP)
    bars = []
    for left, right, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True):
        if count > 0:
            height = max(1.0, round(BOTTOM - y.at(count), 1))
            width = max(0.7, round(x.at(right) - x.at(left) - 1.0, 1))
            text = f"{number(left)} .. {number(right)}: {integer(count)} ({percent(count / total)})"
            bars.append((x.at(left) + 0.5, BOTTOM - height, width, height, text))
    drawn = [
        (x.at(value), f"{label} {number(value if abs(value) > (high - low) / 1000 else 0.0)}")
        for label, value in (marks or {}).items()
        if value is not None and x.holds(value)
    ]
    label = f"Histogram of {name}, {integer(total)} values from {number(low)} to {number(high)}"
    return _plot(label, rows=y.ticks(3), columns=x.ticks(5), bars=bars, marks=drawn)


def curves(
    lines: Sequence[Line],
    *,
    name: str,
    axis: str,
    limits: Sequence[float] = (),
    window: tuple[float, float] | None = None,
    moments: Sequence[Moment] = (),
    end: int | None = None,
) -> Markup:
    """Draw curves over steps; positive values of many sizes get a logarithmic axis.

    Limits become lines, unless they are far from the curves. `window` is a range of steps to shade.
    Of `moments` at the same place, the last one is drawn. The axis reaches at least to `end`.
    """
    x, y = _step_axis(lines, end), _value_axis(lines, limits)
    shade = None
    if window is not None:
        left, right = (min(max(x.at(step), LEFT), RIGHT) for step in window)
        shade = (left, round(right - left, 1))
    placed = [(moment, round(x.at(moment.step))) for moment in moments]
    return _plot(
        f"{name} over {axis}. " + "; ".join(map(_describe, lines)),
        rows=y.ticks(3),
        columns=x.ticks(4),
        limits=[y.at(value) for value in limits if y.holds(value)],
        window=shade,
        curves=[_trace(line, x, y) for line in lines],
        moments=[*{at: (at, m.kind, m.text) for m, at in placed if at <= RIGHT}.values()],
    )


def sparkline(values: _Floats, *, name: str, shown: tuple[float, float]) -> Markup:
    """Draw values float64 (T,) in a low strip, cut off at the range `shown`."""
    low, high = shown
    y = _Axis(low=low, high=high, start=SPARKLINE_HEIGHT - 2, end=2)
    count = len(values)
    rows = np.unique(np.linspace(0, count - 1, min(count, SPARKLINE_POINTS)).astype(np.int64))
    across, down = WIDTH * rows / max(1, count - 1), y.place(np.clip(values[rows], low, high))
    path, pen = "", "M"
    for right, height, value in zip(across, down, values[rows], strict=True):
        if math.isfinite(value):
            path += f"{pen}{right:.1f} {height:.1f}"
        pen = "L" if math.isfinite(value) else "M"
    label = f"{name} over time, from {number(low)} to {number(high)}"
    size = {"width": WIDTH, "height": SPARKLINE_HEIGHT}
    return render("sparkline.svg.j2", label=label, path=path, **size)


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Return about so many round numbers that enclose a range."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-300) / about))
    for factor in (1.0, 2.0, 5.0, 10.0):
        if (high - low) / (step * factor) <= about + 0.5:
            step *= factor
            break
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _tick(value: float) -> str:
    """Format a value in as few characters as there is room for beside an axis."""
    return re.sub(r"(\.0)?e([+-])0*", r"e\2", number(value)).replace("e+", "e")


def _plot(label: str, **shapes: object) -> Markup:
    context: dict[str, object] = dict.fromkeys(_SHAPES, ())
    edges = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    context |= {"width": WIDTH, "height": HEIGHT, "window": None, "label": label, **edges}
    return render("plot.svg.j2", **context | shapes)


def _describe(line: Line) -> str:
    finite = line.values[np.isfinite(line.values)]
    if not finite.size:
        return f"{line.label}: no finite value"
    low, high, end = (number(float(v)) for v in (finite.min(), finite.max(), finite[-1]))
    return f"{line.label}: {len(finite):,} points from {low} to {high}, ends at {end}"


def _step_axis(lines: Sequence[Line], end: int | None) -> _Axis:
    steps = np.concatenate([line.steps for line in lines]).astype(np.float64)
    low, high = min(float(steps.min()), 0.0), float(max(steps.max(), end or 0))
    return _Axis(low=low, high=max(high, low + 1.0), start=LEFT, end=RIGHT)


def _value_axis(lines: Sequence[Line], limits: Sequence[float]) -> _Axis:
    values = np.concatenate([line.values for line in lines])
    values = np.clip(values[np.isfinite(values)], -LARGEST, LARGEST)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if low > 0.0 and math.log10(high / low) > LOG_DECADES:
        low, high = math.log10(low) - 0.05, math.log10(high) + 0.05
        return _Axis(low=low, high=high, start=BOTTOM, end=TOP, is_log=True)
    reach = LIMIT_DISTANCE * (high - low)
    near = [value for value in limits if low - reach <= value <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        size = max(abs(low), abs(high))
        room = 0.1 * (size if size > SMALLEST else 1.0)
        low, high = low - room, high + room
    room = 0.04 * (high - low)
    return _Axis(low=low - room, high=high + room, start=BOTTOM, end=TOP)


def _trace(line: Line, x: _Axis, y: _Axis) -> tuple[str, str, tuple[float, float] | None, str]:
    """Return a curve's class, its path, its only point if it has one, and its wild points."""
    finite = np.isfinite(line.values)
    across = x.place(line.steps.astype(np.float64))
    wild = "".join(f"M{p:.0f} {TOP}v7" for p in np.unique(np.round(across[~finite]))[:PARTS])
    kept = _extremes(across[finite], line.values[finite])
    right = across[finite][kept]
    down = y.place(np.clip(line.values[finite][kept], -LARGEST, LARGEST))
    points = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(right, down, strict=True)]
    path = "M" + "L".join(f"{a} {b}" for a, b in points) if points else ""
    return line.kind, path, points[0] if len(points) == 1 else None, wild


def _extremes(across: _Floats, values: _Floats) -> NDArray[np.int64]:
    """Return which points to draw, ascending: the extremes of each part and both ends."""
    count = len(values)
    if count <= 2 * PARTS:
        return np.arange(count)
    part = ((across - LEFT) * PARTS / (RIGHT - LEFT)).astype(np.int64)
    order = np.lexsort((values, part))
    edges = np.flatnonzero(np.diff(part[order]))
    lowest = order[np.concatenate(([0], edges + 1))]
    highest = order[np.concatenate((edges, [count - 1]))]
    return np.unique(np.concatenate((lowest, highest, [0, count - 1])))
