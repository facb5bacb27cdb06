"""The arrays of a segment as the checks see them, and what a check is."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.findings import Fault
from avtd3.store.segment import EpisodeTable
from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameFeatures:
    """What the checks need to know about each of N_obs frames."""

    mean: NDArray[np.float32]
    """float32 (N_obs,): mean grey, 0..255."""
    spread: NDArray[np.uint8]
    """uint8 (N_obs,): brightest less darkest value."""
    repeated: NDArray[np.bool_]
    """bool (N_obs,): equal, byte for byte, to the frame before."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The arrays of a segment, frames reduced to their features."""

    vector: NDArray[np.float32] | None
    """float32 (N_obs, V), or None."""
    frames: FrameFeatures | None
    """None for vector-only data."""
    frame_id: NDArray[np.int64]
    """int64 (N_obs,)."""
    sim_time: NDArray[np.float64]
    """float64 (N_obs,), seconds."""
    action: NDArray[np.float32]
    """float32 (N_steps, A)."""
    reward: NDArray[np.float32]
    """float32 (N_steps,)."""
    reward_terms: NDArray[np.float32] | None
    """float32 (N_steps, R), or None."""
    terminated: NDArray[np.bool_]
    """bool (N_steps,)."""
    truncated: NDArray[np.bool_]
    """bool (N_steps,)."""
    episodes: EpisodeTable
    """What is known of each of E episodes."""

    @property
    def step_episode(self) -> NDArray[np.int64]:
        """Episode of each step, int64 (N_steps,)."""
        return np.repeat(np.arange(len(self.episodes.length)), self.episodes.length)

    @property
    def observation_episode(self) -> NDArray[np.int64]:
        """Episode of each observation, int64 (N_obs,)."""
        return np.repeat(np.arange(len(self.episodes.length)), self.episodes.length + 1)

    @property
    def observation_start(self) -> NDArray[np.int64]:
        """First observation's row of each episode, int64 (E,)."""
        return self.episodes.observation_offset


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameLimits:
    """What the frame checks still accept."""

    black_level: float
    """Mean grey below which a frame is black."""
    frozen_frames: int
    """Equal frames in a row, while the car moves, that make a frozen picture."""


SemanticCheck = Callable[[Evidence, EpisodeSpec, FrameLimits], Iterator[Fault]]
"""Yields the faults of one kind in a segment."""


def first_rows(
    bad: NDArray[np.bool_], episode_of: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """For each episode with bad rows: its number, its first bad row, and how many it has."""
    rows = np.flatnonzero(bad)
    episodes, first, counts = np.unique(episode_of[rows], return_index=True, return_counts=True)
    yield from zip(episodes.tolist(), rows[first].tolist(), counts.tolist(), strict=True)
