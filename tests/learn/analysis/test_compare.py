import json
import math

import numpy as np
import pytest

from avtd3.learn.analysis.compare import CompareConfig, compare
from avtd3.learn.analysis.metric_names import DirectionBook, Directions, NameBook, NameSet
from avtd3.store.errors import ConfigError

OURS = NameSet(name="avtd3", axis="updates", marks=("critic/loss", "critic/q_gap"))
OTHERS = NameSet(
    name="other", axis="steps", marks=("train/closs",), tags={"critic/loss": "train/closs"}
)
BOOKS = (NameBook(sets=(OURS, OTHERS)),) * 2
TABLES = DirectionBook(others=Directions(higher=("time/fps",)))


def noisy(level, spread=0.1, count=100, seed=0, every=100):
    values = level + spread * np.random.default_rng(seed).normal(size=count)
    return [(every * (i + 1), float(value)) for i, value in enumerate(values)]


@pytest.fixture
def report(tmp_path, write_run):
    def make(before, after, **settings):
        first, second = tmp_path / "a", tmp_path / "b"
        for run, points in zip((first, second), (before, after), strict=True):
            if not run.exists():
                write_run(run, points)
        return compare(first, second, CompareConfig(**settings), BOOKS, TABLES)

    return make


def verdict(made, metric):
    return {change.metric: change.verdict for change in made.changes}[metric]


@pytest.mark.parametrize(
    ("metric", "before", "after", "expected"),
    [
        ("critic/loss", 2.0, 1.0, "better"),
        ("critic/loss", 1.0, 2.0, "worse"),
        ("episode/return", 1.0, 2.0, "better"),
        ("episode/return", 2.0, 1.0, "worse"),
        ("critic/q1_mean", 2.0, 1.0, "changed"),
        ("actor/loss", 2.0, 1.0, "changed"),
        ("critic/loss", 10.0, 10.0, "same"),
        ("critic/loss", 0.0, 0.0, "unclear"),
        ("episode/return", -2.0, -1.0, "better"),
    ],
)
def test_each_verdict(report, metric, before, after, expected):
    made = report({metric: noisy(before, seed=1)}, {metric: noisy(after, seed=2)})
    assert verdict(made, metric) == expected


def test_a_sure_change_that_does_not_matter_is_none(report):
    before = {"critic/loss": noisy(100.0, spread=1.0, count=2000)}
    after = {"critic/loss": noisy(101.0, spread=1.0, count=2000, seed=1)}
    made = report(before, after)
    assert verdict(made, "critic/loss") == "same"
    assert made.changes[0].interval[0] > 0
    assert verdict(report(before, after, margin=0.0), "critic/loss") == "worse"


def test_constants_are_compared_too(report):
    points = {"critic/loss": noisy(1.0, spread=0.0), "critic/q_gap": noisy(1.0, spread=0.0)}
    made = report(points, points | {"critic/q_gap": noisy(2.0, spread=0.0)})
    assert verdict(made, "critic/loss") == "same"
    assert verdict(made, "critic/q_gap") == "worse"


def test_points_that_are_not_finite(report):
    bad = [*noisy(1.0)[:-1], (10_000, math.nan)]
    made = report(
        {"critic/loss": noisy(1.0), "actor/loss": bad, "critic/q_gap": bad},
        {"critic/loss": bad, "actor/loss": noisy(1.0), "critic/q_gap": bad},
    )
    assert verdict(made, "critic/loss") == "worse"
    assert verdict(made, "actor/loss") == "better"
    assert verdict(made, "critic/q_gap") == "unclear"
    assert "1 of 20 points of the candidate are not finite" in made.changes[0].reason
    json.dumps(made.document(), allow_nan=False)


def test_few_points_are_unclear(report):
    made = report({"critic/loss": noisy(1.0, count=15)}, {"critic/loss": noisy(9.0, count=15)})
    assert verdict(made, "critic/loss") == "unclear"
    assert "expected at least 4" in made.changes[0].reason


def test_a_longer_run_is_compared_where_both_have_been(report):
    before = noisy(5.0, 0.01, 50) + [(s + 5000, v) for s, v in noisy(1.0, 0.01, 50)]
    made = report({"critic/loss": before}, {"critic/loss": noisy(5.0, 0.01, 50, seed=1)})
    assert verdict(made, "critic/loss") == "same"
    assert "continues to 10,000; both are compared up to 5,000" in made.notices[0]
    made = report({}, {}, align="end")
    assert verdict(made, "critic/loss") == "worse"
    assert made.changes[0].before == pytest.approx(1.0, abs=0.1)


def test_metrics_of_one_run_are_listed(report):
    made = report(
        {"critic/loss": noisy(1.0), "actor/loss": noisy(1.0)},
        {"critic/loss": noisy(1.0), "critic/q_gap": noisy(1.0)},
    )
    assert made.only_baseline == ("actor/loss",)
    assert made.only_candidate == ("critic/q_gap",)
    assert "only in the baseline: actor/loss" in made.summary()


def test_only_some_metrics(report):
    points = {"critic/loss": noisy(1.0), "actor/loss": noisy(1.0)}
    made = report(points, points, metrics=("critic/*",))
    assert [change.metric for change in made.changes] == ["critic/loss"]
    with pytest.raises(ConfigError, match="matches no metric"):
        report(points, points, metrics=("criti/*",))


def test_runs_of_two_writers(tmp_path, write_run, write_foreign):
    write_foreign(tmp_path / "a", {"train/closs": noisy(2.0)})
    write_run(tmp_path / "b", {"critic/loss": noisy(1.0)})
    made = compare(tmp_path / "a", tmp_path / "b", CompareConfig(), BOOKS, TABLES)
    assert verdict(made, "critic/loss") == "better"
    assert "the baseline's steps are steps, the candidate's updates" in made.notices[-1]


def test_damage_is_reported(report, tmp_path, write_run):
    write_run(tmp_path / "a", {"critic/loss": noisy(1.0)})
    (path,) = (tmp_path / "a" / "events").iterdir()
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    made = report({}, {"critic/loss": noisy(1.0)})
    assert any("baseline: " in note and "checksum" in note for note in made.notices)


def test_the_worst_stands_first(report):
    before = {m: noisy(1.0) for m in ("actor/loss", "critic/loss", "critic/q_gap")}
    after = {"actor/loss": noisy(9.0), "critic/loss": noisy(0.5), "critic/q_gap": noisy(3.0)}
    made = report(before, after)
    assert [change.verdict for change in made.changes] == ["worse", "better", "changed"]
    assert made.sentence() == "3 shared metrics: 1 worse, 1 better, 1 changed"


def test_reports_lead_with_what_changed_and_count_the_rest(report):
    before = {
        "critic/loss": noisy(1.0),
        "critic/q_gap": noisy(1.0),
        "actor/loss": noisy(1.0, spread=0.0),
        "actor/q_mean": noisy(1.0, count=15),
        "critic/q_std": noisy(0.0),
    }
    after = before | {"critic/loss": noisy(0.5, 0.0), "critic/q_gap": noisy(3.0, 0.0)}
    made = report(before, after)
    text = made.summary()
    worse, better, *_ = made.changes
    assert text.splitlines()[0] == f"1 worse: {worse.named()}; 1 better: {better.named()}"
    assert worse.named().startswith("critic/q_gap +")
    assert "actor/loss" not in text
    assert "others: 1 do not differ; 1 differ by no more than the noise; 1 have fewer" in text
    assert "--all lists them" in text
    whole = made.summary(everything=True)
    assert whole.index("critic/q_gap") < whole.index("actor/loss")
    assert "--all" not in whole
    markdown = made.markdown()
    assert markdown.index("critic/loss") < markdown.index("## Without a clear change")
    assert markdown.index("actor/loss") > markdown.index("## Without a clear change")


def test_a_comparison_without_changes_says_so_first(report):
    points = {"critic/loss": noisy(1.0, 0.0)}
    made = report(points, points)
    assert made.summary().splitlines()[0] == "no clear change in 1 shared metric"
    assert "No clear change." in made.markdown()


def test_the_document_is_stable(report):
    made = report({"critic/loss": noisy(2.0, 0.0)}, {"critic/loss": noisy(1.0, 0.0)})
    document = json.loads(json.dumps(made.document(), allow_nan=False))
    assert list(document) == [
        *("format", "baseline", "candidate", "window", "confidence", "margin", "counts"),
        *("metrics", "only_baseline", "only_candidate", "notices"),
    ]
    assert document["format"] == "avtd3.compare/1"
    assert document["counts"] == {"worse": 0, "better": 1, "changed": 0, "unclear": 0, "same": 0}
    assert list(document["baseline"]) == [
        *("run", "names", "axis", "last_step", "judged_to", "notices")
    ]
    assert document["metrics"] == [
        {
            "metric": "critic/loss",
            "direction": "lower",
            "before": 2.0,
            "after": 1.0,
            "change": -1.0,
            "share": -0.5,
            "interval": [-1.0, -1.0],
            "points": [20, 20],
            "verdict": "better",
            "reason": "beyond the noise; lower is better",
        }
    ]


GOLDEN = """\
# `B` against `A`

1 shared metric: 1 worse

| verdict | metric | before | after | change | 99% interval | why |
| --- | --- | ---: | ---: | ---: | ---: | --- |
| **worse** | `critic/loss` | 1 | 2 | +1 (+100%) | 1 to 1 | beyond the noise; lower is better |

- only in the candidate: `actor/loss`

Medians over the last 20% of the steps up to 10,000; intervals of 99%; changes below 5% are \
ignored. An interval covers the noise within these two runs, not the difference between seeds.
"""


def test_markdown(report, tmp_path):
    after = {"critic/loss": noisy(2.0, 0.0), "actor/loss": noisy(1.0)}
    made = report({"critic/loss": noisy(1.0, 0.0)}, after)
    text = made.markdown().replace(str(tmp_path / "a"), "A").replace(str(tmp_path / "b"), "B")
    assert text == GOLDEN


def test_directions():
    mine = Directions(higher=("critic/loss",), neither=("charts/*",))
    others = Directions(higher=("charts/SPS", "time/fps"), lower=("episode/return",))
    book = DirectionBook(own=mine, others=others)
    assert DirectionBook().of("critic/loss") == "lower"
    assert book.of("critic/loss") == "higher"
    assert book.of("episode/return") == "higher"
    assert book.of("reward/progress") == "higher"
    assert book.of("critic/q1_mean") == "neither"
    assert book.of("charts/SPS") == "neither"
    assert book.of("time/fps") == "higher"
    assert book.of("x") is None


@pytest.mark.parametrize(
    "settings", [{"window": 0.0}, {"window": 1.5}, {"confidence": 1.0}, {"margin": -1.0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CompareConfig(**settings)


def test_a_run_without_scalars_is_refused(report):
    with pytest.raises(ConfigError, match="b has logged no scalars yet"):
        report({"critic/loss": noisy(1.0)}, {})
