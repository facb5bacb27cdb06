"""Plots as SVG: every value is drawn where it belongs."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from avtd3.store.render.plots import (
    LEFT,
    PARTS,
    RIGHT,
    Line,
    Moment,
    curves,
    histogram,
    nice_ticks,
    sparkline,
)


def test_a_histogram_draws_a_bar_for_each_bin_with_values():
    counts = np.array([2.0, 0.0, 8.0])
    marks = {"median": 2.5, "none": None, "far": 9.0}
    drawing = histogram(np.arange(4.0), counts, name="x", marks=marks)
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([0-9.]+)"', drawing)]
    assert len(heights) == 2
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)
    assert "median 2.5" in drawing
    assert "far" not in drawing
    assert "2 .. 3: 8 (80%)" in drawing


def drawn_path(values, shown=(0.0, 1.0)):
    (path,) = re.findall(r' d="([^"]*)"', sparkline(np.array(values), name="x", shown=shown))
    return path


def test_a_sparkline_has_gaps_where_values_are_missing():
    path = drawn_path([0.0, 1.0, np.nan, 1.0, 0.0])
    assert path.count("M") == 2
    assert path.count("L") == 2
    assert drawn_path([np.nan, np.inf]) == ""


def test_a_sparkline_stays_in_its_strip():
    assert drawn_path([0.5, 1.0, -7.0]) == drawn_path([0.5, 9.0, 0.0])


def plot(steps, values, **settings):
    line = Line(
        label="run", steps=np.array(steps), values=np.array(values, np.float64), kind="after"
    )
    return ET.fromstring(curves([line], name="m", axis="updates", **settings))


def path_of(drawn):
    (path,) = [e for e in drawn.iter("path") if e.get("class") == "line after"]
    pairs = path.get("d").removeprefix("M").split("L")
    return [tuple(map(float, pair.split())) for pair in pairs]


def limits(drawn):
    return [e for e in drawn.iter("line") if e.get("class") == "limit"]


def test_a_plot_keeps_the_spikes_of_a_long_curve():
    values = np.sin(np.arange(100_000) / 9_000)
    values[[40_123, 77_777]] = 50.0, -50.0
    drawn = path_of(plot(np.arange(100_000), values))
    assert len(drawn) <= 2 * PARTS + 4
    heights = [y for _, y in drawn]
    assert sum(y == min(heights) for y in heights) == 1
    assert sum(y == max(heights) for y in heights) == 1
    assert max(heights) - min(heights) > 100
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)


@pytest.mark.parametrize(
    "values", [[math.nan] * 3, [math.inf, 1.0, -math.inf], [1e300, -1e300, 0.0], [5.0] * 3, [0.0]]
)
def test_a_plot_of_anything_has_only_places_in_the_picture(values):
    drawn = plot(range(len(values)), values)
    for place in (e.get(key) for e in drawn.iter() for key in ("x", "y", "y1", "cy")):
        assert place is None or 0.0 <= float(place) <= 360.0
    wild = [e for e in drawn.iter("path") if e.get("class") == "wild after"]
    assert bool(wild) == (not np.isfinite(values).all())


def test_values_of_many_sizes_get_a_logarithmic_axis():
    steps = [0, 1, 2, 3]
    heights = [y for _, y in path_of(plot(steps, [1e-3, 1e-1, 1e1, 1e3]))]
    np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=0.2)
    heights = [y for _, y in path_of(plot(steps, [-1e-3, 1e-1, 1e1, 1e3]))]
    assert abs(np.diff(heights)[0]) < 1.0


def test_a_limit_is_drawn_only_near_the_curve():
    steps, values = [0, 1, 2], [1.0, 2.0, 3.0]
    assert len(limits(plot(steps, values, limits=[4.0]))) == 1
    assert not limits(plot(steps, values, limits=[1000.0]))


@pytest.mark.parametrize(("low", "high"), [(0.0, 30.0), (-112.0, 325.0), (1e-8, 2e-8), (5.0, 5.5)])
def test_ticks_are_round_and_enclose(low, high):
    ticks = nice_ticks(low, high, 5)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 9


def test_moments_are_lines_at_their_steps_and_only_on_the_axis():
    moments = [
        Moment(step=50, kind="note", text="hidden by the next"),
        Moment(step=50, kind="stop", text="<stop> & more"),
        Moment(step=100, kind="warn", text="end"),
        Moment(step=300, kind="warn", text="beyond"),
    ]
    drawn = plot([0, 100], [1.0, 2.0], moments=moments)
    groups = [e for e in drawn.iter("g")]
    assert [g.get("class") for g in groups] == ["moment stop", "moment warn"]
    assert [g.findtext("title") for g in groups] == ["<stop> & more", "end"]
    places = [float(g.find("path").get("d").partition(" ")[0][1:]) for g in groups]
    assert places == [(LEFT + RIGHT) / 2, RIGHT]


def test_an_axis_can_reach_beyond_the_curve():
    path = path_of(plot([0, 50], [1.0, 2.0], end=100))
    assert path[-1][0] == (LEFT + RIGHT) / 2
    assert path_of(plot([0, 50], [1.0, 2.0], end=10))[-1][0] == RIGHT


def test_the_axis_of_a_small_constant_is_about_its_value():
    drawn = plot([0, 50], [3e-4, 3e-4])
    texts = [e.text for e in drawn.iter("text") if e.get("text-anchor") == "end" and "-" in e.text]
    assert "3e-4" in texts
    assert all(len(text) <= 6 for text in texts)
