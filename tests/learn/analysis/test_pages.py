"""The pages of a gate and a comparison: complete, and safe against names from files."""

from avtd3.learn.analysis import pages
from avtd3.learn.analysis.compare import CompareConfig, compare
from avtd3.learn.analysis.criteria import Criterion, GateConfig
from avtd3.learn.analysis.gate import gate
from avtd3.learn.analysis.metric_names import DirectionBook, NameBook, NameSet
from avtd3.learn.analysis.pages import compare_page, gate_page

BOOK = NameBook(sets=(NameSet(name="avtd3", axis="updates"),))
EVIL = "<script>alert(1)</script>&\"'"


def check_page(text):
    assert text.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in text
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
        "alert(1)&lt;/<wbr>script&gt;&amp;&#34;&#39;</h3>"
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
    assert "Of these metrics, 2 do not differ." in text
    assert text.index("critic/<wbr>loss") < text.index("Without a clear change")
    assert text.index("actor/<wbr>loss") > text.index("Without a clear change")
    assert "1 → 2, +1 (+100%)" in text
    monkeypatch.setattr(pages, "MAX_PLOTS", 1)
    monkeypatch.setattr(pages, "MAX_ROWS", 2)
    text = compare_page(report)
    assert text.count("<svg") == 1
    assert "2 metrics are not drawn" in text
    assert "… and 1 more" in text


def test_a_metric_whose_points_were_all_dropped_has_no_plot(tmp_path, write_foreign):
    for name in "ab":
        write_foreign(tmp_path / name, {"x": [(5, 1.0)], "y": [(1, 1.0)]}, name="tfevents.1")
        write_foreign(tmp_path / name, {}, name="tfevents.2", restart=3)
    report = compare(tmp_path / "a", tmp_path / "b", CompareConfig(), (BOOK, BOOK), DirectionBook())
    text = compare_page(report)
    check_page(text)
    assert (len(report.changes), text.count("<svg")) == (2, 1)


def test_runs_with_nothing_in_common_have_a_page(tmp_path, write_foreign):
    write_foreign(tmp_path / "a", {"x": [(1, 1.0)]})
    write_foreign(tmp_path / "b", {"y": [(1, 1.0)]})
    books = (BOOK, BOOK)
    report = compare(tmp_path / "a", tmp_path / "b", CompareConfig(), books, DirectionBook())
    check_page(compare_page(report))
    assert "nothing to compare" in report.sentence()
