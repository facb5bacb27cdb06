"""The arrays of a segment as the checks see them: frames are reduced to a few features."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import SegmentCorruptError
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step_labels import EXPERT_ACTION, STEP_DRIVER, label_columns

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Episode of each row, and first row of each episode."""
SPEED = "speed_mps"
"""Component of the vector that is the car's own speed; no other name states its unit."""
BLOCK_BYTES = 1 << 20
"""Raw frames that are decoded at a time: few enough for the CPU cache, enough to save calls."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameFeatures:
    """What the checks need to know about each of N_obs frames."""

    mean: NDArray[np.float32]
    """float32 (N_obs,): mean grey level, 0..255."""
    spread: NDArray[np.uint8]
    """uint8 (N_obs,): brightest minus darkest value."""
    repeated: NDArray[np.bool_]
    """bool (N_obs,): whether the frame equals the previous one, byte for byte."""

    def of_rows(self, rows: NDArray[np.bool_]) -> Self:
        """Return the features of the selected frames, bool (N_obs,)."""
        return type(self)(
            mean=self.mean[rows], spread=self.spread[rows], repeated=self.repeated[rows]
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentData:
    """The arrays of a segment, with features instead of frames.

    The vector (N_obs, V), features, frame numbers and times in seconds have one row per
    observation; the other arrays, such as the action (N_steps, A), have one row per step.
    """

    spec: EpisodeSpec
    vector: NDArray[np.float32] | None
    streams: Mapping[str, FrameFeatures]
    """Those of the frames of each stream, see `EpisodeSpec.images`."""
    frame_id: NDArray[np.int64]
    sim_time: NDArray[np.float64]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    reward_terms: NDArray[np.float32] | None
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    episodes: EpisodeTable
    expert_action: NDArray[np.float32] | None = None
    """What the expert would have done, NaN where that is not known; None if it never is."""
    step_driver: NDArray[np.uint8] | None = None
    """Who drove, see `avtd3.store.step_labels`; None if that is not known of any step."""

    @classmethod
    def read(cls, segment: Segment) -> Self:
        """Read all arrays of a segment."""
        spec = segment.spec
        streams = {}
        for name, image in spec.images.items():
            read = functools.partial(segment.read_frames, stream=name)
            streams[name] = scan_frames(read, segment.observations, image)
        names = ("frame_id", "sim_time", "action", "reward", "terminated", "truncated")
        arrays: dict[str, Any] = {name: segment.read(name) for name in names}
        with contextlib.suppress(SegmentCorruptError):  # which is a finding of its own
            lengths = segment.read("episode_length").tolist()
            columns = label_columns(segment.labels() or [None] * len(lengths), lengths, spec)
            for name in (EXPERT_ACTION, STEP_DRIVER):
                arrays[name] = columns[name][1] if name in columns else None
        return cls(
            spec=spec,
            streams=streams,
            vector=segment.read("vector") if spec.vector_size else None,
            reward_terms=segment.read("reward_terms") if spec.reward_terms else None,
            episodes=segment.episode_table(),
            **arrays,
        )

    @property
    def step_episode(self) -> NDArray[np.int64]:
        """Return the episode of each step, int64 (N_steps,)."""
        return np.repeat(np.arange(len(self.episodes.length)), self.episodes.length)

    @property
    def observation_episode(self) -> NDArray[np.int64]:
        """Return the episode of each observation, int64 (N_obs,)."""
        return np.repeat(np.arange(len(self.episodes.length)), self.episodes.length + 1)

    @property
    def step_places(self) -> Places:
        """Return the places of the rows of steps."""
        return self.step_episode, self.episodes.offset

    @property
    def observation_places(self) -> Places:
        """Return the places of the rows of observations."""
        return self.observation_episode, self.observation_start

    @property
    def observation_start(self) -> NDArray[np.int64]:
        """Return the row of each episode's first observation, int64 (E,)."""
        return self.episodes.observation_offset

    @property
    def speed_mps(self) -> NDArray[np.float32] | None:
        """Return the car's speed at each observation, float32 (N_obs,); None if not observed."""
        if SPEED not in self.spec.vector_names or self.vector is None:
            return None
        part = self.spec.vector_names.index(SPEED)
        return self.vector[:, part] * np.float32(self.spec.vector_scales[part])

    def of_episodes(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the data of the selected episodes, bool (E,), as if they were a segment."""
        steps, seen = chosen[self.step_episode], chosen[self.observation_episode]
        episodes = self.episodes.select(chosen)
        offset, number = np.cumsum(episodes.length) - episodes.length, np.arange(len(episodes))
        rows = dict.fromkeys(("vector", "frame_id", "sim_time"), seen)
        rows |= dict.fromkeys(("action", "expert_action", "step_driver", "reward"), steps)
        rows |= dict.fromkeys(("reward_terms", "terminated", "truncated"), steps)
        arrays = {name: getattr(self, name) for name in rows}
        return dataclasses.replace(
            self,
            streams={name: found.of_rows(seen) for name, found in self.streams.items()},
            episodes=dataclasses.replace(episodes, offset=offset, number=number),
            **{name: a[rows[name]] for name, a in arrays.items() if a is not None},
        )


def scan_frames(
    read: Callable[[int, int, NDArray[np.uint8]], object], frames: int, image: ImageSpec
) -> FrameFeatures:
    """Compute the features of all frames in bounded memory.

    ``read`` decodes the frames from a start to a stop into a uint8 (n, C, H, W) buffer.
    """
    # Blocks are whole chunks, so that no chunk is decoded twice.
    block = max(4, BLOCK_BYTES // image.frame_bytes // 16 * 16)
    # The first row of the buffer is the last frame of the previous block.
    buffer = np.empty((min(block, frames) + 1, *image.frame_shape), np.uint8)
    # 32 bits are twice as fast as 64, and enough for frames of up to 16 MiB.
    total = np.uint32 if image.frame_bytes <= 2**24 else np.uint64
    mean = np.empty(frames, np.float32)
    spread = np.empty(frames, np.uint8)
    repeated = np.zeros(frames, np.bool_)
    for start in range(0, frames, block):
        stop = min(frames, start + block)
        read(start, stop, buffer[1 : 1 + stop - start])
        flat = buffer[: 1 + stop - start].reshape(1 + stop - start, -1)
        mean[start:stop] = flat[1:].sum(axis=1, dtype=total) / image.frame_bytes
        spread[start:stop] = flat[1:].max(axis=1) - flat[1:].min(axis=1)
        repeated[start:stop] = (flat[1:] == flat[:-1]).all(axis=1)
        buffer[0] = buffer[stop - start]
    repeated[:1] = False
    return FrameFeatures(mean=mean, spread=spread, repeated=repeated)
