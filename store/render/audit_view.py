"""Show an audit: as text for a terminal of 80 columns, or as one HTML page.

The page needs nothing else: no script, network or other file.
"""

import datetime
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from avtd3.store.audit.drift import Drift
from avtd3.store.audit.findings import CHECKS, Finding, FindingLog, WorstEpisode
from avtd3.store.audit.report import AuditReport, DatasetReport
from avtd3.store.audit.segment_data import SPEED
from avtd3.store.audit.statistics import (
    DIFFERING,
    SAMPLE_SIZE,
    Bins,
    Distribution,
    Summary,
    near_zero,
)
from avtd3.store.dataset import Dataset
from avtd3.store.episode import Episode
from avtd3.store.errors import Avtd3Error
from avtd3.store.files import write_aside
from avtd3.store.render.episode_view import ShownEpisode, key_components, readable
from avtd3.store.render.html import render_page
from avtd3.store.render.plots import histogram
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
"""Characters of a component's name in a text."""
TEXT_BARS = 8
"""Values of a column that get a bar of their own in a text."""
MAX_ACTIONS = 8
"""Components of the action that are drawn, the first ones."""
MAX_SHOWN = 3
"""Findings of each check that a text lists."""
EXPERT_SHARES = {"drove": "the expert drove", "differing": "steps of others that differ"}
"""Shares of the expert that are drawn, and what they are called."""
MAX_OFFENDERS = 10
"""Findings of each check that a page lists."""
MAX_DRIFTS = 40
"""Quantities whose drift is listed, the most drifted first."""
SEEN_DRIFTS = 8
"""Those of them that are not folded away."""
DRIFT_KINDS = {"same": "ok", "shifted": "warning", "other": "error", "few values": "info"}
"""Classes of the verdicts in the style sheet."""
MAX_BARS = 12
"""Rows of a table of bars; one more row sums up the others."""
MAX_SIDE = 30
"""Most rows or columns of the table of scenarios and towns; a larger one is omitted."""
MAX_EPISODES = 8
"""Episodes that are shown."""
MAX_SEGMENTS = 48
"""Segments of each dataset that episodes are chosen from, evenly spread."""
MAX_IMAGE_BYTES = 1_500_000
"""Size of all frames of a page together."""
DETAILS = {name: name for name in ("mean", "std", "min")}
DETAILS |= {"5 %": "p5", "median": "p50", "95 %": "p95", "max": "max"}
"""Heads of the table of numbers, and their keys in a distribution's document."""


def audit_text(report: AuditReport) -> str:
    """Format the report: verdict, findings, worst episodes, then statistics of the data."""
    lines = [
        *_header(report),
        *_finding_lines(report.log),
        *_worst(report.worst),
        *_summary(report),
    ]
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


def _finding_lines(log: FindingLog) -> Iterator[str]:
    shown: dict[str, list[Finding]] = {}
    for finding in log.findings():
        shown.setdefault(finding.check, []).append(finding)
    for check, findings in shown.items():
        entry = CHECKS[check]
        yield from wrap(
            f"  {entry.severity}: {check} x{log.counts[check]:,}: {entry.title}", "    "
        )
        for finding in findings[:MAX_SHOWN]:
            yield from wrap(f"    {_place(finding, ' episode ')}: {finding.message}", "      ")
        if log.counts[check] > MAX_SHOWN:
            yield f"    ... and {log.counts[check] - min(len(findings), MAX_SHOWN):,} more"
        yield from wrap(f"    -> {entry.fix}", "       ")
        yield ""


def _place(finding: Finding, joint: str) -> str:
    episode = "" if finding.episode is None else f"{joint}{finding.episode}"
    return f"{finding.segment or finding.dataset}{episode}"


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
    rows = [(name, count, integer(count)) for name, count in largest(counts, TEXT_BARS)]
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


def write_audit_page(
    report: AuditReport,
    path: Path,
    *,
    drifts: Sequence[Drift] = (),
    compared: Sequence[str] = (),
    more: Sequence[tuple[str, Markup]] = (),
) -> None:
    """Write an audit as a page, with frames of a few of its episodes; see `audit_page`."""
    episodes = choose_episodes([Path(dataset.path) for dataset in report.datasets])
    made = datetime.datetime.now(datetime.UTC)
    page = audit_page(report, episodes, made=made, drifts=drifts, compared=compared, more=more)
    write_aside(path, page.encode())


def audit_page(
    report: AuditReport,
    episodes: Sequence[ShownEpisode],
    *,
    made: datetime.datetime,
    drifts: Sequence[Drift] = (),
    compared: Sequence[str] = (),
    more: Sequence[tuple[str, Markup]] = (),
) -> str:
    """Return an audit as HTML.

    `compared` names the two parts of the data between which `drifts` was measured. `more` is the
    title and the content of further sections.
    """
    total = report.total
    details = {group: _detail_rows(named) for group, named in total.components.items()}
    return render_page(
        "audit.html.j2",
        title="Audit of " + (", ".join(d.path for d in report.datasets) or "nothing"),
        report=report,
        made=f"{made:%Y-%m-%d %H:%M} UTC",
        sentences=[*_sentences(report)],
        key_figures=_key_figures(report),
        **_findings(report),
        drifts=[_drift_row(drift) for drift in drifts[:MAX_DRIFTS]],
        seen_drifts=SEEN_DRIFTS,
        drift_counts=Counter(drift.verdict for drift in drifts),
        drift_total=len(drifts),
        compared=compared,
        episodes=episodes,
        more=more,
        episode_plots=[
            *_plot("Returns", total.returns, "Return of an episode"),
            *_plot("Lengths", total.lengths, "Steps of an episode"),
        ],
        policies=_policy_counts(total),
        staleness=staleness_text(total),
        driving_plots=[*_driving_plots(total)],
        counts={name: largest(counts, MAX_BARS) for name, counts in total.counts.items() if counts},
        reward_shares=largest(total.reward_shares, MAX_BARS),
        expert=[
            (text, total.expert_shares[name])
            for name, text in EXPERT_SHARES.items()
            if name in total.expert_shares
        ],
        earned=[(row[0], row[1]) for row in details.get("reward_terms", ())],
        coverage=_coverage(total.coverage),
        datasets=[
            (*dataset_row(d), number(d.summary.returns.moments.document()["mean"], 4))
            for d in report.datasets
        ],
        detail_heads=("name", *DETAILS),
        details=details,
    )


def _key_figures(report: AuditReport) -> list[tuple[str, str, str]]:
    total = report.total
    ratio = f", {total.bytes_raw / total.bytes_on_disk:.1f}x" if total.bytes_on_disk else ""
    log = report.log
    found = [plural(log.count("error"), "error"), plural(log.count("warning"), "warning")]
    found.append(plural(log.count("info"), "note"))
    length, episode_return = (d.sample.quantiles((0.5,))[0] for d in (total.lengths, total.returns))
    simulated = f"{duration(total.simulated_seconds)} simulated"
    raw = f"{file_size(total.bytes_raw)} raw{ratio}"
    mean = total.returns.moments.document()["mean"]
    return [
        ("Findings", integer(sum(log.counts.values())), ", ".join(found)),
        ("Episodes", integer(total.episodes), f"median {number(length, 4)} steps"),
        ("Steps", integer(total.steps), simulated),
        ("Segments", integer(total.segments), f"{len(report.damaged):,} with errors"),
        ("On disk", file_size(total.bytes_on_disk), raw),
        ("Mean return", number(mean, 4), f"median {number(episode_return, 4)}"),
    ]


def _sentences(report: AuditReport) -> Iterator[str]:
    log, total = report.log, report.total
    if report.verdict == "ok":
        yield f"None of {len(CHECKS)} checks found an error or a warning."
    else:
        counts = (("error", log.count("error")), ("warning", log.count("warning")))
        yield " and ".join(plural(count, noun) for noun, count in counts if count) + " found."
        if report.damaged:
            yield f"{plural(len(report.damaged), 'segment')} should not be learned from."
    if report.strict:
        yield "Strict: warnings count as errors."
    if report.sample < 1.0:
        read = f"{total.segments_read:,} of {plural(total.segments, 'segment')}"
        yield f"A sample: data of {read} read, files of all."
    if not report.complete:
        yield "Stopped early: only the segments audited so far are covered."


def _findings(report: AuditReport) -> dict[str, object]:
    """Return the checks that found something, their first findings, and the worst episodes."""
    counts, order = report.log.counts, ("error", "warning", "info")
    found = [name for name in CHECKS if counts.get(name)]
    found.sort(key=lambda name: order.index(CHECKS[name].severity))
    kept: dict[str, list[Finding]] = {name: [] for name in found}
    for finding in report.findings:
        kept[finding.check].append(finding)
    checks, offenders = [], []
    for name, findings in kept.items():
        check = CHECKS[name]
        cells = (integer(counts[name]), check.title, check.fix)
        checks.append((name, "", check.severity, check.severity, cells))
        lines = [(_place(finding, ":"), finding.message) for finding in findings[:MAX_OFFENDERS]]
        offenders.append((name, counts[name], lines))
    worst = []
    for episode in report.worst:
        kinds = ((episode.errors, "error"), (episode.warnings, "warning"))
        text = ", ".join(plural(count, noun) for count, noun in kinds if count)
        place = f"{episode.segment}:{episode.episode}"
        worst.append((place, f"{text}: {', '.join(episode.checks)}"))
    quiet = [(n, check.severity, check.title) for n, check in CHECKS.items() if not counts.get(n)]
    return {"checks": checks, "offenders": offenders, "worst": worst, "quiet": quiet}


def _drift_row(drift: Drift) -> tuple[str, str, str, str, tuple[str, ...]]:
    figures = (f"{drift.psi:.2f}", f"{drift.ks:.2f}", *map(number, drift.medians))
    return drift.name, "", drift.verdict, DRIFT_KINDS[drift.verdict], figures


def _driving_plots(total: Summary) -> Iterator[tuple[str, Markup, str]]:
    """Yield title, plot and note of each action and of a few components of the vector."""
    actions = total.components.get("action", {})
    for name, known in itertools.islice(actions.items(), MAX_ACTIONS):
        if (bins := Bins.of(known.sample.values)) is not None:
            near, share = near_zero(known)
            note = f"{percent(share)} of the steps lie within ±{number(near)} of zero."
            yield f"Action: {name}", histogram(bins.edges, bins.counts, name=name), note
    vector = [*total.components.get("vector", {}).items()]
    for column in key_components(tuple(name for name, _ in vector)):
        name, known = vector[column]
        yield from _plot(name, known, name)


def _plot(title: str, known: Distribution, axis: str) -> Iterator[tuple[str, Markup, str]]:
    """Yield title, plot and note of a distribution, if it has values."""
    if (bins := Bins.of(known.sample.values)) is None:
        return
    p5, median, p95 = known.sample.quantiles((0.05, 0.5, 0.95))
    sampled = known.moments.count > SAMPLE_SIZE
    source = f", in a uniform sample of {SAMPLE_SIZE:,}" if sampled else ""
    note = f"{axis}: nine in ten from {number(p5, 4)} to {number(p95, 4)}{source}."
    drawn = histogram(bins.edges, bins.counts, name=axis, marks={"median": median})
    yield title, drawn, note


def _policy_counts(total: Summary) -> list[tuple[str, float]]:
    """Return episodes per policy version; nothing if no policy drove."""
    versions = total.counts.get("policy_version", Counter())
    if not set(versions) - {"-1"}:
        return []
    named = {"no policy" if k == "-1" else f"version {k}": n for k, n in versions.items()}
    return largest(named, MAX_BARS)


def _coverage(
    pairs: Mapping[tuple[str, str], int],
) -> tuple[list[str], list[tuple[str, list[tuple[int, int]]]]] | None:
    """Return heads and rows of the table of towns and scenarios; None if it would say nothing.

    A row is a town, and the count and the darkness in percent for each scenario.
    """
    scenarios, towns = (sorted({pair[side] for pair in pairs}, key=_natural) for side in (0, 1))
    if len(pairs) < 2 or max(len(scenarios), len(towns)) > MAX_SIDE:
        return None
    most = math.log1p(max(pairs.values()))
    rows = []
    for town in towns:
        counts = [pairs.get((scenario, town), 0) for scenario in scenarios]
        heats = [round(12 + 58 * math.log1p(count) / most) if count else 0 for count in counts]
        rows.append((town, list(zip(counts, heats, strict=True))))
    return ["town \\ scenario", *scenarios], rows


def _detail_rows(named: Mapping[str, Distribution]) -> list[tuple[str, ...]]:
    documents = {name: known.document() for name, known in named.items()}
    return [
        (name, *(number(document[key], 4) for key in DETAILS.values()))
        for name, document in documents.items()
    ]


def _natural(name: str) -> tuple[bool, float, str]:
    """Return a key that sorts numbers by value, before names."""
    return (not name.isdecimal(), float(name) if name.isdecimal() else 0.0, name)


def choose_episodes(datasets: Sequence[Path]) -> tuple[ShownEpisode, ...]:
    """Choose a few episodes and read frames of each; skip those that are damaged.

    These are the episodes of lowest, highest and median return, and one for each other end and
    each other driver.
    """
    chosen: list[ShownEpisode] = []
    size_bytes = 0
    for why, episode in _ranked([*_candidates(datasets)]):
        try:
            shown = ShownEpisode.of(episode, why)
        except (Avtd3Error, OSError):
            continue
        size_bytes += sum(len(image) for strip in shown.strips for image in strip.images)
        if len(chosen) == MAX_EPISODES or size_bytes > MAX_IMAGE_BYTES:
            break
        chosen.append(shown)
    return tuple(chosen)


def _candidates(datasets: Sequence[Path]) -> Iterator[Episode]:
    for path in datasets:
        try:
            held = Dataset.open(path).snapshot().segments
        except (Avtd3Error, OSError):
            continue
        numbers = np.linspace(0, len(held) - 1, min(len(held), MAX_SEGMENTS)).astype(np.int64)
        for reader in readable((held[n] for n in numbers.tolist()), []):
            yield from (Episode(reader, number) for number in range(len(reader.table)))


def _ranked(candidates: Sequence[Episode]) -> Iterator[tuple[str, Episode]]:
    """Yield episodes and why to show them, the most interesting first, none of them twice."""
    finite = (c for c in candidates if math.isfinite(c.episode_return))
    ranked = sorted(finite, key=lambda c: c.episode_return)
    if not ranked:
        return
    count = len(ranked)
    places = {"lowest return": 0, "highest return": count - 1, "median return": count // 2}
    taken: list[int] = []
    for why, place in places.items():
        if place not in taken:
            taken.append(place)
            yield why, ranked[place]
    for label, value_of in (("ended by", _end_reason), ("driven by", _driver)):
        known = {value_of(ranked[place]) for place in taken}
        for place in sorted(range(count), key=lambda n: -ranked[n].length):
            if (value := value_of(ranked[place])) not in known:
                known.add(value)
                taken.append(place)
                yield f"{label} {value}", ranked[place]


def _end_reason(episode: Episode) -> str:
    return episode.end_reason


def _driver(episode: Episode) -> str:
    return str(episode.attributes.get("driver", ""))
