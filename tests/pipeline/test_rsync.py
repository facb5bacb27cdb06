"""A collector and a learner on two machines, between which rsync copies in either direction.

Each copy may be killed at any time, and writes its files in one of the ways that rsync has.
"""

import contextlib
import hashlib
import random
import shutil
import subprocess
import threading

import pytest

from avtd3.learn.analysis.event_log import read_log
from avtd3.store.dataset import Dataset
from avtd3.tests.pipeline.conftest import QUICK_WORLD, avtd3_json, wait_until
from avtd3.tests.pipeline.test_two_terminals import SMALL_LEARNER, versions_driven

WAYS = ((), ("--inplace",), ("--delay-updates",), ("--partial", "--bwlimit=300"), ("--append",))


class Link:
    """Copies one directory to another again and again, until `finish` copies what is left."""

    def __init__(self, source, target, seed):
        self.source, self.target, self.random = source, target, random.Random(seed)
        self.copies = self.killed = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _rsync(self, *options, timeout=None):
        # Times are copied, so that a later rsync sees what it has to copy again.
        words = ("rsync", "--recursive", "--times", *options, f"{self.source}/", self.target)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(words, capture_output=True, check=False, timeout=timeout)
        self.killed += 1  # by `run`, at the timeout
        return None

    def _run(self):
        while not self._over.wait(0.2):
            if self.source.exists():
                is_cut = self.random.random() < 0.5
                timeout = self.random.uniform(0.02, 0.6) if is_cut else None
                self._rsync(*self.random.choice(WAYS), timeout=timeout)
                self.copies += 1

    def finish(self):
        self._over.set()
        self._thread.join()
        # By content, as a copy in place that was killed may have the right size and time; and
        # without the temporary files of killed copies.
        done = self._rsync("--checksum", "--delete")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_in_both_directions_loses_and_doubles_nothing(tmp_path, start):
    here, there = tmp_path / "here", tmp_path / "there"
    data, copy = here / "data", there / "data"
    here.mkdir()
    there.mkdir()
    links = [
        Link(data, copy, seed=1),
        Link(there / "policies", here / "policies", seed=2),
    ]
    collector = start(
        "collect", data, "--policies", here / "policies", "--driver", "0.5:policy,0.5:expert",
        "--steps", 10_000_000, "--seed", 3, *QUICK_WORLD, "--set=collect.writer.segment_steps=100",
        "--set=collect.scenario.time_limit_s=10",
    )  # fmt: skip
    learner = start(
        "learn", copy, "--run", there / "run", "--policies", there / "policies", "--follow",
        "--updates", 1_000_000, *SMALL_LEARNER, "--set=learn.log_every=10",
    )  # fmt: skip
    both = (collector, learner)
    try:
        wait_until(lambda: data.exists(), "a dataset", running=both)
        wait_until(lambda: versions_driven(data).keys() - {-1}, "a policy", running=both)
        version = max(versions_driven(data))
        wait_until(lambda: max(versions_driven(data)) > version, "a newer policy", running=both)
        wait_until(lambda: links[0].killed and links[1].copies > 3, "copies", running=both)
        assert collector.stop() == 0, collector.log.read_text()
    finally:
        for link in links:
            link.finish()
    steps = Dataset.open(data).snapshot().steps

    def learned_from():
        return read_log(there / "run" / "events").curves["run/steps"].values[-1]

    wait_until(lambda: learned_from() == steps, "all steps", running=(learner,))
    assert learner.stop() == 0, learner.log.read_text()

    original, arrived = Dataset.open(data).snapshot(), Dataset.open(copy).snapshot()
    assert arrived.digest == original.digest
    assert arrived.refused == ()
    assert avtd3_json("replay-inspect", copy)["verdict"] == "ok"
    indices = [
        index for segment in arrived.segments for index in segment.episode_table().index.tolist()
    ]
    assert sorted(indices) == list(range(len(indices))), "lost or doubled"
    for version, digest in versions_driven(data).items():
        if version >= 0:
            file = there / "policies" / f"policy-{version:08d}.safetensors"
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
