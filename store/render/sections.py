"""What the data of an audit look like, section by section, as HTML."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from avtd3.store.audit.bins import Bins, near_zero
from avtd3.store.audit.report import AuditReport
from avtd3.store.audit.statistics import SAMPLE_SIZE, Distribution, Moments, Summary
from avtd3.store.audit.wording import duration, size
from avtd3.store.render.charts import histogram, number
from avtd3.store.render.episode_record import telling
from avtd3.store.render.markup import Markup, element
from avtd3.store.render.tables import bars, heat_table, scrolling, table

COUNTED = (
    ("town", "Towns"),
    ("scenario", "Scenarios"),
    ("weather", "Weather"),
    ("world", "Worlds"),
)

MAX_SIDE = 30
"""Rows and columns of the table of scenarios and towns; with more it is left out."""
MAX_ACTIONS = 8
"""Components of the action that are drawn, the first ones."""
DETAILS = {
    "mean": "mean",
    "spread": "std",
    "least": "min",
    "5 %": "p5",
    "median": "p50",
    "95 %": "p95",
    "largest": "max",
}
"""Heads of the table of numbers, and their keys in a distribution's document."""


def key_figures(report: AuditReport) -> Markup:
    """The figures that a reader looks for first."""
    total = report.total
    ratio = f", {total.bytes_raw / total.bytes_on_disk:.1f}x" if total.bytes_on_disk else ""
    median = total.returns.sample.quantiles((0.5,))[0]
    kinds = ", ".join(f"{report.log.count(s):,} {s}s" for s in ("error", "warning", "info"))
    rows = [
        ("Findings", f"{sum(report.log.counts.values()):,}", kinds.replace("infos", "notes")),
        ("Episodes", f"{total.episodes:,}", _median_length(total.lengths)),
        ("Steps", f"{total.steps:,}", f"{duration(total.simulated_seconds)} simulated"),
        ("Segments", f"{total.segments:,}", f"{len(report.damaged):,} with errors"),
        ("On disk", size(total.bytes_on_disk), f"{size(total.bytes_raw)} raw{ratio}"),
        ("Mean return", _mean(total.returns.moments), f"median {_figure(median)}"),
    ]
    return element(
        "dl",
        [
            element(
                "div",
                element("dt", name),
                element("dd", value),
                element("dd", note, class_="note"),
            )
            for name, value, note in rows
        ],
        class_="keys",
    )


def data_sections(report: AuditReport) -> Iterator[tuple[str, Markup]]:
    """Title and content of each section that the audit has data for."""
    total = report.total
    for title, cards in (
        ("Episodes", [*_episodes(total)]),
        ("Driving", [*_driving(total)]),
        ("Rewards", [*_rewards(report)]),
        ("Coverage", [*_coverage(total)]),
    ):
        if cards:
            yield title, element("div", cards, class_="cards")
    if len(report.datasets) > 1:
        yield "Datasets", element("div", _datasets(report), class_="card")
    if total.components:
        yield "Numbers in detail", element("div", _details(total.components))


def card(title: str, content: Markup, note: str = "", *, wide: bool = False) -> Markup:
    """A box with a heading, and below its content a line that explains it."""
    return element(
        "div",
        element("h3", title),
        content,
        element("p", note, class_="note") if note else "",
        class_="card wide" if wide else "card",
    )


def _episodes(total: Summary) -> Iterator[Markup]:
    for title, distribution, axis in (
        ("Returns", total.returns, "Return of an episode"),
        ("Lengths", total.lengths, "Steps of an episode"),
    ):
        bins = Bins.of(distribution.sample.values)
        if bins is not None:
            (median,) = distribution.sample.quantiles((0.5,))
            plot = histogram(bins, name=axis, marks={"median": median})
            yield card(title, plot, _sampled(distribution, axis))
    for column, title in (("end_reason", "How episodes ended"), ("driver", "Who drove")):
        if counts := total.counts.get(column):
            yield card(title, counted(counts, column))
    versions = total.counts.get("policy_version", Counter())
    if set(versions) - {"-1"}:
        named = Counter(
            {"no policy" if k == "-1" else f"version {k}": v for k, v in versions.items()}
        )
        yield card("Which policy drove", counted(named, "policy version"), _staleness(versions))


def _staleness(versions: Mapping[str, int]) -> str:
    """How far behind the newest policy the driving ones are."""
    held = sorted((int(version), count) for version, count in versions.items())
    ages = [held[-1][0] - version for version, count in held for _ in range(count) if version >= 0]
    newest = f"version {held[-1][0]}, the newest here"
    if not any(ages):
        return f"Wherever a policy drove, it was {newest}."
    current = ages.count(0) / len(ages)
    middle = sorted(ages)[len(ages) // 2]
    behind = f"; half are {middle} or more versions behind" if middle else ""
    return f"Where a policy drove, {current:.0%} of the episodes are of {newest}{behind}."


def counted(counts: Mapping[str, int], name: str) -> Markup:
    """Episodes per value as bars, the most frequent first."""
    rows = [(value or "-", count, f"{count:,}") for value, count in Counter(counts).most_common()]
    return bars(rows, name=name.replace("_", " "), caption=f"Episodes by {name.replace('_', ' ')}")


def _driving(total: Summary) -> Iterator[Markup]:
    """What the actions and the telling numbers of the vector are like."""
    actions = total.components.get("action", {})
    for name, known in itertools.islice(actions.items(), MAX_ACTIONS):
        bins = Bins.of(known.sample.values)
        if bins is None:
            continue
        near, share = near_zero(known)
        note = f"{share:.0%} of the steps lie within ±{number(near)} of zero."
        yield card(f"Action: {name}", histogram(bins, name=name), note)
    vector = total.components.get("vector", {})
    names = tuple(vector)
    for name in (names[column] for column in telling(names)):
        bins = Bins.of(vector[name].sample.values)
        if bins is not None:
            (median,) = vector[name].sample.quantiles((0.5,))
            plot = histogram(bins, name=name, marks={"median": median})
            yield card(name, plot, _sampled(vector[name], name))


def _rewards(report: AuditReport) -> Iterator[Markup]:
    total = report.total
    shares = sorted(total.reward_shares.items(), key=lambda item: -item[1])
    if len(shares) > 1:
        rows = [(name, share, f"{share:.1%}") for name, share in shares]
        plot = bars(rows, name="reward term", caption="Share of each reward term", signed=True)
        note = "Share of each term in the sum of all terms' absolute values."
        yield card("Reward terms", plot, note)
    terms = total.components.get("reward_terms", {})
    if terms:
        rows_of_means = [[name, _mean(known.moments)] for name, known in terms.items()]
        heads = ["term", "mean of a step"]
        listed = table(heads, rows_of_means, caption="Reward terms", figures=heads[1:])
        note = f"At a discount of {report.gamma:g} no Q can exceed {_figure(report.q_bound)}."
        yield card("What a step earns", listed, note)


def _coverage(total: Summary) -> Iterator[Markup]:
    sides = (len({pair[side] for pair in total.coverage}) for side in (0, 1))
    if len(total.coverage) > 1 and max(sides) <= MAX_SIDE:
        caption = "Episodes by scenario and town"
        pairs = {(town, scenario): count for (scenario, town), count in total.coverage.items()}
        content = heat_table(pairs, rows="town", columns="scenario", caption=caption)
        yield card(caption, scrolling(content, caption), "Numbered towns of a kind together.")
    for column, title in COUNTED:
        if counts := total.counts.get(column):
            yield card(title, counted(counts, column))


def _datasets(report: AuditReport) -> Markup:
    heads = ["dataset", "episodes", "steps", "segments", "on disk", "mean return"]
    rows = []
    for dataset in report.datasets:
        held = dataset.summary
        counts = (f"{n:,}" for n in (held.episodes, held.steps, held.segments))
        on_disk = size(held.bytes_on_disk)
        rows.append([dataset.path, *counts, on_disk, _mean(held.returns.moments)])
    return table(heads, rows, caption="Datasets", figures=heads[1:])


def _details(components: Mapping[str, Mapping[str, Distribution]]) -> Sequence[Markup]:
    parts = []
    heads = ["name", *DETAILS]
    for group, named in components.items():
        rows = []
        for name, known in named.items():
            document = known.document()
            rows.append([name, *(_figure(document[key]) for key in DETAILS.values())])
        content = table(heads, rows, caption=group, figures=heads[1:])
        title = group.replace("_", " ")
        summary = element("summary", f"{title}: {len(rows)}")
        parts.append(element("details", summary, element("div", content, class_="card")))
    return parts


def _sampled(distribution: Distribution, axis: str) -> str:
    p5, p95 = distribution.sample.quantiles((0.05, 0.95))
    many = distribution.moments.count > SAMPLE_SIZE
    source = f", in a uniform sample of {SAMPLE_SIZE:,}" if many else ""
    return f"{axis}: nine in ten from {_figure(p5)} to {_figure(p95)}{source}."


def _median_length(lengths: Distribution) -> str:
    return f"median {_figure(lengths.sample.quantiles((0.5,))[0])} steps"


def _mean(moments: Moments) -> str:
    return _figure(moments.document()["mean"])


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "0" if text == "-0" else text
