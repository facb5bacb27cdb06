"""Format an audit's report and a drift for a terminal of 80 columns."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from avtd3.store.audit.drift import Drift
from avtd3.store.audit.findings import CHECKS, Finding, FindingLog, WorstEpisode
from avtd3.store.audit.report import AuditReport, DatasetReport
from avtd3.store.audit.segment_data import SPEED
from avtd3.store.audit.statistics import DIFFERING, Bins, Distribution, Summary, near_zero
from avtd3.store.render.text import (
    BAR_WIDTH,
    bars,
    columns,
    duration,
    file_size,
    integer,
    join_lines,
    largest,
    number,
    percent,
    plural,
    shade_strip,
    wrap,
)

NAME_WIDTH = 16
"""Characters of a component's name."""
MAX_BARS = 8
"""Values of a column that get a bar of their own."""
MAX_ACTIONS = 8
"""Components of the action that are drawn, the first ones."""
MAX_SHOWN = 3
"""Findings of each check that are listed."""


def audit_text(report: AuditReport) -> str:
    """Format the report: verdict, findings, worst episodes, then statistics of the data."""
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
        lines += _counts(title, report.total.counts.get(column, Counter()))
    # The verdict is repeated at the end, where it is still visible when the command is done.
    lines += [*_spreads(report.total), *_reward_shares(report.total), *_expert(report.total)]
    lines.append(_verdict(report))
    return join_lines(lines) + "\n"


def drift_text(drifts: Sequence[Drift], first: str, second: str) -> str:
    """Format how far the quantities of two sets of episodes have drifted, the farthest first."""
    if not drifts:
        return join_lines([f"drift from {first} to {second}: nothing to compare", ""])
    other, shifted = (sum(d.verdict == kind for d in drifts) for kind in ("other", "shifted"))
    rows: list[Sequence[str]] = [("quantity", "PSI", "KS", "median", "then", "verdict")]
    for drift in drifts:
        figures = (f"{drift.psi:.2f}", f"{drift.ks:.2f}", *(number(m, 4) for m in drift.medians))
        rows.append((drift.name[:34], *figures, drift.verdict))
    lines = [
        f"drift from {first} to {second}: {other} of {len(drifts)} quantities are another "
        f"population, {shifted} are shifted",
        *(f"  {line}" for line in columns(rows, "<>>>><")),
    ]
    return join_lines(lines) + "\n"


def staleness_text(total: Summary) -> str:
    """Describe how far the driving policies are behind the newest; empty if no policy drove."""
    known = total.staleness
    if not known:
        return ""
    return (
        f"{percent(known['newest_share'])} by the newest, version {known['newest']}; "
        f"{known['mean_behind']:.1f} behind on average"
    )


def _header(report: AuditReport) -> Iterator[str]:
    paths = ", ".join(dataset.path for dataset in report.datasets) or "nothing"
    yield from wrap(f"audit of {paths}", "  ")
    yield _verdict(report)
    if report.sample < 1.0:
        read, total = report.total.segments_read, report.total.segments
        yield f"  sampled: data of {read} of {total} segments read, files of all"
    if not report.complete:
        yield "  stopped early: only the segments audited so far are covered"
    yield ""


def _verdict(report: AuditReport) -> str:
    errors, warnings = report.log.count("error"), report.log.count("warning")
    strict = ", strict" if report.strict else ""
    return (
        f"verdict: {report.verdict} ({plural(errors, 'error')}, {plural(warnings, 'warning')}"
        f"{strict}; {plural(report.total.segments_read, 'segment')} read "
        f"in {duration(report.seconds)})"
    )


def _findings(log: FindingLog) -> Iterator[str]:
    shown: dict[str, list[Finding]] = {}
    for finding in log.findings():
        shown.setdefault(finding.check, []).append(finding)
    for check, findings in shown.items():
        entry = CHECKS[check]
        yield from wrap(
            f"  {entry.severity}: {check} x{log.counts[check]:,}: {entry.title}", "    "
        )
        for finding in findings[:MAX_SHOWN]:
            yield from wrap(f"    {_place(finding)}: {finding.message}", "      ")
        if log.counts[check] > MAX_SHOWN:
            yield f"    ... and {log.counts[check] - min(len(findings), MAX_SHOWN):,} more"
        yield from wrap(f"    -> {entry.fix}", "       ")
        yield ""


def _place(finding: Finding) -> str:
    if not finding.segment:
        return finding.dataset
    episode = "" if finding.episode is None else f" episode {finding.episode}"
    return f"{finding.segment}{episode}"


def _worst(worst: tuple[WorstEpisode, ...]) -> Iterator[str]:
    if not worst:
        return
    yield "  worst episodes"
    for episode in worst[:MAX_SHOWN]:
        text = f"    {episode.segment} episode {episode.episode}: {', '.join(episode.checks)}"
        yield from wrap(text, "      ")
    yield ""


def _summary(report: AuditReport) -> Iterator[str]:
    total, damaged = report.total, len(report.damaged)
    unread_count = total.segments - total.segments_read
    unread = f"   (data of {unread_count:,} not read)" if unread_count else ""
    wrong = f"   ({damaged:,} with errors)" if damaged else ""
    stored, raw = file_size(total.bytes_on_disk), file_size(total.bytes_raw)
    ratio = total.bytes_raw / total.bytes_on_disk if total.bytes_on_disk else 0.0
    for name, value in (
        ("episodes", integer(total.episodes)),
        ("steps", f"{total.steps:,}   ({duration(total.simulated_seconds)} simulated)"),
        ("segments", f"{total.segments:,}{unread}{wrong}"),
        ("on disk", f"{stored}   ({raw} raw, {ratio:.1f}x)"),
        ("return", _spread(total.returns)),
        ("", _range(total.returns)),
        ("length", _spread(total.lengths)),
        ("", _range(total.lengths)),
        ("Q", _q_bound(report)),
        ("policies", staleness_text(total)),
    ):
        if value:
            yield f"  {name:<10}{value}"
    yield ""


def _spread(distribution: Distribution) -> str:
    if not distribution.moments.count:
        return "-"
    shown = (distribution.moments.mean, *distribution.sample.quantiles((0.5, 0.05, 0.95)))
    mean, p50, p5, p95 = (number(value, 4) for value in shown)
    return f"mean {mean}   median {p50}   5-95 % {p5} .. {p95}"


def _range(distribution: Distribution) -> str:
    moments = distribution.moments
    if not moments.count:
        return ""
    return f"range {number(moments.minimum, 4)} .. {number(moments.maximum, 4)}"


def _q_bound(report: AuditReport) -> str:
    total = report.total
    if not total.largest_reward:
        return ""
    return (
        f"{number(total.largest_discounted, 4)} seen, {number(report.q_bound, 4)} possible "
        f"(gamma {report.gamma:g}, reward up to {number(total.largest_reward, 4)})"
    )


def _datasets(datasets: tuple[DatasetReport, ...]) -> Iterator[str]:
    rows = [("dataset", "episodes", "steps", "segments", "on disk"), *map(dataset_row, datasets)]
    yield from (f"  {line}" for line in columns(rows, "<>>>>"))
    yield ""


def dataset_row(dataset: DatasetReport) -> tuple[str, ...]:
    """Return path, episodes, steps, segments and size of a dataset as text."""
    found = dataset.summary
    counts = map(integer, (found.episodes, found.steps, found.segments))
    return (dataset.path, *counts, file_size(found.bytes_on_disk))


def _counts(title: str, counts: Counter[str]) -> Iterator[str]:
    """Draw a bar per value, unless there is only one; end reasons are always shown."""
    if len(counts) < 2 and not (counts and title == "end reasons"):
        return
    yield f"  {title}"
    rows = [(name, count, integer(count)) for name, count in largest(counts, MAX_BARS)]
    yield from (f"    {line}" for line in bars(rows))
    yield ""


def _spreads(total: Summary) -> Iterator[str]:
    """Draw a line per action and for the speed: minimum, distribution, maximum."""
    actions = itertools.islice(total.components.get("action", {}).items(), MAX_ACTIONS)
    speed = total.components.get("vector", {}).get(SPEED)
    rows = []
    for name, known in (*actions, *([(SPEED, speed)] if speed else [])):
        if (bins := Bins.of(known.sample.values, BAR_WIDTH)) is not None:
            low, high = number(known.moments.minimum), number(known.moments.maximum)
            near, share = near_zero(known)
            note = f"{percent(share)} within {number(near)} of 0"
            rows.append((name[:NAME_WIDTH], low, shade_strip(bins.counts, BAR_WIDTH), high, note))
    if not rows:
        return
    yield "  spread of actions and speed, from the least to the largest"
    wide = max(len(high) for _, _, _, high, _ in rows)
    cells = [(name, f"{low} |{bar}| {high:<{wide}}", note) for name, low, bar, high, note in rows]
    yield from (f"    {line}" for line in columns(cells, "<><"))
    yield ""


def _expert(total: Summary) -> Iterator[str]:
    """Say who drove, and how far others were from the expert."""
    shares = total.expert_shares
    if not shares:
        return
    yield f"  expert, known in {integer(int(shares['steps']))} steps"
    times = plural(int(shares["takeovers"]), "time")
    yield f"    drove in {percent(shares['drove'])}, took over {times}"
    if compared := int(shares["compared"]):
        distances = ", ".join(
            f"{name.removeprefix('distance ')} {number(value)}"
            for name, value in shares.items()
            if name.startswith("distance ")
        )
        yield (
            f"    other drivers: {percent(shares['differing'])} of {integer(compared)} steps more "
            f"than {DIFFERING:g} half ranges"
        )
        yield from wrap(f"    apart; on average {distances}", "    ")
    yield ""


def _reward_shares(total: Summary) -> Iterator[str]:
    if len(total.reward_shares) < 2:
        return
    yield "  reward terms, share of the magnitude"
    shares = sorted(total.reward_shares.items(), key=lambda item: -item[1])
    yield from (f"    {line}" for line in bars([(n, share, percent(share)) for n, share in shares]))
    yield ""
