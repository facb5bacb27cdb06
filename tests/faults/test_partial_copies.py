"""Datasets and policies that arrive file by file, in any order, under readers that follow.

Each file arrives in one of the ways of rsync, cp, network mounts and portable disks, several at a
time. Between any two operations, readers see nothing or what the source has: never another number,
never a part of an episode, and no error but those that say that something is not whole yet.
"""

import random
import shutil
from typing import Any

import pytest

from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import SEGMENT_ERRORS, DatasetError, NoSegmentsError
from avtd3.store.files import sha256
from avtd3.store.maintenance.compact import compact
from avtd3.store.replaced import episode_digests
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.maintenance.datasets import fill, identity
from avtd3.tests.store.segments import make_spec

LONG = 3600.0
"""Seconds after which everything that was refused is tried again."""


def temporary(source, target, rng):
    """As rsync: a hidden name that grows, and a rename."""
    data = source.read_bytes()
    aside = target.with_name(f".{target.name}.{rng.randrange(10**6):06d}")
    for end in (len(data) // 2, len(data)):
        aside.write_bytes(data[:end])
        yield
    aside.rename(target)
    yield


def delayed(source, target, rng):
    """As rsync --delay-updates: a hidden directory, and a rename."""
    folder = target.parent / ".~tmp~"
    folder.mkdir(exist_ok=True)
    (folder / target.name).write_bytes(source.read_bytes())
    yield
    (folder / target.name).rename(target)
    yield


def growing(source, target, rng):
    """As cp, or rsync --inplace."""
    data = source.read_bytes()
    for end in sorted(rng.sample(range(len(data) + 1), k=min(2, len(data)))):
        target.write_bytes(data[:end])
        yield
    target.write_bytes(data)
    yield


def blocks(source, target, rng):
    """As a mount that shows the size before the bytes, in blocks of any order."""
    data = source.read_bytes()
    size = max(1, len(data) // 3)
    target.write_bytes(bytes(len(data)))
    yield
    starts = list(range(0, len(data), size))
    rng.shuffle(starts)
    for start in starts:
        with target.open("r+b") as stream:
            stream.seek(start)
            stream.write(data[start : start + size])
        yield


def flickering(source, target, rng):
    """As a mount that forgets a file for a while."""
    target.write_bytes(source.read_bytes())
    yield
    target.unlink()
    yield
    target.write_bytes(source.read_bytes())
    yield


WAYS = (temporary, delayed, growing, blocks, flickering)


def copying(source, target, rng, *, at_once=4):
    """Yield after each operation of a copy of a directory in random order."""
    left = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    rng.shuffle(left)
    running: list[Any] = []
    while left or running:
        if left and len(running) < at_once:
            name = left.pop()
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            running.append(rng.choice(WAYS)(source / name, target / name, rng))
        chosen = rng.choice(running)
        if next(chosen, "done") == "done":
            running.remove(chosen)
        yield


class Reader:
    """A learner, a follower and a newcomer in one; `look` checks what each of them sees."""

    def __init__(self, source, target, scratch, mode):
        self.target, self.scratch = target, scratch
        self.config = ReplayConfig(mode=mode, batch_size=8)
        segments = (*source.snapshot().segments, *source.snapshot().replaced)
        self.steps = {segment.id: segment.steps for segment in segments}
        self.episodes = {digest for segment in segments for digest in episode_digests(segment)}
        self.transitions = {
            row.tobytes(): (action.tobytes(), frame.tobytes())
            for episode in source.episodes()
            for row, action, frame in zip(
                episode.vectors, episode.actions, episode.frames, strict=False
            )
        }
        self.dataset: Any = None
        self.sampler: Any = None
        self.snapshot: Any = None

    def look(self):
        """Look once, as all of them."""
        try:
            self.dataset = Dataset.open(self.target)
        except DatasetError:
            assert self.dataset is None or not (self.target / "zarr.json").exists()
            return
        for snapshot in (self.dataset.snapshot(), self._follow()):
            self._check(snapshot)
        self._train()

    def _follow(self):
        known = self.snapshot
        self.snapshot = self.dataset.refresh(known) if known else self.dataset.snapshot()
        return self.snapshot

    def _check(self, snapshot):
        seen = []
        for segment in snapshot.segments:
            assert segment.steps == self.steps[segment.id]
            try:
                digests = list(episode_digests(segment))
            except SEGMENT_ERRORS:
                continue  # its bytes are still on their way
            assert set(digests) <= self.episodes
            seen += digests
        assert len(seen) == len(set(seen)), "an episode is there twice"

    def _train(self):
        if self.sampler is None:
            self.sampler = Sampler([self.dataset], self.config, seed=0, scratch=self.scratch)
        self.sampler.refresh()
        try:
            batch = self.sampler.sample()
        except NoSegmentsError:
            return
        for row, action, frames in zip(
            batch.observation_vector, batch.action, batch.observation_frames, strict=True
        ):
            expected = self.transitions[row.tobytes()]
            assert (action.tobytes(), frames[-1].tobytes()) == expected

    def close(self):
        if self.sampler is not None:
            self.sampler.close()


def findings(path):
    return sorted((found.check, found.severity) for found in audit([path]).findings)


def arrive(tmp_path, wait, seed, mode, *, every=1):
    """Copy a dataset of segments, of which one replaces two others, and look at it meanwhile."""
    rng = random.Random(seed)
    source, _ = fill(tmp_path / "source", [[4, 3], [5], [3]], map_text="<OpenDRIVE/>")
    whole = tmp_path / "whole"
    shutil.copytree(source.path, whole)
    compact(source.path)
    shutil.copytree(source.path, whole, dirs_exist_ok=True)  # what was replaced is still there
    source, target = Dataset.open(whole), tmp_path / "target"
    assert len(source.segment_ids()) == 4
    reader = Reader(source, target, tmp_path, mode)
    try:
        for number, _ in enumerate(copying(whole, target, rng)):
            if number % every == 0 and rng.random() < 0.5:
                wait(1.0)
            if number % every == 0:
                reader.look()
        wait(LONG)
        reader.look()
        reader.look()
        arrived = reader.dataset
        assert identity(arrived) == identity(source)
        assert reader.snapshot.digest == source.snapshot().digest == arrived.snapshot().digest
        assert (reader.snapshot.refused, reader.sampler.refused) == ((), ())
        assert reader.sampler.steps == source.snapshot().steps == 15
        assert findings(target) == findings(whole)
    finally:
        reader.close()


@pytest.mark.parametrize(("mode", "seed"), [("cache", 1), ("direct", 2)])
def test_readers_of_a_dataset_see_only_what_has_arrived(tmp_path, wait, mode, seed):
    arrive(tmp_path, wait, seed, mode, every=17)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3, 9))
@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_readers_of_a_dataset_at_every_other_operation(tmp_path, wait, mode, seed):
    arrive(tmp_path, wait, seed, mode, every=2)


@pytest.mark.parametrize("seed", range(4))
def test_a_collector_sees_only_whole_policies_and_never_an_older_one(tmp_path, seed):
    rng, network = random.Random(seed), NetworkConfig(hidden=(4,), features=4)
    source, target = PolicyStore(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    spec = make_spec(image=False)
    collector, versions = PolicyStore(target), []
    current: Any = None
    for updates in range(3):  # the learner publishes more while the copy continues
        source.publish(Actor(spec, network), spec, network, updates=updates)
        for _ in copying(source.path, target, rng):
            policy = collector.poll(current, spec)
            newcomer = PolicyStore(target).poll(None, spec)
            for found in (policy, newcomer):
                if found is not None:
                    known = source.path_of(found.version).read_bytes()
                    assert found.digest == sha256(known)
            if policy is not None:
                versions.append(policy.version)
                current = policy
        current = collector.poll(current, spec)
        assert current is not None
        assert current.version == updates
    assert versions == sorted(versions), "a collector went back to an older policy"
