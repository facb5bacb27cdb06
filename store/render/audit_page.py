"""Write an audit as one HTML page that needs nothing else: no script, network or other file."""

import datetime
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from avtd3.store.audit.drift import Drift
from avtd3.store.audit.findings import CHECKS, Finding
from avtd3.store.audit.report import AuditReport
from avtd3.store.audit.statistics import SAMPLE_SIZE, Bins, Distribution, Summary, near_zero
from avtd3.store.dataset import Dataset
from avtd3.store.episode import Episode
from avtd3.store.errors import Avtd3Error
from avtd3.store.files import write_aside
from avtd3.store.render.audit_text import MAX_ACTIONS, dataset_row, staleness_text
from avtd3.store.render.episode_view import ShownEpisode, key_components, readable
from avtd3.store.render.html import render_page
from avtd3.store.render.plots import histogram
from avtd3.store.render.text import (
    duration,
    file_size,
    integer,
    largest,
    number,
    percent,
    plural,
)

EXPERT_SHARES = {"drove": "the expert drove", "differing": "steps of others that differ"}
"""Shares of the expert that are drawn, and what they are called."""
MAX_OFFENDERS = 10
"""Findings of each check that are listed."""
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
        episode_plots=[*_episode_plots(total)],
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
        lines = [(_place(finding), finding.message) for finding in findings[:MAX_OFFENDERS]]
        offenders.append((name, counts[name], lines))
    worst = []
    for episode in report.worst:
        kinds = ((episode.errors, "error"), (episode.warnings, "warning"))
        text = ", ".join(plural(count, noun) for count, noun in kinds if count)
        place = f"{episode.segment}:{episode.episode}"
        worst.append((place, f"{text}: {', '.join(episode.checks)}"))
    quiet = [(n, check.severity, check.title) for n, check in CHECKS.items() if not counts.get(n)]
    return {"checks": checks, "offenders": offenders, "worst": worst, "quiet": quiet}


def _place(finding: Finding) -> str:
    episode = "" if finding.episode is None else f":{finding.episode}"
    return f"{finding.segment or finding.dataset}{episode}"


def _drift_row(drift: Drift) -> tuple[str, str, str, str, tuple[str, ...]]:
    figures = (f"{drift.psi:.2f}", f"{drift.ks:.2f}", *map(number, drift.medians))
    return drift.name, "", drift.verdict, DRIFT_KINDS[drift.verdict], figures


def _episode_plots(total: Summary) -> Iterator[tuple[str, Markup, str]]:
    """Yield title, plot and note of the distribution of returns and of lengths."""
    yield from _plot("Returns", total.returns, "Return of an episode")
    yield from _plot("Lengths", total.lengths, "Steps of an episode")


def _driving_plots(total: Summary) -> Iterator[tuple[str, Markup, str]]:
    """Yield title, plot and note of each action and of a few components of the vector."""
    actions = total.components.get("action", {})
    for name, known in itertools.islice(actions.items(), MAX_ACTIONS):
        if (bins := Bins.of(known.sample.values)) is not None:
            near, share = near_zero(known)
            note = f"{percent(share)} of the steps lie within ±{number(near)} of zero."
            yield f"Action: {name}", histogram(bins.edges, bins.counts, name=name), note
    vector = total.components.get("vector", {})
    names = tuple(vector)
    for name in (names[column] for column in key_components(names)):
        yield from _plot(name, vector[name], name)


def _plot(title: str, known: Distribution, axis: str) -> Iterator[tuple[str, Markup, str]]:
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
        for reader in readable(held[n] for n in numbers.tolist()):
            yield from (Episode(reader, number) for number in range(len(reader.table)))


def _ranked(candidates: Sequence[Episode]) -> Iterator[tuple[str, Episode]]:
    """Yield episodes and why to show them, the most interesting first, none of them twice."""
    finite = (c for c in candidates if math.isfinite(c.episode_return))
    ranked = sorted(finite, key=lambda c: c.episode_return)
    if not ranked:
        return
    first = {"lowest return": 0, "highest return": -1, "median return": len(ranked) // 2}
    taken: list[Episode] = []
    for why, place in first.items():
        if not any(ranked[place] is other for other in taken):
            taken.append(ranked[place])
            yield why, ranked[place]
    for label, value_of in (("ended by", _end_reason), ("driven by", _driver)):
        known = {value_of(candidate) for candidate in taken}
        for candidate in sorted(ranked, key=lambda c: -c.length):
            value = value_of(candidate)
            if value not in known:
                known.add(value)
                taken.append(candidate)
                yield f"{label} {value}", candidate


def _end_reason(episode: Episode) -> str:
    return episode.end_reason


def _driver(episode: Episode) -> str:
    return str(episode.attributes.get("driver", ""))
