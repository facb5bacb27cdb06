"""The datasets that `replay_bench.py` measures on: created on demand and kept.

* ``road``: collected by ``avtd3 collect`` in the built-in simulator: 20 vehicles, camera, vector.
* ``carracing``: gymnasium's CarRacing-v3, grey, cut to 84x84, driven by smooth noise.
* ``carracing-noisy``: the same with sensor noise of sigma 3 on every pixel, which compresses badly.

All are written by avtd3's own writer with its default codec.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.collector import collect
from avtd3.configs.load import load_section
from avtd3.store.dataset import Dataset
from avtd3.store.format.codec import FrameCodec
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter, WriterConfig

KINDS = ("road", "carracing", "carracing-noisy")
EPISODE_STEPS = 500
NOISE_SIGMA = 3.0
_SIDE = 84
_LEFT = 6
"""CarRacing's image is 96 x 96; the lowest 12 rows are the dashboard."""


def open_frames(kind: str, root: Path, frames: int, say: Callable[[str], None]) -> Dataset:
    """Open the dataset of a kind with at least `frames` frames; create it if it is missing.

    Args:
        kind: One of `KINDS`.
        root: Directory that keeps the datasets.
        frames: Minimum number of frames.
        say: Called with what is being created, because it takes a while.
    """
    path = root / f"{kind}-{frames}"
    if not path.exists():
        # Created under another name, so that a stopped benchmark leaves no incomplete dataset.
        aside = root / f"{path.name}.partial"
        say(f"making {path}: {frames} frames")
        _MAKERS[kind](aside, frames)
        aside.rename(path)
    return Dataset.open(path)


def open_copy(dataset: Dataset, name: str, codec: FrameCodec) -> Dataset:
    """Open a copy with another codec, next to a dataset of `open_frames`; create it if missing.

    Args:
        dataset: The dataset to copy.
        name: Suffix of the copy's directory.
        codec: Codec of the copy.
    """
    path = dataset.path.with_name(f"{dataset.path.name}.{name}")
    if not path.exists():
        aside = path.with_name(f"{path.name}.partial")
        copy = Dataset.create(aside, dataset.spec)
        config = WriterConfig(codec=codec, segment_seconds=1e9)
        with SegmentWriter(copy, collector="bench", provenance={}, config=config) as writer:
            for segment in dataset.snapshot().segments:
                _copy(segment, writer)
        aside.rename(path)
    return Dataset.open(path)


def _make_road(path: Path, frames: int) -> None:
    collect(path, load_section("collect", None, []), steps=frames, resume=path.exists())


def _make_carracing(path: Path, frames: int, sigma: float = 0.0) -> None:
    spec = EpisodeSpec(
        image=ImageSpec(),
        vector_names=("speed_mps",),
        vector_scales=(100.0,),
        action_names=("steer", "throttle_brake"),
        control_period_s=0.02,
    )
    noise = np.random.default_rng(0)
    dataset = Dataset.create(path, spec)
    held = 0
    with SegmentWriter(dataset, collector="bench", provenance={}) as writer:
        for seed in itertools.count():
            if held >= frames:
                break
            for moment in _drive(seed):
                frame = moment.picture
                if sigma:
                    noisy = frame + noise.normal(0.0, sigma, frame.shape)
                    frame = noisy.round().clip(0, 255).astype(np.uint8)
                _write(writer, seed, moment, frame)
                held += 1
            writer.end("terminated" if moment.terminated else "time_limit")


def _make_noisy(path: Path, frames: int) -> None:
    _make_carracing(path, frames, sigma=NOISE_SIGMA)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """An observation, and the step that led to it."""

    number: int
    """Index in the episode, from 0."""
    picture: NDArray[np.uint8]
    """uint8 (1, H, W)."""
    speed_mps: float
    action: NDArray[np.float32]
    """float32 (2,)."""
    reward: float
    terminated: bool
    """Whether the episode ended: the car left the field, or the lap is complete."""


def _drive(seed: int) -> Iterator[_Moment]:
    """Yield one episode, up to its end or `EPISODE_STEPS`."""
    import gymnasium

    env = gymnasium.make("CarRacing-v3", max_episode_steps=10 * EPISODE_STEPS)
    picture, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    steer, reward, ended = 0.0, 0.0, False
    action = np.zeros(2, np.float32)
    for number in range(EPISODE_STEPS + 1):
        grey = picture[:_SIDE, _LEFT : _LEFT + _SIDE] @ (0.299, 0.587, 0.114)
        velocity = env.unwrapped.car.hull.linearVelocity  # type: ignore[attr-defined]
        yield _Moment(
            number=number,
            picture=grey.astype(np.uint8)[None],
            speed_mps=math.hypot(*velocity),
            action=action,
            reward=float(reward),
            terminated=ended,
        )
        if ended:
            break
        steer = 0.9 * steer + 0.1 * rng.normal()
        action = np.array([steer, 0.1], np.float32).clip(-1.0, 1.0)
        picture, given, ended, _, _ = env.step(np.array([action[0], action[1], 0.0]))
        reward = float(given)
    env.close()


def _write(writer: SegmentWriter, seed: int, moment: _Moment, frame: NDArray[np.uint8]) -> None:
    seen = Observation(image=frame, vector=np.array([moment.speed_mps / 100.0], np.float32))
    t = moment.number
    if t == 0:
        writer.begin(seen, seed=seed, scenario=0, world="carracing", driver="random")
        return
    writer.step(
        moment.action,
        moment.reward,
        seen,
        terminated=moment.terminated,
        truncated=t == EPISODE_STEPS and not moment.terminated,
    )


def _copy(segment: Segment, writer: SegmentWriter) -> None:
    """Write a segment's episodes with another writer, without their attributes."""
    table, frames, vector = segment.episode_table(), segment.read_frames(), segment.read("vector")
    action, reward = segment.read("action"), segment.read("reward").tolist()
    terms = segment.read("reward_terms") if segment.spec.reward_terms else None
    terminated = segment.read("terminated").tolist()
    for n, first in enumerate(table.observation_offset.tolist()):
        seen = Observation(image=frames[first], vector=vector[first])
        writer.begin(seen, seed=int(table.seed[n]), scenario=0, world="copy", driver="copy")
        for t in range(int(table.length[n])):
            step, is_last = int(table.offset[n]) + t, t + 1 == table.length[n]
            writer.step(
                action[step],
                reward[step],
                Observation(image=frames[first + t + 1], vector=vector[first + t + 1]),
                terminated=terminated[step],
                truncated=is_last and not terminated[step],
                reward_terms=None if terms is None else terms[step],
            )
        writer.end(table.end_reason[n])


_MAKERS: dict[str, Callable[[Path, int], None]] = {
    "road": _make_road,
    "carracing": _make_carracing,
    "carracing-noisy": _make_noisy,
}
