"""Datasets and segments in memory, with the methods of the real ones, to be damaged at will."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avtd3.store.dataset import Refusal, Snapshot
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.tests.store.segments import episode_table


def make_spec(image=True, vector=2, *, channels=1, stack=2, period=0.05, terms=0):
    return EpisodeSpec(
        image=ImageSpec(channels=channels, height=3, width=2, stack=stack) if image else None,
        vector_names=tuple(f"v{i}" for i in range(vector)),
        vector_scales=(1.0,) * vector,
        action_names=("episode", "step"),
        action_low=(-1e6, -1e6),
        action_high=(1e6, 1e6),
        reward_terms=tuple(f"r{i}" for i in range(terms)),
        control_period_s=period,
    )


class Episode:
    """Random data of one episode; the actions say which episode and step they are."""

    def __init__(self, spec, number, length, terminated, about=()):
        rng = np.random.default_rng(number)
        self.about = {
            "seed": number,
            "index": -1,
            "scenario": 0,
            "policy_version": number,
            "exploration_noise": 0.0,
            "wall_time": 0.0,
            "world": "",
            "town": "",
            "weather": "",
            "driver": "",
            "end_reason": "goal" if terminated else "time_limit",
            "policy_digest": "",
        } | dict(about)
        self.spec, self.number, self.length, self.terminated = spec, number, length, terminated
        self.frames = self.vector = None
        if spec.image is not None:
            shape = (length + 1, *spec.image.frame_shape)
            self.frames = rng.integers(0, 256, shape, dtype=np.uint8)
        if spec.vector_size:
            self.vector = rng.normal(size=(length + 1, spec.vector_size)).astype(np.float32)
        self.action = np.stack([np.full(length, number), np.arange(length)], 1).astype(np.float32)
        self.reward = rng.normal(size=length).astype(np.float32)
        self.terms = rng.normal(size=(length, len(spec.reward_terms))).astype(np.float32)


class MemorySegment:
    def __init__(self, name, episodes):
        self.id, self.path = name, Path(f"/data/segments/{name}")
        lengths = np.array([episode.length for episode in episodes])
        self.steps, self.episodes = int(lengths.sum()), len(lengths)
        self.observations = self.steps + self.episodes
        ends = np.zeros((2, self.steps), bool)
        ends[[int(not e.terminated) for e in episodes], np.cumsum(lengths) - 1] = True
        self.arrays = {
            "action": np.concatenate([e.action for e in episodes]),
            "reward": np.concatenate([e.reward for e in episodes]),
            "terminated": ends[0],
            "truncated": ends[1],
            "episode_offset": np.cumsum(lengths) - lengths,
            "episode_length": lengths,
            "episode_return": np.array([e.reward.sum(dtype=np.float64) for e in episodes]),
            "episode_policy_version": np.array([e.about["policy_version"] for e in episodes]),
        }
        self.spec, self.about = episodes[0].spec, [e.about for e in episodes]
        if episodes[0].terms.size:
            self.arrays["reward_terms"] = np.concatenate([e.terms for e in episodes])
        if episodes[0].vector is not None:
            self.arrays["vector"] = np.concatenate([e.vector for e in episodes])
        if episodes[0].frames is not None:
            self.frames = np.concatenate([e.frames for e in episodes])
        self.content_digest = hashlib.sha256(self.arrays["action"].tobytes()).hexdigest()
        whole = hashlib.sha256(self.id.encode())
        for name in sorted(self.arrays):
            whole.update(self.arrays[name].tobytes())
        self.manifest_digest = whole.hexdigest()
        self.provenance = {}
        self.reads = 0
        self.fault = self.torn = None

    def check_files(self):
        if self.torn is not None:
            raise self.torn

    def read(self, name):
        return self.arrays[name]

    def read_strings(self, name):
        assert name == "episode_end_reason"
        return [about["end_reason"] for about in self.about]

    def episode_table(self):
        columns: dict[str, Any] = {}
        for name in self.about[0]:
            values = [about[name] for about in self.about]
            columns[name] = values if isinstance(values[0], str) else np.array(values)
        return episode_table(
            offset=self.arrays["episode_offset"],
            length=self.arrays["episode_length"],
            episode_return=self.arrays["episode_return"],
            **columns,
        )

    def read_frames(self, start=0, stop=None, out=None, *, stream=None):
        self.reads += 1
        stop = self.observations if stop is None else stop
        if out is None:
            out = np.empty((stop - start, *self.frames.shape[1:]), np.uint8)
        assert out.flags.c_contiguous
        out[:] = self.frames[start:stop]
        if self.fault is not None:
            raise self.fault
        return out

    def frame_parts(self, stream=None):
        frames = self.read_frames()
        yield 0, frames[:1]
        yield 1, frames[1:]


class MemoryDataset:
    def __init__(self, path, spec, segments=()):
        self.path, self.spec = Path(path), spec
        self.segments, self.refused = list(segments), []
        self.fault = None

    def snapshot(self, *, check_files=True):
        return self.refresh(Snapshot(segments=()), check_files=check_files)

    def refresh(self, snapshot, *, check_files=True, known_only=False):
        if self.fault is not None:
            raise self.fault
        own = [refusal.segment_id for refusal in self.refused]
        bad = [r for r in snapshot.refused if r.tries and self.holds(r.segment_id)]
        names = {refusal.segment_id for refusal in bad}
        return Snapshot(
            segments=tuple(s for s in self.segments if s.id not in names),
            refused=(*self.refused, *(r for r in bad if r.segment_id not in own)),
        )

    def holds(self, name):
        return any(segment.id == name for segment in self.segments)

    def refuse(self, snapshot, problems):
        """Refuse segments that were found bad for as long as they are there."""
        bad = [Refusal(segment_id=n, reason=str(why), tries=1) for n, why in problems.items()]
        return Snapshot(
            segments=tuple(s for s in snapshot.segments if s.id not in problems),
            refused=(*snapshot.refused, *bad),
        )


class World:
    """Datasets of random episodes, and the slow formula for what a transition must hold."""

    def __init__(self, spec):
        self.spec, self.episodes = spec, []

    def add_episodes(self, episodes):
        """New episodes, given as (length, terminated) or (length, terminated, about)."""
        count = len(self.episodes)
        made = [Episode(self.spec, count + i, *episode) for i, episode in enumerate(episodes)]
        self.episodes += made
        return made

    def segment(self, name, episodes):
        return MemorySegment(name, self.add_episodes(episodes))

    def dataset(self, path, *segments):
        made = [self.segment(name, episodes) for name, episodes in segments]
        return MemoryDataset(path, self.spec, made)

    def stack(self, episode, t):
        k = self.spec.image.stack
        return np.concatenate([episode.frames[max(0, i)] for i in range(t - k + 1, t + 1)])

    def check(self, batch, n, gamma):
        """Every transition is the one that its action names; returns those as (episode, step)."""
        drawn = [(int(number), int(t)) for number, t in batch.action]
        for i, (number, t) in enumerate(drawn):
            episode = self.episodes[number]
            reward, discount, following = 0.0, 1.0, t
            while following < min(t + n, episode.length):
                reward += discount * float(episode.reward[following])
                discount *= gamma
                following += 1
            if following == episode.length and episode.terminated:
                discount = 0.0
            assert batch.reward[i] == pytest.approx(reward, rel=1e-5, abs=1e-6)
            assert batch.discount[i] == pytest.approx(discount, rel=1e-6)
            if self.spec.image is not None:
                assert (batch.observation_frames[i] == self.stack(episode, t)).all()
                assert (batch.next_observation_frames[i] == self.stack(episode, following)).all()
            if self.spec.vector_size:
                assert (batch.observation_vector[i] == episode.vector[t]).all()
                assert (batch.next_observation_vector[i] == episode.vector[following]).all()
        return drawn


TWO = (("a", [(3, True), (2, False)]), ("b", [(4, True)]))


def copy(batch):
    """The arrays of a batch, to outlive it."""
    names = ("frames", "observation_vector", "next_observation_vector", "action", "reward")
    return [getattr(batch, name).copy() for name in (*names, "discount")]


def same(left, right):
    """Whether two copies are equal byte for byte."""
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
