"""The HTML pages of a gate and of a comparison: whole, quiet, and safe against strangers' names."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from avtd3.learn.analysis import compare_page as compare_page_module
from avtd3.learn.analysis.compare import CompareConfig, compare
from avtd3.learn.analysis.compare_page import compare_page
from avtd3.learn.analysis.criteria import Criterion, GateConfig
from avtd3.learn.analysis.gate import gate
from avtd3.learn.analysis.gate_page import gate_page
from avtd3.learn.analysis.metric_names import DirectionBook, NameBook, NameSet
from avtd3.learn.analysis.plots import PARTS, Line, curve_plot
from avtd3.learn.analysis.scalars import Curve

BOOK = NameBook(sets=(NameSet(name="avtd3", axis="updates"),))
EVIL = "<script>alert(1)</script>&\"'"


def plot(steps, values, **settings):
    curve = Curve(name="m", updates=np.array(steps), values=np.array(values, np.float64))
    line = Line(label="run", curve=curve, kind="after")
    return ET.fromstring(curve_plot([line], name="m", axis="updates", **settings))


def path_of(drawn):
    (path,) = [e for e in drawn.iter("path") if e.get("class") == "line after"]
    pairs = path.get("d").removeprefix("M").split("L")
    return [tuple(map(float, pair.split())) for pair in pairs]


def marks(drawn):
    return [e for e in drawn.iter("line") if e.get("class") == "mark"]


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
    assert len(marks(plot(steps, values, limits=[4.0]))) == 1
    assert not marks(plot(steps, values, limits=[1000.0]))


def check_page(text):
    assert text.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    for word in ("<script", "http://", "https://", "<link", "@import", "url("):
        assert word not in text


def test_the_gate_page(tmp_path, write_foreign):
    write_foreign(tmp_path, {"critic/loss": [(1, 1.0), (2, 9.0)], EVIL: [(1, 1.0)]})
    criteria = (
        Criterion(name=EVIL, metric="critic/loss", below=5, why=EVIL, source="R5"),
        Criterion(name="gap", metric=EVIL, above=0),
        Criterion(name="absent", metric="critic/q_gap", rule="falling"),
    )
    report = gate(tmp_path, GateConfig(stage=EVIL, about=EVIL, criteria=criteria), BOOK)
    text = gate_page(report)
    check_page(text)
    assert "NO-GO" in text
    assert text.count("<svg") == 2
    assert text.index("critic/<wbr>loss</h3>") < text.index(
        "alert(1)&lt;/<wbr>script&gt;&amp;&quot;&#x27;</h3>"
    )
    assert "1 of 2 points outside, the first at 2" in text
    assert "the run has no" in text


def test_the_compare_page(tmp_path, write_foreign, monkeypatch):
    series = [(s, 1.0) for s in range(1, 101)]
    metrics = {"critic/loss": series, EVIL: series, "actor/loss": series}
    write_foreign(tmp_path / "a", metrics | {"only": series})
    write_foreign(tmp_path / "b", metrics | {"critic/loss": [(s, 2 * v) for s, v in series]})
    books = (BOOK, BOOK)
    report = compare(tmp_path / "a", tmp_path / "b", CompareConfig(), books, DirectionBook())
    text = compare_page(report)
    check_page(text)
    assert text.count("<svg") == 3
    assert "only in the baseline: only" in text
    assert "2 metrics without a change" in text
    assert "1 → 2, +1 (+100%)" in text
    monkeypatch.setattr(compare_page_module, "MAX_PLOTS", 1)
    monkeypatch.setattr(compare_page_module, "MAX_ROWS", 2)
    text = compare_page(report)
    assert text.count("<svg") == 1
    assert "2 metrics are not drawn" in text
    assert "… and 1 more" in text


def test_runs_with_nothing_in_common_have_a_page(tmp_path, write_foreign):
    write_foreign(tmp_path / "a", {"x": [(1, 1.0)]})
    write_foreign(tmp_path / "b", {"y": [(1, 1.0)]})
    books = (BOOK, BOOK)
    report = compare(tmp_path / "a", tmp_path / "b", CompareConfig(), books, DirectionBook())
    check_page(compare_page(report))
    assert "nothing to compare" in report.sentence()
