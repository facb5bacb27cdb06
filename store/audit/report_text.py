"""An audit's report as text for people: verdict and findings first, then what the data are like."""

import itertools
from collections import Counter
from collections.abc import Iterator

from avtd3.store.audit.bins import Bins, near_zero, strip
from avtd3.store.audit.evidence import SPEED
from avtd3.store.audit.findings import CHECKS, Finding, FindingLog, WorstEpisode
from avtd3.store.audit.report import AuditReport, DatasetReport
from avtd3.store.audit.statistics import Distribution, Summary
from avtd3.store.audit.wording import duration, plural, size, wrapped

BAR_WIDTH = 24
"""Characters of the longest bar."""
NAME_WIDTH = 16
"""Characters of a component's name."""
MAX_BARS = 8
"""Values of a column that get a bar of their own."""
MAX_ACTIONS = 8
"""Components of the action that are drawn, the first ones."""
MAX_SHOWN = 3
"""Findings of each check that the text spells out."""


def render(report: AuditReport) -> str:
    """The report for a terminal of 80 columns: verdict, findings, worst episodes, then figures."""
    lines = [*_header(report), *_findings(report.log), *_worst(report.worst), *_summary(report)]
    if len(report.datasets) > 1:
        lines += _datasets(report.datasets)
    for title, column in (
        ("end reasons", "end_reason"),
        ("scenarios", "scenario"),
        ("drivers", "driver"),
        ("policy versions", "policy_version"),
        ("towns", "town"),
    ):
        lines += _bars(title, report.total.counts.get(column, Counter()))
    lines += [*_spreads(report.total), *_shares(report.total)]
    # Once more where the eye is when the command has ended.
    lines.append(_verdict(report))
    return "\n".join(lines) + "\n"


def _header(report: AuditReport) -> Iterator[str]:
    paths = ", ".join(dataset.path for dataset in report.datasets) or "nothing"
    yield from wrapped(f"audit of {paths}", "  ")
    yield _verdict(report)
    if report.sample < 1.0:
        judged, held = report.total.segments_judged, report.total.segments
        yield f"  sampled: data of {judged} of {held} segments read, files of all"
    if not report.complete:
        yield "  stopped early: what follows covers the segments audited so far"
    yield ""


def _summary(report: AuditReport) -> Iterator[str]:
    total, damaged = report.total, len(report.damaged)
    left_out = total.segments - total.segments_judged
    unread = f"   (data of {left_out:,} not read)" if left_out else ""
    wrong = f"   ({damaged:,} with errors)" if damaged else ""
    ratio = total.bytes_raw / total.bytes_on_disk if total.bytes_on_disk else 0.0
    for name, value in (
        ("episodes", f"{total.episodes:,}"),
        ("steps", f"{total.steps:,}   ({duration(total.simulated_seconds)} simulated)"),
        ("segments", f"{total.segments:,}{unread}{wrong}"),
        ("on disk", f"{size(total.bytes_on_disk)}   ({size(total.bytes_raw)} raw, {ratio:.1f}x)"),
        ("return", _spread(total.returns)),
        ("", _range(total.returns)),
        ("length", _spread(total.lengths)),
        ("", _range(total.lengths)),
        ("Q", _q(report)),
        ("policies", _staleness(total)),
    ):
        if value:
            yield f"  {name:<10}{value}"
    yield ""


def _spread(distribution: Distribution) -> str:
    moments = distribution.moments
    if not moments.count:
        return "-"
    p5, p50, p95 = distribution.sample.quantiles((0.05, 0.5, 0.95))
    return f"mean {moments.mean:.1f}   median {p50:.1f}   5-95 % {p5:.1f} .. {p95:.1f}"


def _range(distribution: Distribution) -> str:
    moments = distribution.moments
    return f"range {moments.minimum:.1f} .. {moments.maximum:.1f}" if moments.count else ""


def _q(report: AuditReport) -> str:
    if not report.total.largest_reward:
        return ""
    return (
        f"{report.total.largest_discounted:.4g} seen, {report.q_bound:.4g} possible "
        f"(gamma {report.gamma:g}, reward up to {report.total.largest_reward:.4g})"
    )


def _staleness(total: Summary) -> str:
    known = total.staleness
    if not known:
        return ""
    return (
        f"{known['newest_share']:.0%} by the newest, version {known['newest']}; "
        f"{known['mean_behind']:.1f} behind on average"
    )


def _datasets(datasets: tuple[DatasetReport, ...]) -> Iterator[str]:
    width = max(len(dataset.path) for dataset in datasets)
    yield f"  {'dataset':<{width}}  {'episodes':>9}  {'steps':>11}  {'segments':>8}  {'on disk':>8}"
    for dataset in datasets:
        summary = dataset.summary
        yield (
            f"  {dataset.path:<{width}}  {summary.episodes:>9,}  {summary.steps:>11,}  "
            f"{summary.segments:>8,}  {size(summary.bytes_on_disk):>8}"
        )
    yield ""


def _bars(title: str, counts: Counter[str]) -> Iterator[str]:
    """A bar per value, the longest first, the rest together; nothing if there is only one."""
    if len(counts) < 2 and title != "end reasons":
        return
    shown = counts.most_common(MAX_BARS)
    rest = counts.total() - sum(count for _, count in shown)
    if rest:
        shown.append((f"{len(counts) - MAX_BARS} others", rest))
    if not shown:
        return
    yield f"  {title}"
    yield from _bar_rows([(value, count, f"{count:,}") for value, count in shown])
    yield ""


def _spreads(total: Summary) -> Iterator[str]:
    """A line per action and for the speed: least, how the values spread, largest."""
    actions = itertools.islice(total.components.get("action", {}).items(), MAX_ACTIONS)
    speed = total.components.get("vector", {}).get(SPEED)
    rows = []
    for name, known in (*actions, *([(SPEED, speed)] if speed else [])):
        if (bins := Bins.of(known.sample.values, BAR_WIDTH)) is not None:
            low, high = (f"{end:.3g}" for end in (known.moments.minimum, known.moments.maximum))
            near, share = near_zero(known)
            note = f"{share:.0%} within {near:.2g} of 0"
            rows.append((name[:NAME_WIDTH], low, strip(bins, BAR_WIDTH), high, note))
    if not rows:
        return
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield "  spread of actions and speed, from the least to the largest"
    for name, low, drawn, high, note in rows:
        yield f"    {name:<{wide[0]}}  {low:>{wide[1]}} |{drawn}| {high:<{wide[3]}}  {note}"
    yield ""


def _shares(total: Summary) -> Iterator[str]:
    shares = total.reward_shares
    if len(shares) < 2:
        return
    yield "  reward terms, share of the magnitude"
    rows = sorted(shares.items(), key=lambda item: -item[1])
    yield from _bar_rows([(name, share, f"{share:.1%}") for name, share in rows])
    yield ""


def _bar_rows(rows: list[tuple[str, float, str]]) -> Iterator[str]:
    width = max(len(name) for name, _, _ in rows)
    amount = max(len(text) for _, _, text in rows)
    largest = max(value for _, value, _ in rows)
    for name, value, text in rows:
        bar = "#" * max(1, round(BAR_WIDTH * value / largest)) if value > 0 else ""
        yield f"    {name:<{width}}  {text:>{amount}}  {bar}".rstrip()


def _findings(log: FindingLog) -> Iterator[str]:
    shown: dict[str, list[Finding]] = {}
    for finding in log.findings():
        shown.setdefault(finding.check, []).append(finding)
    for check, findings in shown.items():
        entry = CHECKS[check]
        text = f"  {entry.severity}: {check} x{log.counts[check]:,}: {entry.title}"
        yield from wrapped(text, "    ")
        for finding in findings[:MAX_SHOWN]:
            yield from wrapped(f"    {_place(finding)}: {finding.message}", "      ")
        if log.counts[check] > MAX_SHOWN:
            yield f"    ... and {log.counts[check] - min(len(findings), MAX_SHOWN):,} more"
        yield from wrapped(f"    -> {entry.mend}", "       ")
        yield ""


def _worst(worst: tuple[WorstEpisode, ...]) -> Iterator[str]:
    if not worst:
        return
    yield "  worst episodes"
    for episode in worst[:MAX_SHOWN]:
        text = f"    {episode.segment} episode {episode.episode}: {', '.join(episode.checks)}"
        yield from wrapped(text, "      ")
    yield ""


def _place(finding: Finding) -> str:
    if not finding.segment:
        return finding.dataset
    episode = "" if finding.episode is None else f" episode {finding.episode}"
    return f"{finding.segment}{episode}"


def _verdict(report: AuditReport) -> str:
    errors, warnings = report.log.count("error"), report.log.count("warning")
    strict = ", strict" if report.strict else ""
    return (
        f"verdict: {report.verdict} ({plural(errors, 'error')}, {plural(warnings, 'warning')}"
        f"{strict}; {plural(report.total.segments_judged, 'segment')} read "
        f"in {report.seconds:.1f} s)"
    )
