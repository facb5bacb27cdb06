"""The arrays of a segment as the checks see them, and what a check is."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.findings import Fault
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import ConfigError
from avtd3.store.spec import EpisodeSpec

SPEED = "speed_mps"
"""The vector's component that is the car's own speed; no other name says its unit."""


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

    def of_episodes(self, chosen: NDArray[np.bool_]) -> Self:
        """Some of the episodes, chosen by bool (E,), one after the other as in a segment."""
        steps, seen = chosen[self.step_episode], chosen[self.observation_episode]
        table, frames = self.episodes, self.frames
        episodes = table.select(chosen)
        offset, number = np.cumsum(episodes.length) - episodes.length, np.arange(len(episodes))
        return dataclasses.replace(
            self,
            vector=None if self.vector is None else self.vector[seen],
            frames=None
            if frames is None
            else FrameFeatures(
                mean=frames.mean[seen], spread=frames.spread[seen], repeated=frames.repeated[seen]
            ),
            frame_id=self.frame_id[seen],
            sim_time=self.sim_time[seen],
            action=self.action[steps],
            reward=self.reward[steps],
            reward_terms=None if self.reward_terms is None else self.reward_terms[steps],
            terminated=self.terminated[steps],
            truncated=self.truncated[steps],
            episodes=dataclasses.replace(episodes, offset=offset, number=number),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckLimits:
    """What the checks still accept; each field is a setting of the audit."""

    black_level: float = 2.0
    """Mean grey, of 255, below which a frame is black."""
    frozen_frames: int = 20
    """Equal frames in a row, while the car moves, that make a frozen picture (1 s at 20 Hz)."""
    flash_level: float = 60.0
    """Greys by which one frame may differ from both its neighbours, which agree."""
    stutter_share: float = 0.25
    """Share of an episode's frames, while the car moves, that may repeat the frame before."""
    frozen_actions: int = 200
    """Steps in a row with the same action, while the car moves, that make a frozen driver."""
    vector_limit: float = 50.0
    """Largest size of a normalised component: beyond it a unit or a scale is wrong."""
    reward_limit: float = 1000.0
    """Largest size of one step's reward that the task can give."""
    acceleration_mps2: float = 1000.0
    """Largest change of speed per second: 50 m/s within a step of 50 ms."""
    shortest_episode: int = 2
    """Least steps of an episode that is of use."""
    truncated_reasons: tuple[str, ...] = ("time_limit",)
    """Reasons of an end that is no terminal state: such an end is truncated, not terminated."""

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("black_level", 0.0 <= self.black_level <= 255.0, "0 to 255"),
            ("frozen_frames", self.frozen_frames >= 2, "2 or more"),
            ("flash_level", 0.0 < self.flash_level <= 255.0, "above 0 and at most 255"),
            ("stutter_share", 0.0 < self.stutter_share <= 1.0, "above 0 and at most 1"),
            ("frozen_actions", self.frozen_actions >= 2, "2 or more"),
            ("vector_limit", self.vector_limit > 0.0, "above 0"),
            ("reward_limit", self.reward_limit > 0.0, "above 0"),
            ("acceleration_mps2", self.acceleration_mps2 > 0.0, "above 0"),
            ("shortest_episode", self.shortest_episode >= 1, "1 or more"),
        ):
            if not holds:
                value = getattr(self, name)
                raise ConfigError(f"audit.limits.{name} is {value!r}, expected {allowed}")


SemanticCheck = Callable[[Evidence, EpisodeSpec, CheckLimits], Iterator[Fault]]
"""Yields the faults of one kind in a segment."""


def first_rows(
    bad: NDArray[np.bool_], episode_of: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """For each episode with bad rows: its number, its first bad row, and how many it has."""
    rows = np.flatnonzero(bad)
    episodes, first, counts = np.unique(episode_of[rows], return_index=True, return_counts=True)
    yield from zip(episodes.tolist(), rows[first].tolist(), counts.tolist(), strict=True)


def speed_mps(evidence: Evidence, spec: EpisodeSpec) -> NDArray[np.float32] | None:
    """Speed at each observation, if the spec has it; ``speed_kmh`` or a limit is something else."""
    if SPEED not in spec.vector_names or evidence.vector is None:
        return None
    part = spec.vector_names.index(SPEED)
    return evidence.vector[:, part] * np.float32(spec.vector_scales[part])


def runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of True."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
