"""Real processes on one dataset: two collectors, two readers, and one that takes segments away."""

import json
import subprocess
import sys

import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.processes import SEGMENTS, SPEC, STEPS, check_batch, check_segment, write


def start(role, dataset, name):
    return subprocess.Popen(
        [sys.executable, "-m", "avtd3.tests.store.processes", role, str(dataset.path), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    out, err = process.communicate()
    assert process.returncode == 0, f"{process.returncode}: {err[-4000:]}"
    return json.loads(out)


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_collectors_readers_and_a_remover_as_processes(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("os.fsync", lambda _: None)
    dataset = Dataset.create(tmp_path / "d", SPEC)
    kept = write(dataset, "kept", None)
    running = [start("read", dataset, mode), start("remove", dataset, "")]
    writers = [start("write", dataset, name) for name in "ab"]
    try:
        published = kept | result(writers[0]) | result(writers[1])
        (tmp_path / "over").touch()
        counts, gone = map(result, running)
    finally:
        (tmp_path / "over").touch()
        for process in (*running, *writers):
            process.kill()
            process.wait()
    assert len(published) == 3 * SEGMENTS
    removed = {*gone["quarantined"], *gone["deleted"]}
    assert min(map(len, gone.values())) > 0
    snapshot = dataset.snapshot()
    assert snapshot.refused == ()
    # Nothing published is lost but what was taken away, and that is where it was put.
    assert {segment.id for segment in snapshot.segments} == published.keys() - removed
    assert {p.name for p in dataset.quarantine_path.iterdir()} == set(gone["quarantined"])
    assert not any(dataset.staging_path.iterdir())
    for segment in snapshot.segments:
        segment.verify()
        check_segment(segment)
        assert segment.episode_table().seed.tolist() == [published[segment.id]]
    assert snapshot.steps == STEPS * (len(published) - len(removed))
    assert min(counts["rounds"], counts["segments"], counts["batches"]) > 0
    assert counts["seen"] > SEGMENTS


def test_the_check_of_a_batch_finds_a_wrong_frame(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    dataset = Dataset.create(tmp_path / "d", SPEC)
    write(dataset, "kept", None)
    with Sampler([dataset], ReplayConfig(batch_size=4), seed=0, scratch=tmp_path) as sampler:
        batch = sampler.sample()
        check_batch(batch)
        assert batch.observation_frames is not None
        batch.observation_frames[2, 0, 0, 0] ^= 1
        with pytest.raises(AssertionError, match="not equal"):
            check_batch(batch)
