"""`EpisodeTable`: what a segment knows about each of its episodes, as columns."""

import dataclasses

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeTable:
    """What a segment knows about each of its E episodes, as columns of length E."""

    offset: NDArray[np.int64]
    """Row of the first step; its first observation's row is ``offset + number in the segment``."""
    length: NDArray[np.int64]
    """Steps."""
    index: NDArray[np.int64]
    """Position in the collector's plan, -1 if unknown."""
    seed: NDArray[np.int64]
    """Seed of the episode's world."""
    scenario: NDArray[np.int64]
    """Number of the scenario."""
    episode_return: NDArray[np.float64]
    """Sum of the stored rewards."""
    policy_version: NDArray[np.int64]
    """Version of the driving policy, -1 if there was none."""
    exploration_noise: NDArray[np.float32]
    """Standard deviation of the noise on the actions."""
    wall_time: NDArray[np.float64]
    """Start of the episode, in seconds since 1970, by the collector's clock."""
    world: list[str]
    """Name of the simulator."""
    town: list[str]
    """Name of the road network."""
    weather: list[str]
    """Name of the weather."""
    driver: list[str]
    """Who drove."""
    end_reason: list[str]
    """Why the episode ended."""
    policy_digest: list[str]
    """SHA-256 of the policy's file, or an empty string."""

    @property
    def observation_offset(self) -> NDArray[np.int64]:
        """int64 (E,): row of each episode's first observation."""
        return self.offset + np.arange(len(self.offset), dtype=np.int64)
