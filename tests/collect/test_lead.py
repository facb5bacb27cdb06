import dataclasses
import itertools
from typing import Any

import pytest

from avtd3.collect import collector as loop
from avtd3.collect.collector import CollectAheadConfig, CollectConfig, collect
from avtd3.collect.reports import CollectProgress
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.remote.client import LocalPlace
from avtd3.store.status import Beat
from avtd3.tests.collect.point_world import open_point_world
from avtd3.tests.collect.test_collector import CONFIG, FakeDirectory, FakePolicy, with_policies


@pytest.mark.parametrize(
    ("steps", "updates", "waits"),
    [
        (1000, 0, False),  # the random steps need no update
        (1200, 0, False),
        (1201, 0, True),
        (2000, 799, True),
        (2000, 800, False),
    ],
)
def test_the_lead_is_counted_from_the_random_steps(steps, updates, waits):
    lead = CollectAheadConfig(random_steps=1000, max_lead=200)
    assert bool(lead.waits_for(steps, updates)) == waits


def test_the_lead_goes_by_the_learner_s_ratio():
    lead = CollectAheadConfig(max_lead=100, updates_per_step=0.5)
    assert not lead.waits_for(300, 100)
    assert "99 updates, 300 steps need 100 (max_lead 100)" in lead.waits_for(300, 99)
    assert not CollectAheadConfig().waits_for(10**9, 0)


def test_updates_from_older_data_give_no_lead():
    lead = CollectAheadConfig(max_lead=100, updates_per_step=0.5, updates_before=1000)
    assert not lead.waits_for(100, 900)  # the first steps wait for nothing
    assert not lead.waits_for(300, 1100)
    assert "1099 updates, 300 steps need 1100" in lead.waits_for(300, 1099)


@pytest.mark.parametrize(
    "change",
    [{"random_steps": -1}, {"max_lead": -1}, {"updates_per_step": 0.0}, {"updates_before": -1}],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        CollectAheadConfig(**change)


def leading(path, monkeypatch, directory, **changes):
    with_policies(monkeypatch, directory)
    config = dataclasses.replace(CONFIG, driver="policy", lead=CollectAheadConfig(**changes))
    return config, {"policies": path, "open_world": open_point_world}


def rows(path):
    found: list[Any] = []
    for segment in Dataset.open(path).snapshot().segments:
        table = segment.episode_table()
        found += zip(
            table.index.tolist(), table.texts("driver"), table.length.tolist(), strict=True
        )
    return [(driver, length) for _, driver, length in sorted(found)]


def test_a_plan_starts_with_its_random_steps(tmp_path, monkeypatch):
    config, options = leading(tmp_path, monkeypatch, FakeDirectory(tmp_path), random_steps=150)
    collect(tmp_path / "d", config, steps=300, **options)
    drivers = rows(tmp_path / "d")
    random = [length for driver, length in drivers if driver == "random"]
    assert sum(random) >= 150 > sum(random[:-1])
    assert {driver for driver, _ in drivers[len(random) :]} == {"policy+gaussian=0.1"}
    # Earlier ones count: a resumed plan continues with the policy.
    collect(tmp_path / "d", config, steps=400, resume=True, **options)
    assert [driver for driver, _ in rows(tmp_path / "d")].count("random") == len(random)


class Learner(FakeDirectory):
    """Publishes a policy with as many updates as the published data allow, at its third look."""

    def __init__(self, data, policies, publish_every):
        super().__init__(policies)
        self.data, self.every, self.looks = data, publish_every, 0
        self.waits: list[str] = []

    def poll(self, current, spec):
        self.looks += 1
        if current and self.looks % 3:
            return current
        policy = FakePolicy()
        policy.updates = sum(length for _, length in rows(self.data)) // self.every * self.every
        return policy


def test_the_collector_waits_for_its_learner_and_publishes_meanwhile(tmp_path, monkeypatch):
    learner = Learner(tmp_path / "d", tmp_path, publish_every=50)
    config, options = leading(tmp_path, monkeypatch, learner, max_lead=50)
    seen: list[CollectProgress] = []
    collect(tmp_path / "d", config, steps=500, on_progress=seen.append, **options)
    waiting = {report.tally.waiting for report in seen if report.tally.waiting}
    assert all("waiting for the learner" in text for text in waiting)
    assert waiting
    assert len(Dataset.open(tmp_path / "d").segment_ids()) > 3  # each wait gave the data away


def test_a_learner_that_is_gone_is_waited_for_until_stopped(tmp_path, monkeypatch):
    config, options = leading(tmp_path, monkeypatch, FakeDirectory(tmp_path), max_lead=20)
    seen: list[CollectProgress] = []
    report = collect(
        tmp_path / "d",
        config,
        steps=500,
        on_progress=seen.append,
        should_stop=lambda: bool(seen and seen[-1].tally.waiting),
        **options,
    )
    assert report.interrupted
    assert "has 0 updates" in seen[-1].line()
    assert "is it running" in seen[-1].line()
    assert 20 < sum(length for _, length in rows(tmp_path / "d")) < 500


def test_looking_for_policies_is_frequent():
    assert loop.POLICY_PERIOD_S <= 0.1
    assert CollectConfig().lead == CollectAheadConfig()


def test_a_collector_waits_for_a_learner_that_sees_its_steps_late(tmp_path, monkeypatch):
    """A slow learner acknowledges the steps of one segment after each wait."""
    place, sequence = LocalPlace(tmp_path / "d"), itertools.count(1)
    seen: list[str] = []

    def acknowledge(steps):
        beat = Beat(
            role="learner", name="run", id="learner-run", sequence=next(sequence),
            acknowledged={"slow": steps},
        )  # fmt: skip
        place.write(beat.key, beat.to_bytes())

    def on_progress(report):
        if report.tally.waiting:
            seen.append(report.tally.waiting)
            acknowledge(sum(length for _, length in rows(tmp_path / "d")))

    monkeypatch.setattr("avtd3.store.status.INTERVAL_S", 0.01)
    writer = dataclasses.replace(CONFIG.writer, segment_steps=50)
    lead = CollectAheadConfig(max_unseen=40)
    config = dataclasses.replace(CONFIG, name="slow", lead=lead, writer=writer)
    collect(tmp_path / "d", config, steps=20, open_world=open_point_world)
    acknowledge(0)
    collect(
        tmp_path / "d",
        config,
        steps=300,
        resume=True,
        on_progress=on_progress,
        open_world=open_point_world,
    )
    assert len(seen) > 1
    assert all("has not seen" in text and "max_unseen 40" in text for text in seen)
    assert sum(length for _, length in rows(tmp_path / "d")) >= 300
