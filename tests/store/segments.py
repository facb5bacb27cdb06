"""Made-up episodes for the tests of the store, written with the real writer."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import OWN_ATTRIBUTES, EpisodeTable
from avtd3.store.files import sha256
from avtd3.store.format.codec import FrameCodec
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.step_labels import StepLabels
from avtd3.store.world_record import WorldRecord
from avtd3.store.writer import SegmentWriter, WriterConfig

STREAMS = {
    "bev": ImageSpec(channels=2, height=4, width=4, stack=1),
    "gray": ImageSpec(height=6, width=5),
    "rgb": ImageSpec(channels=3, height=7, width=9, stack=2, stride=3),
}
"""Streams of a spec of format 2."""


def make_spec(channels=1, height=6, width=5, vector=3, terms=2, image=True, streams=()):
    has_image = image and not streams
    return EpisodeSpec(
        image=ImageSpec(channels=channels, height=height, width=width) if has_image else None,
        streams={name: STREAMS[name] for name in streams},
        vector_names=tuple(f"v{n}" for n in range(vector)),
        vector_scales=(1.0,) * vector,
        action_names=("steer", "throttle_brake"),
        action_low=(-1.0, -0.5),
        action_high=(1.0, 0.5),
        reward_terms=tuple(f"r{n}" for n in range(terms)),
        control_period_s=0.05,
    )


@dataclasses.dataclass
class Episode:
    """One episode as it was fed in; arrays of T + 1 observations and T steps."""

    info: dict[str, Any]
    """Keywords of `SegmentWriter.begin`."""
    frames: np.ndarray | None
    streams: dict[str, np.ndarray]
    vector: np.ndarray | None
    action: np.ndarray
    terms: np.ndarray | None
    reward: np.ndarray
    terminated: bool
    reason: str

    @property
    def length(self):
        return len(self.action)


def make_episode(spec, length, seed=0, **info):
    rng = np.random.default_rng(seed)
    terms = None
    if spec.reward_terms:
        terms = rng.normal(size=(length, len(spec.reward_terms))).astype(np.float32)
        reward = terms.astype(np.float64).sum(axis=1).astype(np.float32)
    else:
        reward = rng.normal(size=length).astype(np.float32)
    frames = vector = None
    if spec.image is not None:
        shape = (length + 1, *spec.image.frame_shape)
        frames = rng.integers(0, 4, shape, dtype=np.uint8)  # compresses, so every chain is used
    streams = {
        name: rng.integers(0, 4, (length + 1, *image.frame_shape), dtype=np.uint8)
        for name, image in spec.streams.items()
    }
    if spec.vector_size:
        vector = rng.normal(size=(length + 1, spec.vector_size)).astype(np.float32)
    return Episode(
        info={
            "seed": seed,
            "scenario": 0,
            "world": "test",
            "town": f"town-{seed % 3}",
            "weather": "clear",
            "driver": "expert",
            **info,
        },
        frames=frames,
        streams=streams,
        vector=vector,
        action=rng.uniform(-0.5, 0.5, (length, 2)).astype(np.float32),
        terms=terms,
        reward=reward,
        terminated=bool(seed % 2),
        reason="collision" if seed % 2 else "time_limit",
    )


def episode_table(**columns) -> EpisodeTable:
    """A table of episodes, given some of its columns; driving columns become attributes."""
    count = len(next(iter(columns.values())))
    attributes = {name: columns.pop(name) for name in OWN_ATTRIBUTES if name in columns}
    whole: dict[str, Any] = {
        "segment": ["a"] * count,
        "number": np.arange(count),
        "offset": np.arange(count),
        "length": np.ones(count, np.int64),
        "index": np.zeros(count, np.int64),
        "seed": np.zeros(count, np.int64),
        "episode_return": np.zeros(count),
        "policy_version": np.full(count, -1),
        "exploration_noise": np.zeros(count, np.float32),
        "wall_time": np.zeros(count),
        "end_reason": [""] * count,
        "policy_digest": [""] * count,
        "attributes": {
            "scenario": np.zeros(count, np.int64),
            **{name: [""] * count for name in ("world", "town", "weather", "driver")},
            **attributes,
        },
    }
    return EpisodeTable(**(whole | columns))


def observation(episode, n):
    return Observation(
        image=None if episode.frames is None else episode.frames[n],
        streams={name: frames[n] for name, frames in episode.streams.items()} or None,
        vector=None if episode.vector is None else episode.vector[n],
        frame_id=100 + n,
        sim_time_s=1.0 + 0.05 * n,
    )


def begin(writer, episode):
    writer.begin(observation(episode, 0), **episode.info)


def step(writer, episode, n, *, last=None):
    last = n == episode.length - 1 if last is None else last
    writer.step(
        episode.action[n],
        None if episode.terms is not None else float(episode.reward[n]),
        observation(episode, n + 1),
        terminated=last and episode.terminated,
        truncated=last and not episode.terminated,
        reward_terms=None if episode.terms is None else episode.terms[n],
    )


def feed(writer, episode, world=None):
    begin(writer, episode)
    for n in range(episode.length):
        step(writer, episode, n)
    return writer.end(episode.reason, world=world)


def make_record(length, seed=0, actors=2, text=""):
    """A state of the world in each observation of an episode of this length."""
    rng = np.random.default_rng(seed)
    setup = {"actors": [[4.5, 1.8, 1.5, 0.5]] * actors, "map": sha256(text.encode()), "seed": seed}
    poses = rng.integers(-(10**6), 10**6, (length + 1, actors, 3)).cumsum(axis=0)
    return WorldRecord(
        setup=setup, ego=rng.normal(size=(length + 1, 3)), actors=poses, map_text=text
    )


def make_labels(spec, length, seed=0, *, unknown=0.3):
    """Labels of the steps of an episode of this length, the expert's first action known."""
    rng = np.random.default_rng(seed)
    low, high = np.float32(spec.action_low), np.float32(spec.action_high)
    action = rng.uniform(low, high, (length, spec.action_size)).astype(np.float32)
    action = np.clip(action, low, high)
    action[rng.random(length) < unknown] = np.nan
    action[0] = low
    return StepLabels(
        expert_action=action,
        expert_drove=rng.random(length) < 0.5,
        camera_delay_s=rng.uniform(0.01, 0.2, length + 1).astype(np.float32),
        action_delay_s=rng.uniform(0.01, 0.2, length).astype(np.float32),
    )


def equal_labels(one, other):
    if one is None or other is None:
        return one is other
    names = ("expert_action", "expert_drove", "camera_delay_s", "action_delay_s")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(
        (a is b) if a is None or b is None else np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in pairs
    )


class Clock:
    """A clock that stands still unless it is set."""

    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


def make_writer(dataset, *, clock=None, codec=None, collector="tester", **config):
    config = {"segment_seconds": 1e9, "codec": codec or FrameCodec(), **config}
    return SegmentWriter(
        dataset,
        collector=collector,
        provenance={"config": {"a": 1}},
        config=WriterConfig(**config),
        clock=clock or Clock(),
    )


def write_dataset(path: Path, spec, episodes, **config):
    dataset = Dataset.create(path, spec)
    with make_writer(dataset, **config) as writer:
        for episode in episodes:
            feed(writer, episode)
    return dataset


def assert_holds(dataset, episodes):
    """The dataset's segments hold exactly these episodes, in this order."""
    number = 0
    for segment in dataset.snapshot().segments:
        table = segment.episode_table()
        columns = {name: segment.read(name) for name in segment.names}
        for n in range(segment.episodes):
            want = episodes[number]
            number += 1
            rows = slice(table.observation_offset[n], table.observation_offset[n] + want.length + 1)
            steps = slice(table.offset[n], table.offset[n] + want.length)
            assert table.length[n] == want.length
            assert table.seed[n] == want.info["seed"]
            assert table.texts("town")[n] == want.info["town"]
            assert table.end_reason[n] == want.reason
            if want.frames is not None:
                np.testing.assert_array_equal(columns["frames"][rows], want.frames)
                np.testing.assert_array_equal(
                    segment.read_frames(rows.start, rows.stop), want.frames
                )
            for name, frames in want.streams.items():
                np.testing.assert_array_equal(columns[f"frames_{name}"][rows], frames)
                np.testing.assert_array_equal(
                    segment.read_frames(rows.start, rows.stop, stream=name), frames
                )
            if want.vector is not None:
                np.testing.assert_array_equal(columns["vector"][rows], want.vector)
            if want.terms is not None:
                np.testing.assert_array_equal(columns["reward_terms"][steps], want.terms)
            np.testing.assert_array_equal(columns["action"][steps], want.action)
            np.testing.assert_array_equal(columns["reward"][steps], want.reward)
            assert columns["terminated"][steps].tolist()[-1] is want.terminated
            assert columns["truncated"][steps].tolist()[-1] is (not want.terminated)
            assert not columns["terminated"][steps][:-1].any()
            assert table.episode_return[n] == want.reward.sum(dtype=np.float64)
    assert number == len(episodes)
