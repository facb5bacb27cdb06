"""Histograms as inline SVG.

Colours come from the page's style sheet, so a plot follows a light or a dark theme; every bar says
its value when pointed at.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.bins import Bins
from avtd3.store.render.markup import Markup, element

WIDTH, HEIGHT = 360.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 12.0, 26.0
LINE_HEIGHT = 34.0
LINE_POINTS = 240
"""Points of a line over time: more than it has pixels on a phone."""

_Scale = Callable[[float], float]


def histogram(bins: Bins, *, name: str, marks: Mapping[str, float | None] | None = None) -> Markup:
    """A histogram.

    Args:
        bins: What to draw.
        name: What the horizontal axis shows; read out to who cannot see.
        marks: Values to mark with a line, by their label; those that are None are left out.
    """
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    most = max(1.0, float(bins.counts.max(initial=0.0)))
    total = float(bins.counts.sum())
    top = nice_ticks(0.0, most, 3)[-1]
    top = top if top >= most else most

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    parts = [*_rows(top, y), *_columns(low, high, x)]
    for left, right, count in zip(bins.edges[:-1], bins.edges[1:], bins.counts, strict=True):
        if count <= 0:
            continue
        height = max(1.0, y(0.0) - y(float(count)))
        label = f"{number(float(left))} .. {number(float(right))}: {count:,.0f}"
        label += f" ({count / total:.1%})"
        parts.append(
            element(
                "rect",
                element("title", label),
                class_="bar",
                x=x(float(left)) + 0.5,
                y=y(0.0) - height,
                width=max(0.7, x(float(right)) - x(float(left)) - 1.0),
                height=height,
            )
        )
    for label, value in (marks or {}).items():
        if value is not None and low <= value <= high:
            text = number(value if abs(value) > (high - low) / 1000 else 0.0)
            parts += _mark(x(value), f"{label} {text}")
    spread = f"{total:,.0f} values from {number(low)} to {number(high)}"
    return _svg(parts, f"Histogram of {name}, {spread}")


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    return element(
        "svg",
        parts,
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=label,
        class_="plot",
    )


def _rows(top: float, y: _Scale) -> Iterator[Markup]:
    for tick in nice_ticks(0.0, top, 3):
        if tick > top:
            continue
        place = y(tick)
        yield element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place)
        yield element(
            "text", number(tick), class_="tick", x=LEFT - 6, y=place + 4, text_anchor="end"
        )


def _columns(low: float, high: float, x: _Scale) -> Iterator[Markup]:
    for tick in nice_ticks(low, high, 5):
        if low <= tick <= high:
            place = x(tick)
            yield element(
                "text", number(tick), class_="tick", x=place, y=HEIGHT - 8, text_anchor="middle"
            )


def _mark(place: float, label: str) -> Iterator[Markup]:
    yield element("line", class_="mark", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM)
    side = "start" if place < WIDTH / 2 else "end"
    shift = 4 if side == "start" else -4
    yield element("text", label, class_="label", x=place + shift, y=TOP + 8, text_anchor=side)


def line(values: NDArray[np.float64], *, name: str, shown: tuple[float, float]) -> Markup:
    """A quantity over time in a low strip.

    Args:
        values: One per moment; those that are not finite leave gaps.
        name: What it is.
        shown: Value at the bottom and at the top; what lies beyond is drawn there.
    """
    low, high = shown
    scale = (LINE_HEIGHT - 4.0) / (high - low)
    rows = np.unique(
        np.linspace(0, len(values) - 1, min(len(values), LINE_POINTS)).astype(np.int64)
    )
    pieces, pen_down = [], False
    for row in rows.tolist():
        value = float(values[row])
        if math.isfinite(value):
            x = WIDTH * row / max(1, len(values) - 1)
            y = LINE_HEIGHT - 2.0 - (min(max(value, low), high) - low) * scale
            pieces.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = math.isfinite(value)
    path = element("path", class_="line", d="".join(pieces), vector_effect="non-scaling-stroke")
    return element(
        "svg",
        path,
        viewBox=f"0 0 {WIDTH:.0f} {LINE_HEIGHT:.0f}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{name} over time, from {number(low)} to {number(high)}",
        class_="strip",
    )


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from below ``low`` to above ``high``, about so many between."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-300) / about))
    for factor in (1.0, 2.0, 5.0, 10.0):
        if (high - low) / (step * factor) <= about + 0.5:
            step *= factor
            break
    first, last = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(first, last + 1)]


def number(value: float) -> str:
    """A number in few characters."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return "0" if text in ("-0", "0") else text
    if 1e4 <= abs(value) < 1e15:
        for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
            if abs(value) < 1000 * size:
                return f"{value / size:.3g}{unit}"
    return f"{value:.1e}"
