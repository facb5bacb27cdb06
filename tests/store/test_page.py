"""The audit's page: what it says, and that nothing in a dataset can make it do anything else."""

import datetime
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from avtd3.store.audit.audit import audit
from avtd3.store.audit.bins import Bins
from avtd3.store.audit.drift import Drift, drift_between
from avtd3.store.audit.findings import CHECKS
from avtd3.store.dataset import Dataset
from avtd3.store.render.charts import histogram, line, nice_ticks, number
from avtd3.store.render.drift import MAX_DRIFTS, SEEN_DRIFTS, drift_section
from avtd3.store.render.page import MAX_OFFENDERS, render_page, write_page
from avtd3.store.render.reels import MAX_REELS, pick_reels
from avtd3.store.render.tables import MAX_BARS, bars, heat_table
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

SPEC = make_spec(height=16, width=16)
MADE = datetime.datetime(2026, 11, 21, 5, 30, tzinfo=datetime.UTC)
EVIL = '<script>alert("1")</script>'


class Page(HTMLParser):
    """The tags of a page, its text, and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.links, self.open = [], "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "srcset", "data")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def sound_episode(length, seed=0, spec=SPEC, **info):
    """An episode that no check objects to."""
    episode = make_episode(spec, length, seed, **info)
    if episode.frames is not None:
        noise = np.random.default_rng(seed).integers(60, 200, episode.frames.shape)
        episode.frames[:] = noise.astype(np.uint8)
    return episode


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "data"
    drivers = ("expert", "random", "policy")
    episodes = [
        sound_episode(5 + n, n, driver=drivers[n % 3], scenario=n % 2, policy_version=-1)
        for n in range(12)
    ]
    return write_dataset(path, SPEC, episodes)


def page_of(*paths, **config):
    report = audit(list(paths), **config)
    return Page(render_page(report, pick_reels(list(paths)), made=MADE))


def test_a_sound_dataset_makes_a_page_with_everything(sound):
    page = page_of(sound.path)
    for word in ("✓ ok", ["12", "episodes"][0], "Returns", "expert", "collision", "town-*"):
        assert word in page.text
    assert f"None of {len(CHECKS)} checks" in page.text
    assert not page.open
    assert len(page.of("img")) >= 6
    assert [a for a in page.of("svg") if "Histogram" in a["aria-label"]]


def test_the_page_needs_nothing_else(sound, tmp_path):
    report = audit([sound.path])
    write_page(report, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    page = Page(text)
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    policy = page.of("meta")[1]["content"]
    assert policy.startswith("default-src 'none'")
    assert not page.of("script")
    assert len(text) < 3_000_000


def test_the_page_can_be_read_without_seeing_it(sound):
    page = page_of(sound.path)
    for landmark in ("header", "main", "footer", "h1"):
        assert len(page.of(landmark)) == 1
    assert page.of("html")[0]["lang"] == "en"
    headings = [a.get("id") for a in page.of("h2")]
    assert [a["aria-labelledby"] for a in page.of("section")] == headings
    assert all("alt" in picture for picture in page.of("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.of("svg"))
    assert all(head["scope"] in ("row", "col") for head in page.of("th"))
    assert len(page.of("table")) == len(page.of("caption"))


def test_findings_are_told_with_their_places(sound, tmp_path):
    path = tmp_path / "data"
    write_dataset(path, SPEC, [make_episode(SPEC, 6, n) for n in range(3)])
    dataset = Dataset.open(path)
    (segment,) = dataset.segment_ids()
    (path / "segments" / segment / "reward" / "c" / "0").write_bytes(b"torn")
    page = page_of(path)
    assert "✕ errors" in page.text
    assert "file-size" in page.text
    assert CHECKS["file-size"].mend in page.text
    assert segment in page.text
    assert "1 segment should not be learned from" in page.text


def test_the_worst_offenders_are_listed_up_to_a_number(tmp_path):
    spec = make_spec(height=8, width=8)
    episodes = [make_episode(spec, 3, n) for n in range(MAX_OFFENDERS + 5)]
    for episode in episodes:
        episode.frames[:] = 0
    path = tmp_path / "data"
    write_dataset(path, spec, episodes)
    page = page_of(path)
    assert "! warnings" in page.text
    assert f"black-frames: {MAX_OFFENDERS + 5} findings" in page.text
    assert "… and 5 more" in page.text


def test_no_string_of_a_dataset_becomes_html(tmp_path):
    names = ("driver", "town", "weather", "world")
    episode = sound_episode(6, 1, **dict.fromkeys(names, EVIL))
    episode.reason = EVIL
    spec = type(SPEC).from_json(
        SPEC.to_json()
        | {"vector_names": [EVIL, "b", "c"], "reward_terms": ["</style>" + EVIL, "x"]}
    )
    path = tmp_path / f"data{EVIL.replace('/', '')}"
    write_dataset(path, spec, [episode])
    text = render_page(audit([path]), pick_reels([path]), made=MADE)
    page = Page(text)
    assert not page.of("script")
    assert len(page.of("style")) == 1
    assert "<script" not in text
    assert EVIL in page.text


def test_the_page_stays_small_whatever_a_dataset_holds(tmp_path):
    spec = make_spec(height=8, width=8, vector=3000, terms=2000)
    named = {"vector_names": [f"{'v' * 300}{n}" for n in range(3000)]}
    spec = type(spec).from_json(spec.to_json() | named)
    episodes = [
        sound_episode(2, n, spec, town=f"{'t' * 500}{n}a", scenario=n, driver="d" * 500)
        for n in range(40)
    ]
    write_dataset(tmp_path / "data", spec, episodes)
    text = render_page(audit([tmp_path / "data"]), pick_reels([tmp_path / "data"]), made=MADE)
    assert len(text) < 1_000_000
    assert "… and 2,700 more" in text


def test_an_empty_dataset_makes_a_page(tmp_path):
    Dataset.create(tmp_path / "data", SPEC)
    page = page_of(tmp_path / "data")
    assert "! warnings" in page.text
    assert not page.of("img")


def test_an_audit_that_was_stopped_says_so(sound):
    assert "Stopped early" in page_of(sound.path, should_stop=lambda: True).text


def test_a_dataset_without_camera_or_terms_makes_a_page(tmp_path):
    spec = make_spec(image=False, vector=1, terms=0)
    path = tmp_path / "data"
    write_dataset(path, spec, [make_episode(spec, 4, n) for n in range(2)])
    page = page_of(path)
    assert not page.of("img")
    assert "Returns" in page.text


def test_actions_speed_coverage_and_staleness_are_drawn(tmp_path):
    named = {"vector_names": ["speed_mps", "point_1_m", "point_2_m"]}
    spec = type(SPEC).from_json(SPEC.to_json() | named)
    episodes = [
        sound_episode(20, n, spec, scenario=n % 2, policy_version=n, policy_digest="0" * 64)
        for n in range(4)
    ]
    for episode in episodes:
        episode.action[:15, 0] = 0.0
        episode.action[15:, 0] = 0.5
    write_dataset(tmp_path / "data", spec, episodes)
    page = page_of(tmp_path / "data")
    assert "75% of the steps lie within ±0.025 of zero" in page.text
    labels = [a["aria-label"] for a in page.of("svg")]
    assert any(label.startswith("Histogram of speed_mps, 84 values") for label in labels)
    assert not any(label.startswith("Histogram of point_1_m") for label in labels)
    assert "25% of the episodes are of version 3, the newest here; half are 2 or more" in page.text
    assert "Episodes by scenario and town" in page.text


def test_the_worst_episodes_are_named_as_the_command_takes_them(tmp_path):
    episodes = [sound_episode(30, n) for n in range(3)]
    episodes[1].frames[4:9] = 0
    write_dataset(tmp_path / "data", SPEC, episodes)
    (segment,) = Dataset.open(tmp_path / "data").segment_ids()
    page = page_of(tmp_path / "data")
    assert f"{segment}:1" in page.text
    assert "The worst 1 episode" in page.text


def test_drift_between_two_datasets_is_told(tmp_path):
    for name, shift in (("before", 0.0), ("after", 0.3)):
        episodes = [sound_episode(80, n) for n in range(4)]
        for episode in episodes:
            episode.action[:, 0] = episode.action[:, 0] / 4 + np.float32(shift)
        write_dataset(tmp_path / name, SPEC, episodes, collector=name)
    report = audit([tmp_path / "before", tmp_path / "after"])
    drifts = drift_between(*(dataset.summary for dataset in report.datasets))
    text = render_page(report, (), made=MADE, drifts=drifts, compared=("a<b>", "after"))
    page = Page(text)
    assert "From a<b> to after" in page.text
    assert "another population" in page.text
    assert "action steer" in page.text
    assert "Drift" not in Page(render_page(report, (), made=MADE)).text


def test_only_the_most_drifted_quantities_are_seen_at_once():
    drifts = [
        Drift(name=f"v{n}", psi=1.0 - n / 100, ks=0.1, medians=(0.0, 1.0), verdict="other")
        for n in range(50)
    ]
    text = drift_section(drifts, ("a", "b"))
    seen, folded = str(text).split("<details>")
    assert seen.count("<tr>") == 1 + SEEN_DRIFTS
    assert folded.count("<tr>") == 1 + MAX_DRIFTS - SEEN_DRIFTS
    assert f"{MAX_DRIFTS - SEEN_DRIFTS} more quantities" in folded
    assert "<details>" not in str(drift_section(drifts[:SEEN_DRIFTS], ("a", "b")))
    assert "1 more quantity," in str(drift_section(drifts[: SEEN_DRIFTS + 1], ("a", "b")))


def test_several_datasets_are_compared(sound, tmp_path):
    write_dataset(tmp_path / "other", SPEC, [sound_episode(4, 50)])
    text = page_of(sound.path, tmp_path / "other").text
    assert "Datasets" in text
    assert str(tmp_path / "other") in text


def test_reels_show_the_extremes_and_every_kind_of_end(sound):
    reels = pick_reels([sound.path])
    why = [reel.why for reel in reels]
    assert why[:3] == ["lowest return", "highest return", "median return"]
    returns = [r.record.facts["episode_return"] for r in reels]
    assert returns[0] == min(returns)
    assert returns[1] == max(returns)
    assert len({reel.record.place.name for reel in reels}) == len(reels) <= MAX_REELS
    assert {r.record.facts["driver"] for r in reels} == {"expert", "random", "policy"}


def test_reels_pass_over_damage(sound, tmp_path):
    path = tmp_path / "data"
    write_dataset(path, SPEC, [sound_episode(6, 1)])
    write_dataset(path, SPEC, [sound_episode(6, 2)], collector="other")
    segment = path / "segments" / Dataset.open(path).segment_ids()[0]
    (file,) = segment.glob("frames/c/0/0/0/0")
    file.write_bytes(bytes(file.stat().st_size))
    assert len(pick_reels([path])) == 1


def test_large_frames_become_small_pictures(tmp_path):
    spec = make_spec(height=300, width=500, channels=3, vector=0)
    path = tmp_path / "data"
    write_dataset(path, spec, [make_episode(spec, 2)])
    (reel,) = pick_reels([path])
    assert reel.size == (168, 101)
    assert sum(map(len, reel.images)) < 200_000


def binned(values):
    bins = Bins.of(values)
    assert bins is not None
    return bins


def test_a_histogram_draws_a_bar_for_each_bin_with_values():
    bins = Bins(edges=np.arange(4.0), counts=np.array([2.0, 0.0, 8.0]))
    drawing = histogram(bins, name="x", marks={"median": 2.5, "none": None, "far": 9.0})
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([0-9.]+)"', drawing)]
    assert len(heights) == 2
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)
    assert "median 2.5" in drawing
    assert "far" not in drawing
    assert "2 .. 3: 8 (80.0%)" in drawing


def drawn_path(values, shown=(0.0, 1.0)):
    (path,) = re.findall(r' d="([^"]*)"', line(np.array(values), name="x", shown=shown))
    return path


def test_a_line_has_gaps_where_values_are_missing():
    path = drawn_path([0.0, 1.0, np.nan, 1.0, 0.0])
    assert path.count("M") == 2
    assert path.count("L") == 2
    assert drawn_path([np.nan, np.inf]) == ""


def test_a_line_stays_in_its_strip():
    assert drawn_path([0.5, 1.0, -7.0]) == drawn_path([0.5, 9.0, 0.0])


def test_bars_add_up_and_the_rest_is_one_row():
    rows = [(f"n{n}", float(100 - n), f"{100 - n}") for n in range(MAX_BARS + 3)]
    page = Page(bars(rows, name="n", caption="c"))
    assert len([a for a in page.of("th") if a["scope"] == "row"]) == MAX_BARS + 1
    assert "3 others" in page.text


def test_a_table_of_pairs_holds_each_count_at_its_place():
    made = heat_table(
        {("0", "a"): 3, ("10", "b"): 1, ("2", "a"): 5}, rows="r", columns="c", caption="x"
    )
    rows = [re.findall(r">([^<>]+)<", row) for row in made.split("<tr>")[2:]]
    assert rows == [["0", "3", "0"], ["2", "5", "0"], ["10", "0", "1"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (12345.0, "12.3k"), (0.25, "0.25"), (-3e6, "-3M"), (1e-9, "1.0e-09")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("low", "high"), [(0.0, 30.0), (-112.0, 325.0), (1e-8, 2e-8), (5.0, 5.5)])
def test_ticks_are_round_and_enclose(low, high):
    ticks = nice_ticks(low, high, 5)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 9
