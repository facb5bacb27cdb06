"""A dataset of three streams goes through everything that there is, and loses no picture."""

import datetime

import numpy as np

from avtd3.collect import CollectConfig, RoadConfig, ScenarioConfig, collect
from avtd3.collect.sim.streams import StreamCamera
from avtd3.learn import LearnConfig, NetworkConfig, Policy, train
from avtd3.store import Dataset, ReplayConfig
from avtd3.store.audit.audit import audit
from avtd3.store.exchange.exporting import export_episodes
from avtd3.store.exchange.importing import import_episodes
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.store.render.audit_view import audit_page, choose_episodes
from avtd3.store.writer import WriterConfig

STREAMS = {
    "front": StreamCamera(height=40, width=36, stack=2),
    "rgb": StreamCamera(kind="rgb", height=18, width=20, stack=1),
    "top": StreamCamera(kind="bev_route", height=36, width=40, stack=1),
}


def pictures(path):
    """Return the frames of every episode, by stream and seed."""
    return {episode.seed: dict(episode.streams) for episode in Dataset.open(path).episodes()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for seed, streams in wanted.items():
        assert found[seed].keys() == STREAMS.keys()
        for name, frames in streams.items():
            np.testing.assert_array_equal(found[seed][name], frames)


def test_three_streams_are_collected_audited_maintained_exported_and_learned_from(
    tmp_path, maps_without_own_process
):
    path, scenario = tmp_path / "data", ScenarioConfig(route_length_m=40.0, time_limit_s=1.0)
    config = CollectConfig(
        scenario=scenario,
        road=RoadConfig(streams=STREAMS),
        writer=WriterConfig(segment_steps=20),
    )
    collect(path, config, episodes=4)
    driven = pictures(path)
    assert (len(driven), len(Dataset.open(path).segment_ids())) == (4, 4)

    report = audit([path])
    assert [finding for finding in report.findings if finding.severity == "error"] == []
    made = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    page = audit_page(report, choose_episodes([path]), made=made)
    assert all(f"<p>{name}</p>" in page for name in STREAMS)

    relabel(path, tmp_path / "relabelled", {"efficiency/progress": 2.0})
    assert_same(pictures(tmp_path / "relabelled"), driven)
    prune(path, PruneConfig(max_steps=60))
    kept = dict(list(driven.items())[1:])
    assert_same(pictures(path), kept)
    assert compact(path).merged_segments == 3
    assert_same(pictures(path), kept)

    export_episodes(path, tmp_path / "out", "npz")
    import_episodes(tmp_path / "out", tmp_path / "back", "npz")
    assert_same(pictures(tmp_path / "back"), kept)

    replay = ReplayConfig(batch_size=8, streams=("front", "top"))
    network = NetworkConfig(hidden=(16, 16), features=8)
    learn = LearnConfig(replay=replay, network=network, updates=2)
    assert train(learn, datasets=[path], run=tmp_path / "run").updates == 2
    assert list(Policy.load(tmp_path / "run/policies").spec.images) == ["front", "top"]
