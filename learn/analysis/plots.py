"""Learning curves as inline SVG: one or two lines over steps, with limits and a marked window.

A long curve is drawn by the smallest and the largest point of each part of the picture, so that no
spike is lost. Values that are not finite are ticks at the upper edge.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.learn.analysis.scalars import Curve
from avtd3.store.render.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, nice_ticks, number
from avtd3.store.render.markup import Markup, element

PARTS = 150
"""Parts of a picture, two points each at most: a phone shows about as many pixels."""
DECADES = 2.5
"""Powers of ten from which on values that are all above 0 get a logarithmic axis."""
LARGEST = 1e30
"""Values beyond are drawn here."""
_NEAR = 1.0
"""How far outside the values a limit is still shown, in heights of the picture."""

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve with how it is drawn."""

    label: str
    """Which run it is."""
    curve: Curve
    kind: str
    """Class in the style sheet: ``after`` or ``before``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Maps values to places in the picture."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, values: _Floats) -> _Floats:
        """Coordinates of values, float64 (N,)."""
        if self.is_log:
            values = np.log10(np.maximum(values, 10.0**self.low))
        share = (values - self.low) / (self.high - self.low)
        placed: _Floats = self.start + (self.end - self.start) * share
        return placed

    def ticks(self, about: int) -> list[float]:
        """Round values within."""
        step = max(1, round((self.high - self.low) / about)) if self.is_log else 0
        if self.is_log:
            return [10.0**p for p in range(math.ceil(self.low), math.floor(self.high) + 1, step)]
        slack = 1e-9 * (self.high - self.low)
        found = nice_ticks(self.low, self.high, about)
        return [tick for tick in found if self.low - slack <= tick <= self.high + slack]


def curve_plot(
    lines: Sequence[Line],
    *,
    name: str,
    axis: str,
    limits: Sequence[float] = (),
    window: tuple[float, float] | None = None,
) -> Markup:
    """Curves over steps.

    Args:
        lines: One or more, the last one on top; with points.
        name: The metric; read out to who cannot see.
        axis: What the steps count.
        limits: Values to mark with a line; those far from the curves are left out.
        window: Steps to shade.
    """
    x, y = _step_axis(lines), _value_axis(lines, limits)
    parts = [] if window is None else [_shade(window, x)]
    parts += [*_rows(y), *_columns(x)]
    parts += [_limit(value, y) for value in limits if _is_within(value, y)]
    for line in lines:
        parts += _draw(line, x, y)
    told = "; ".join(_tell(line) for line in lines)
    return element(
        "svg",
        parts,
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=f"{name} over {axis}. {told}",
        class_="plot",
    )


def _tell(line: Line) -> str:
    values = line.curve.values[np.isfinite(line.curve.values)]
    if not values.size:
        return f"{line.label}: no finite value"
    low, high = number(float(values.min())), number(float(values.max()))
    return f"{line.label}: {len(values):,} points from {low} to {high}, ends at " + number(
        float(values[-1])
    )


def _step_axis(lines: Sequence[Line]) -> _Axis:
    steps = np.concatenate([line.curve.updates for line in lines]).astype(np.float64)
    low, high = min(float(steps.min()), 0.0), float(steps.max())
    return _Axis(low=low, high=max(high, low + 1.0), start=LEFT, end=WIDTH - RIGHT)


def _value_axis(lines: Sequence[Line], limits: Sequence[float]) -> _Axis:
    values = np.concatenate([line.curve.values for line in lines])
    values = np.clip(values[np.isfinite(values)], -LARGEST, LARGEST)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    bottom, top = HEIGHT - BOTTOM, TOP
    if low > 0.0 and math.log10(high / low) > DECADES:
        return _Axis(
            low=math.log10(low) - 0.05,
            high=math.log10(high) + 0.05,
            start=bottom,
            end=top,
            is_log=True,
        )
    height = high - low
    near = [v for v in limits if low - _NEAR * height <= v <= high + _NEAR * height]
    low, high = min([low, *near]), max([high, *near])
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - max(abs(low), 1.0) * 0.1, high + max(abs(high), 1.0) * 0.1
    room = 0.04 * (high - low)
    return _Axis(low=low - room, high=high + room, start=bottom, end=top)


def _is_within(value: float, y: _Axis) -> bool:
    if y.is_log:
        return value > 0.0 and y.low <= math.log10(value) <= y.high
    return y.low <= value <= y.high


def _shade(window: tuple[float, float], x: _Axis) -> Markup:
    left, right = x.place(np.array(window)).tolist()
    left, right = max(left, LEFT), min(right, WIDTH - RIGHT)
    return element(
        "rect",
        class_="window",
        x=left,
        y=TOP,
        width=max(right - left, 0.0),
        height=HEIGHT - TOP - BOTTOM,
    )


def _rows(y: _Axis) -> Iterator[Markup]:
    for tick in y.ticks(3):
        place = float(y.place(np.array([tick]))[0])
        yield element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place)
        yield element(
            "text", number(tick), class_="tick", x=LEFT - 6, y=place + 4, text_anchor="end"
        )


def _columns(x: _Axis) -> Iterator[Markup]:
    for tick in x.ticks(4):
        place = float(x.place(np.array([tick]))[0])
        side = "end" if place > WIDTH - RIGHT - 12 else "middle"
        yield element("text", number(tick), class_="tick", x=place, y=HEIGHT - 8, text_anchor=side)


def _limit(value: float, y: _Axis) -> Markup:
    place = float(y.place(np.array([value]))[0])
    return element("line", class_="mark", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place)


def _draw(line: Line, x: _Axis, y: _Axis) -> Iterator[Markup]:
    finite = np.isfinite(line.curve.values)
    steps, values = line.curve.updates.astype(np.float64), line.curve.values
    across = x.place(steps)
    wild = np.unique(np.round(across[~finite]))[:PARTS]
    if wild.size:
        ticks = "".join(f"M{place:.0f} {TOP}v7" for place in wild)
        yield element("path", class_=f"wild {line.kind}", d=ticks)
    kept = _extremes(across[finite], values[finite])
    right = across[finite][kept]
    down = y.place(np.clip(values[finite][kept], -LARGEST, LARGEST))
    if len(kept) == 1:
        yield element("circle", class_=f"dot {line.kind}", cx=right[0], cy=down[0], r=2.5)
    elif len(kept):
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(right, down, strict=True))
        yield element("path", class_=f"line {line.kind}", d=f"M{path}")


def _extremes(across: _Floats, values: _Floats) -> NDArray[np.int64]:
    """Which points to draw, int64 (M,) ascending: the extremes of each part, and both ends."""
    count = len(values)
    if count <= 2 * PARTS:
        return np.arange(count)
    part = ((across - LEFT) * PARTS / (WIDTH - LEFT - RIGHT)).astype(np.int64)
    order = np.lexsort((values, part))
    edges = np.flatnonzero(np.diff(part[order]))
    lowest = order[np.concatenate(([0], edges + 1))]
    highest = order[np.concatenate((edges, [count - 1]))]
    return np.unique(np.concatenate((lowest, highest, [0, count - 1])))
