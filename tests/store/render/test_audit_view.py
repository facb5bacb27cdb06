"""The audit's page: its facts, and that nothing in a dataset can become HTML."""

import datetime
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from avtd3.store.audit.audit import audit
from avtd3.store.audit.drift import Drift, drift_between
from avtd3.store.audit.findings import CHECKS
from avtd3.store.dataset import Dataset
from avtd3.store.render.audit_view import (
    MAX_DRIFTS,
    MAX_EPISODES,
    MAX_OFFENDERS,
    SEEN_DRIFTS,
    audit_page,
    choose_episodes,
    write_audit_page,
)
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
    return Page(audit_page(report, choose_episodes(list(paths)), made=MADE))


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
    write_audit_page(report, tmp_path / "a.html")
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


def test_findings_are_reported_with_their_places(sound, tmp_path):
    path = tmp_path / "data"
    write_dataset(path, SPEC, [make_episode(SPEC, 6, n) for n in range(3)])
    dataset = Dataset.open(path)
    (segment,) = dataset.segment_ids()
    (path / "segments" / segment / "reward" / "c" / "0").write_bytes(b"torn")
    page = page_of(path)
    assert "✕ errors" in page.text
    assert "file-size" in page.text
    assert CHECKS["file-size"].fix in page.text
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
    text = audit_page(audit([path]), choose_episodes([path]), made=MADE)
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
    text = audit_page(audit([tmp_path / "data"]), choose_episodes([tmp_path / "data"]), made=MADE)
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
    assert "25% by the newest, version 3; 1.5 behind on average" in page.text
    assert "Episodes by scenario and town" in page.text


def test_the_table_of_scenarios_and_towns_holds_each_count_at_its_place(tmp_path):
    places = [("a", 0)] * 3 + [("b", 10)] + [("a", 2)] * 5
    episodes = [sound_episode(3, n, town=t, scenario=s) for n, (t, s) in enumerate(places)]
    write_dataset(tmp_path / "data", SPEC, episodes)
    text = audit_page(audit([tmp_path / "data"]), (), made=MADE)
    table = text[text.index("town \\ scenario") :].partition("</table>")[0]
    rows = [re.findall(r">([^<>\n]+)<", row) for row in table.split("<tr>")]
    assert rows == [["0", "2", "10"], ["a", "3", "5", "0"], ["b", "0", "0", "1"]]


def test_the_worst_episodes_are_named_as_the_command_takes_them(tmp_path):
    episodes = [sound_episode(30, n) for n in range(3)]
    episodes[1].frames[4:9] = 0
    write_dataset(tmp_path / "data", SPEC, episodes)
    (segment,) = Dataset.open(tmp_path / "data").segment_ids()
    page = page_of(tmp_path / "data")
    assert f"{segment}:1" in page.text
    assert "The worst 1 episode" in page.text


def test_drift_between_two_datasets_is_reported(tmp_path):
    for name, shift in (("before", 0.0), ("after", 0.3)):
        episodes = [sound_episode(80, n) for n in range(4)]
        for episode in episodes:
            episode.action[:, 0] = episode.action[:, 0] / 4 + np.float32(shift)
        write_dataset(tmp_path / name, SPEC, episodes, collector=name)
    report = audit([tmp_path / "before", tmp_path / "after"])
    drifts = drift_between(*(dataset.summary for dataset in report.datasets))
    text = audit_page(report, (), made=MADE, drifts=drifts, compared=("a<b>", "after"))
    page = Page(text)
    assert "From a<b> to after" in page.text
    assert "another population" in page.text
    assert "action steer" in page.text
    assert "Drift" not in Page(audit_page(report, (), made=MADE)).text


def test_only_the_most_drifted_quantities_are_seen_at_once(sound):
    drifts = [
        Drift(name=f"v{n}", psi=1.0 - n / 100, ks=0.1, medians=(0.0, 1.0), verdict="other")
        for n in range(50)
    ]

    def section(drifts):
        text = audit_page(report, (), made=MADE, drifts=drifts, compared=("a", "b"))
        return text[text.index("The most drifted") : text.index("KS: largest distance")]

    report = audit([sound.path])
    seen, folded = section(drifts).split("<details>")
    assert seen.count("<tr>") == 1 + SEEN_DRIFTS
    assert folded.count("<tr>") == 1 + MAX_DRIFTS - SEEN_DRIFTS
    assert f"{MAX_DRIFTS - SEEN_DRIFTS} more quantities" in folded
    assert "<details>" not in section(drifts[:SEEN_DRIFTS])
    assert "1 more quantity," in section(drifts[: SEEN_DRIFTS + 1])


def test_several_datasets_are_compared(sound, tmp_path):
    write_dataset(tmp_path / "other", SPEC, [sound_episode(4, 50)])
    text = page_of(sound.path, tmp_path / "other").text
    assert "Datasets" in text
    assert str(tmp_path / "other") in text


def test_the_extremes_and_every_kind_of_end_are_shown(sound):
    shown = choose_episodes([sound.path])
    why = [episode.why for episode in shown]
    assert why[:3] == ["lowest return", "highest return", "median return"]
    returns = [e.facts["episode_return"] for e in shown]
    assert returns[0] == min(returns)
    assert returns[1] == max(returns)
    assert len({e.name for e in shown}) == len(shown) <= MAX_EPISODES
    assert {e.facts["driver"] for e in shown} == {"expert", "random", "policy"}


def test_damaged_episodes_are_skipped(sound, tmp_path):
    path = tmp_path / "data"
    write_dataset(path, SPEC, [sound_episode(6, 1)])
    write_dataset(path, SPEC, [sound_episode(6, 2)], collector="other")
    segment = path / "segments" / Dataset.open(path).segment_ids()[0]
    (file,) = segment.glob("frames/c/0/0/0/0")
    file.write_bytes(bytes(file.stat().st_size))
    assert len(choose_episodes([path])) == 1


def test_large_frames_become_small_pictures(tmp_path):
    spec = make_spec(height=300, width=500, channels=3, vector=0)
    path = tmp_path / "data"
    write_dataset(path, spec, [make_episode(spec, 2)])
    (episode,) = choose_episodes([path])
    assert episode.strips[0].size == (168, 101)
    assert sum(len(image) for strip in episode.strips for image in strip.images) < 200_000
