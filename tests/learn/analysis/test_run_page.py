"""The page of a run: complete, true, safe against names from files, and no danger to the run."""

import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from avtd3.learn.analysis import run_page as module
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.analysis.run_page import RunPageCallback, choose_episodes, run_page
from avtd3.learn.callbacks import TrainCallback
from avtd3.learn.guards.alerts import read_alerts
from avtd3.learn.metrics import metric
from avtd3.learn.policy import Policy, PolicyActor
from avtd3.learn.trainer import train
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, StorageError
from avtd3.store.render.text import number, percent
from avtd3.tests.learn.pictured_run import (
    EVIL,
    make_pictured_run,
    pictured_config,
    pictured_dataset,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_pictured_run(tmp_path_factory.mktemp("pictured"))


@pytest.fixture(scope="module")
def text(run):
    return run_page(run)


def main_of(text):
    main = text[text.index("<main>") : text.index("</main>") + 7].replace("<wbr>", "")
    return ET.fromstring(re.sub(r"(<(?:img|br)\b[^>]*)>", r"\1/>", main))


def words_of(text):
    return " ".join("".join(main_of(text).itertext()).split())


def test_nothing_from_a_file_becomes_html(text):
    assert text.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in text
    for word in ("<script", "<img src=x", "http://", "https://", "<link", "@import", "url("):
        assert word not in text


def test_every_metric_has_a_curve_with_every_point(run, text):
    curves = read_log(run / "events").curves
    plots = {
        (plot.get("aria-label") or "").partition(" over gradient updates. ")[0]: plot
        for plot in main_of(text).iter("svg")
        if " over gradient updates. " in (plot.get("aria-label") or "")
    }
    assert sorted(plots) == sorted(curves)
    lines = [*plots["critic/loss"].iterfind("path")]
    assert [(line.get("d") or "").count("L") for line in lines] == [2]
    assert str(metric("critic/loss")) in text
    assert text.index("critic/<wbr>loss</h3>") < text.index("more metric")


def test_alerts_are_in_the_table_and_on_the_axis_of_every_curve(run, text):
    alerts = read_alerts(run / "alerts.jsonl")
    assert {alert.level for alert in alerts} == {"warn", "stop"}
    words = words_of(text)
    assert EVIL in words
    assert f"The guards reported {len(alerts)} alerts." in text
    own = [alert for alert in alerts if alert.name == "update_ratio"]
    assert own[-1].reason in words
    for plot in main_of(text).iter("svg"):
        if " over gradient updates. " not in (plot.get("aria-label") or ""):
            continue
        drawn = plot.findall("g")
        places = {group.get("class"): group.findtext("title") for group in drawn}
        assert places["moment stop"] == f"stop {EVIL} at 3"
        assert places["moment warn"] == f"warn update_ratio at {own[-1].update}"


def test_the_best_and_the_worst_held_out_episodes_are_shown(run, text):
    datasets = [Dataset.open(run.parent / "data")]
    episodes, is_held_out = choose_episodes(datasets, pictured_config())
    assert is_held_out
    ranked = sorted(episodes, key=lambda episode: episode.episode_return)
    names = [*ranked[::-1][:2], *ranked[:2]]
    figures = [f for f in main_of(text).iter("figure") if f.find(".//code") is not None]
    assert [f.findtext(".//code") for f in figures] == [episode.name for episode in names]
    assert [f.findtext("h3") for f in figures] == [
        *("The best return", "The next best", "The worst return", "The next worst"),
    ]
    assert (
        f"the best and the worst, by return, of {len(episodes)} held-out episodes"
        in words_of(text).lower()
    )
    for figure, episode in zip(figures, names, strict=True):
        assert len(figure.findall(".//img")) == 6
        labels = [plot.get("aria-label") or "" for plot in figure.iter("svg")]
        assert [label.partition(" over ")[0] for label in labels] == ["steer", EVIL, "value"]
        assert ("data: " in labels[2]) == bool(episode.terminated[-1])


def test_the_policy_of_the_page_is_the_published_one(run, text):
    policy = Policy.load(run / "policies")
    figures = [f for f in main_of(text).iter("figure") if f.find(".//code") is not None]
    episodes = {e.name: e for e in Dataset.open(run.parent / "data").episodes()}
    for figure in figures:
        episode = episodes[figure.findtext(".//code")]
        actor = PolicyActor(policy)
        actor.reset()
        acted = [actor.act(episode.observation(t)) for t in range(episode.length)]
        half = (np.array(policy.spec.action_high) - np.array(policy.spec.action_low)) / 2
        apart = (np.abs(np.array(acted) - episode.actions) / half).mean()
        assert f"differ by {percent(float(apart))} of half" in "".join(figure.itertext())


def test_what_the_policy_looks_at(text):
    figures = [f for f in main_of(text).iter("figure") if f.find(".//code") is None]
    assert len(figures) == 6
    alts = [image.get("alt") for image in figures[0].iter("img")]
    assert alts == [
        "The camera's newest frame",
        "The gradient of steer over the frame",
        f"The gradient of {EVIL} over the frame",
    ]
    words = words_of(text)
    assert "newest" in words
    assert "3 frames earlier" in words


def test_without_held_out_episodes_the_page_says_so(run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    document = json.loads((copied / "config.json").read_text())
    document["learn"]["replay"]["held_out"] = 0.0
    document["changes"] = [{"setting": EVIL, "before": 1, "after": EVIL, "from_update": 3}]
    (copied / "config.json").write_text(json.dumps(document))
    words = words_of(run_page(copied))
    assert "holds no episodes out" in words
    assert "the best and the worst, by return, of 8 training episodes" in words
    assert f"after update 3 {EVIL}: 1 → {EVIL}" in words


@pytest.mark.parametrize("kind", ["camera", "vector"])
def test_a_spec_without_camera_or_vector_has_a_page(tmp_path, kind):
    without = {"image": False} if kind == "camera" else {"vector": 0}
    train(
        pictured_config(), datasets=pictured_dataset(tmp_path / "d", **without), run=tmp_path / "r"
    )
    text = run_page(tmp_path / "r")
    assert ("Frames of the stack" in text) == (kind == "vector")
    assert ("Components of the vector" in text) == (kind == "camera")
    assert "What the policy would do" in text


def test_a_page_without_the_data_says_why_and_finds_them_elsewhere(run, tmp_path):
    copied, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(run, copied)
    document = json.loads((copied / "config.json").read_text())
    document["datasets"] = [str(tmp_path / "gone")]
    (copied / "config.json").write_text(json.dumps(document))
    words = words_of(run_page(copied))
    assert "No episodes are shown: " in words
    assert "gone" in words
    assert "What the policy would do" not in words
    shutil.copytree(run.parent / "data", moved)
    assert "What the policy would do" in words_of(run_page(copied, [moved]))


def test_the_state_of_a_run(run, tmp_path, text):
    assert "complete: 6 updates" in text
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "emergency" / "update-000000009").mkdir(parents=True)
    assert "halted by a guard at update 9" in run_page(copied)
    document = json.loads((copied / "config.json").read_text())
    document["learn"]["updates"] = 1000
    (copied / "config.json").write_text(json.dumps(document))
    shutil.rmtree(copied / "emergency")
    assert "6 of 1,000 updates" in run_page(copied)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="contains no run"):
        run_page(tmp_path)


class Watching(TrainCallback):
    """Notes whether the page exists when a checkpoint has been saved, after other callbacks."""

    def __init__(self, run):
        self.run, self.sizes = run, []

    def on_checkpoint(self, path):
        page = self.run / "run.html"
        self.sizes.append(page.stat().st_size if page.exists() else 0)


def test_the_page_is_written_at_a_checkpoint_and_at_the_end(run, tmp_path):
    made = tmp_path / "run"
    page, watch = RunPageCallback(made), Watching(made)
    data = run.parent / "data"
    train(pictured_config(), datasets=data, run=made, callbacks=[page, watch])
    first, second = watch.sizes
    assert first > 0
    assert second == first, "the second checkpoint came too soon"
    assert page.message == f"wrote {made / 'run.html'}"
    assert "complete: 6 updates" in (made / "run.html").read_text()
    name = "checkpoints/update-000000006/tensors.safetensors"
    assert (made / name).read_bytes() == (run / name).read_bytes(), "the page changes no training"


def test_a_page_that_cannot_be_written_does_not_end_the_run(run, tmp_path, monkeypatch):
    def fail(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(module, "write_run_page", fail)
    page = RunPageCallback(tmp_path / "run")
    data = run.parent / "data"
    report = train(pictured_config(), datasets=data, run=tmp_path / "run", callbacks=[page])
    assert report.updates == 6
    assert page.message == "cannot write the page of the run: the disk is full"


def test_alerts_that_a_resume_made_void_are_not_shown(tmp_path):
    def line(name, update, **more):
        return json.dumps({"name": name, "update": update, "level": "warn", "reason": "r"} | more)

    lines = [line("a", 5), line("b", 9), line("resume", 6, level="note"), line("a", 7)]
    lines += ["no JSON", "{}", "[]", line("a", "8"), line("b", 10**400), line("c", 8)]
    lines += [line("d", 8, level="grave"), '{"update": 1e999, "name": "a"}']
    path = tmp_path / "alerts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = [(alert.name, alert.update) for alert in read_alerts(path)]
    assert found == [("a", 5), ("resume", 6), ("a", 7), ("c", 8)]
    assert read_alerts(tmp_path / "absent") == []


def test_the_key_figures_are_those_of_the_newest_line(run, text):
    loss = read_log(run / "events").curves["critic/loss"].values[-1]
    assert f"<dt>Critic loss</dt><dd>{number(float(loss))}</dd>" in text
