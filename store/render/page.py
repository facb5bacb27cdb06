"""An audit as one HTML page that needs nothing else: no script, no network, no other file.

Everything read from a dataset is escaped by `avtd3.store.render.markup`.
"""

import datetime
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from avtd3.store.audit.drift import Drift
from avtd3.store.audit.findings import CHECKS, Finding
from avtd3.store.audit.report import AuditReport
from avtd3.store.files import write_aside
from avtd3.store.render.drift import drift_section
from avtd3.store.render.frame import html_page, section
from avtd3.store.render.markup import Markup, element, join, shorten
from avtd3.store.render.reels import Reel, draw_reel, pick_reels
from avtd3.store.render.sections import data_sections, key_figures
from avtd3.store.render.tables import column_heads, framed, scrolling, table

MARKS = {"ok": "✓", "warnings": "!", "errors": "✕"}
MAX_OFFENDERS = 10
"""Findings of each check that the page spells out."""


def write_page(
    report: AuditReport,
    path: Path,
    *,
    drifts: Sequence[Drift] = (),
    compared: Sequence[str] = (),
    more: Sequence[tuple[str, Markup]] = (),
) -> None:
    """Write an audit as a page, with frames of a few of its episodes.

    Args:
        report: The audit; its datasets are read once more, for the frames.
        path: The file, replaced atomically.
        drifts: What was measured between two parts of the data, if anything.
        compared: What these two parts are called.
        more: Title and content of further sections.

    Raises:
        StorageError: The file cannot be written.
    """
    reels = pick_reels([Path(dataset.path) for dataset in report.datasets])
    made = datetime.datetime.now(datetime.UTC)
    page = render_page(report, reels, made=made, drifts=drifts, compared=compared, more=more)
    write_aside(path, page.encode())


def render_page(
    report: AuditReport,
    reels: Sequence[Reel],
    *,
    made: datetime.datetime,
    drifts: Sequence[Drift] = (),
    compared: Sequence[str] = (),
    more: Sequence[tuple[str, Markup]] = (),
) -> str:
    """An audit as HTML.

    Args:
        report: The audit.
        reels: Episodes to show.
        made: When the audit was made.
        drifts: What was measured between two parts of the data, if anything.
        compared: What these two parts are called.
        more: Title and content of further sections.
    """
    names = ", ".join(dataset.path for dataset in report.datasets) or "nothing"
    title = f"Audit of {names}"
    main = element(
        "main",
        section("Checks", _checks(report)),
        section("Drift", drift_section(drifts, compared)) if drifts else "",
        section("What the camera saw", _reels(reels)) if reels else "",
        [section(name, content) for name, content in (*more, *data_sections(report))],
    )
    return html_page(title, _header(report, title, made), main, _footer(report))


def _header(report: AuditReport, title: str, made: datetime.datetime) -> Markup:
    kind = {"ok": "ok", "warnings": "warning", "errors": "error"}[report.verdict]
    verdict = element("span", f"{MARKS[report.verdict]} {report.verdict}", class_=f"verdict {kind}")
    lines = [element("p", verdict, " ", " ".join(_sentences(report)))]
    lines.append(element("p", f"Made {made:%Y-%m-%d %H:%M} UTC.", class_="note"))
    return element("header", element("h1", title), lines, key_figures(report))


def _sentences(report: AuditReport) -> Iterator[str]:
    log, total = report.log, report.total
    if report.verdict == "ok":
        yield f"None of {len(CHECKS)} checks found an error or a warning."
    else:
        counts = (("error", log.count("error")), ("warning", log.count("warning")))
        found = " and ".join(_plural(count, noun) for noun, count in counts if count)
        yield f"{found[0].upper()}{found[1:]} found."
        if report.damaged:
            yield f"{_plural(len(report.damaged), 'segment')} should not be learned from."
    if report.strict:
        yield "Strict: warnings count as errors."
    if report.sample < 1.0:
        read, held = total.segments_judged, total.segments
        yield f"A sample: data of {read:,} of {_plural(held, 'segment')} read, files of all."
    if not report.complete:
        yield "Stopped early: this covers the segments audited so far."


def _checks(report: AuditReport) -> Markup:
    counts = report.log.counts
    found = [name for name in CHECKS if counts.get(name)]
    order = ("error", "warning", "info")
    found.sort(key=lambda name: order.index(CHECKS[name].severity))
    parts = []
    if found:
        parts.append(element("div", _check_table(found, report), class_="card"))
        kept: dict[str, list[Finding]] = {}
        for finding in report.findings:
            kept.setdefault(finding.check, []).append(finding)
        if report.worst:
            parts.append(_worst(report))
        parts += [_offenders(name, kept.get(name, []), counts[name]) for name in found]
    quiet = [name for name in CHECKS if not counts.get(name)]
    listed = table(
        ["check", "severity", "would mean"],
        [[name, CHECKS[name].severity, CHECKS[name].title] for name in quiet],
        caption="Checks that found nothing",
    )
    summary = element("summary", f"{len(quiet)} checks found nothing")
    parts.append(element("details", summary, element("div", listed, class_="card")))
    return join(parts)


def _check_table(found: Sequence[str], report: AuditReport) -> Markup:
    rows = []
    for name in found:
        check = CHECKS[name]
        severity = element("span", check.severity, class_=f"severity {check.severity}")
        cells = [
            element("th", name, scope="row"),
            element("td", severity),
            element("td", f"{report.log.counts[name]:,}", class_="figure"),
            element("td", check.title),
            element("td", check.mend),
        ]
        rows.append(element("tr", cells))
    heads = column_heads(("check", "severity", "found", "what", "what to do"), {"found"})
    caption = "Checks that found something"
    content = framed(heads, rows, caption=caption, class_="checks")
    return scrolling(content, caption)


def _offenders(name: str, findings: Sequence[Finding], count: int) -> Markup:
    lines = []
    for finding in findings[:MAX_OFFENDERS]:
        place = finding.segment or finding.dataset
        place += "" if finding.episode is None else f":{finding.episode}"
        lines.append(element("li", element("code", place), " ", shorten(finding.message, 400)))
    left_out = count - len(lines)
    return element(
        "details",
        element("summary", f"{name}: {_plural(count, 'finding')}"),
        element(
            "div",
            element("ul", lines, class_="offenders"),
            element("p", f"… and {left_out:,} more", class_="note") if left_out else "",
            class_="card",
        ),
    )


def _worst(report: AuditReport) -> Markup:
    lines = []
    for worst in report.worst:
        counts = ((worst.errors, "error"), (worst.warnings, "warning"))
        found = ", ".join(_plural(count, noun) for count, noun in counts if count)
        place = element("code", f"{worst.segment}:{worst.episode}")
        lines.append(element("li", place, " ", f"{found}: {', '.join(worst.checks)}"))
    return element(
        "details",
        element("summary", f"The worst {_plural(len(lines), 'episode')}"),
        element("div", element("ul", lines, class_="offenders"), class_="card"),
        open="",
    )


def _reels(reels: Sequence[Reel]) -> Markup:
    return element("div", [draw_reel(reel) for reel in reels], class_="cards reels")


def _footer(report: AuditReport) -> Markup:
    paths = " ".join(dataset.path for dataset in report.datasets)
    return element(
        "footer",
        element(
            "p",
            f"avtd3 {metadata.version('avtd3')} read "
            f"{_plural(report.total.segments_judged, 'segment')} in {report.seconds:.1f} s. "
            "To see an episode: ",
            element("code", f"avtd3 replay-inspect {paths} --episode SEGMENT:NUMBER"),
        ),
    )


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
