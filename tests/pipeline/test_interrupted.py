"""Ctrl-C and SIGTERM: complete data are published, including the current episode."""

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
    assert collector.process.wait() == 0, collector.log.read_text()
    reasons = end_reasons(data)
    # There is none if the signal arrives between two episodes.
    assert reasons.count("collector_stop") <= workers
    assert avtd3_json("replay-inspect", data)["verdict"] == "ok"
    count = len(reasons)
    avtd3_json(*plan, "--episodes", count + 6, "--resume")
    indices = [
        index
        for segment in Dataset.open(data).snapshot().segments
        for index in segment.episode_table().index.tolist()
    ]
    assert len(indices) == len(set(indices)), "an episode was collected twice"
    assert set(range(count + 6)) <= set(indices)


def test_twice_stops_at_once(tmp_path, start):
    collector = start("collect", tmp_path / "data", "--steps", 10_000_000, *QUICK_WORLD)
    wait_until(lambda: (tmp_path / "data" / "zarr.json").exists(), "a dataset")
    # While the process is stopped, both signals arrive before it can handle the first.
    collector.process.send_signal(signal.SIGSTOP)
    collector.process.send_signal(signal.SIGINT)
    collector.process.send_signal(signal.SIGTERM)
    collector.process.send_signal(signal.SIGCONT)
    assert collector.process.wait() in {128 + signal.SIGINT, 128 + signal.SIGTERM}
