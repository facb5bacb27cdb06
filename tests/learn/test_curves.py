import xml.etree.ElementTree as ET

import numpy as np

from avtd3.learn.analysis.scalars import Curve
from avtd3.learn.curves import plot_curves


def test_a_page_has_a_plot_with_every_point_of_each_curve(tmp_path):
    curves = [
        Curve(name=name, updates=np.arange(5) * 100, values=np.arange(5.0) * factor)
        for name, factor in (("critic/loss", 1.0), ("actor/loss", -2.0))
    ]
    page = tmp_path / "curves.html"
    plot_curves(curves, page, title="a < b")
    text = page.read_text("utf-8")
    assert "<h1>a &lt; b</h1>" in text
    start, end = "<main>", "</main>"
    main = ET.fromstring(text[text.index(start) : text.index(end) + len(end)].replace("<wbr>", ""))
    plots = main.findall(".//svg")
    assert [plot.get("aria-label") for plot in plots] == [
        "critic/loss over gradient updates. run: 5 points from 0 to 4, ends at 4",
        "actor/loss over gradient updates. run: 5 points from -8 to 0, ends at -8",
    ]
    for plot in plots:
        (path,) = plot.findall("path")
        assert (path.get("d") or "").count("L") == 4
    assert "<script" not in text
    assert "http" not in text.split("<body>")[1]
