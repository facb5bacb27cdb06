"""Ctrl-C and SIGTERM: what is whole is published, the running episode included."""

import signal

import pytest

from avtd3.store.dataset import Dataset
from avtd3.tests.pipeline.conftest import QUICK_WORLD, avtd3_json, wait_until


def end_reasons(path):
    if not (path / "zarr.json").exists():
        return []
    return [
        reason
        for segment in Dataset.open(path).snapshot().segments
        for reason in segment.episode_table().end_reason
    ]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_collector_publishes_what_it_has(tmp_path, start, number, workers):
    data = tmp_path / "data"
    plan = ("collect", data, "--workers", workers, *QUICK_WORLD)
    collector = start(*plan, "--steps", 10_000_000, "--set=collect.writer.segment_steps=60")
    wait_until(lambda: end_reasons(data), "a segment", running=(collector,))
    collector.process.send_signal(number)
    assert collector.process.wait(30) == 0, collector.log.read_text()
    reasons = end_reasons(data)
    # None where the signal came between two episodes; tests/collect has the one under way.
    assert reasons.count("collector_stop") <= workers
    assert avtd3_json("replay-inspect", data)["verdict"] == "ok"
    held = len(reasons)
    avtd3_json(*plan, "--episodes", held + 6, "--resume")
    indices = [
        index
        for segment in Dataset.open(data).snapshot().segments
        for index in segment.episode_table().index.tolist()
    ]
    assert len(indices) == len(set(indices)), "an episode was collected twice"
    assert set(range(held + 6)) <= set(indices)


def test_twice_stops_at_once(tmp_path, start):
    collector = start("collect", tmp_path / "data", "--steps", 10_000_000, *QUICK_WORLD)
    wait_until(lambda: (tmp_path / "data" / "zarr.json").exists(), "a dataset")
    # Stopped meanwhile, so that both signals are there before it can answer the first.
    collector.process.send_signal(signal.SIGSTOP)
    collector.process.send_signal(signal.SIGINT)
    collector.process.send_signal(signal.SIGTERM)
    collector.process.send_signal(signal.SIGCONT)
    assert collector.process.wait(30) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
