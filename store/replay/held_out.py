"""Episodes that are never drawn: a stable share, for judging what was learned.

Whether an episode is held out depends on what it is: the SHA-256 of its world, town, scenario,
seed and index in the plan. So the split is the same after a compaction, a copy, a relabelling or
another collection by the same plan, and two drives of the same seed are never on both sides. It
does not depend on the time, the driver or the data. A larger share holds out the same episodes and
more. Episodes that agree in all five (as where a writer has no seeds) all fall on one side.
"""

import dataclasses
import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


def split_positions(table: EpisodeTable) -> NDArray[np.float64]:
    """Where each episode stands in the split: float64 (E,) in [0, 1], uniform over identities.

    Those below the share are held out.
    """
    columns = (table.world, table.town, table.scenario, table.seed, table.index)
    lists = [column if isinstance(column, list) else column.tolist() for column in columns]
    digests = (
        hashlib.sha256(json.dumps(identity).encode()).digest()
        for identity in zip(*lists, strict=True)
    )
    return np.array([int.from_bytes(digest[:8]) / 2**64 for digest in digests], np.float64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeldOutEpisode:
    """One whole episode of T steps, in order."""

    segment_id: str
    """Segment that it lies in."""
    number: int
    """Its number there."""
    frames: NDArray[np.uint8] | None
    """uint8 (T + 1, C, H, W), single frames; None without an image."""
    vector: NDArray[np.float32] | None
    """float32 (T + 1, V), normalised; None without a vector."""
    action: NDArray[np.float32]
    """float32 (T, A)."""
    reward: NDArray[np.float32]
    """float32 (T,)."""
    terminated: bool
    """Whether it ended in a state without a future; otherwise it was truncated."""

    def __repr__(self) -> str:
        return f"HeldOutEpisode({self.segment_id!r}, {self.number}, steps={len(self.reward)})"

    def stacks(self, stack: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Stacked observations from `start` to before `stop`, clamped to the episode's start.

        Args:
            stack: Frames in each, K.
            start: First observation.
            stop: Behind the last one; None for the end.

        Returns:
            uint8 (stop - start, K*C, H, W), oldest frame first.
        """
        assert self.frames is not None, "there are no stacks without an image"
        last = len(self.frames) if stop is None else stop
        rows = np.arange(start, last)[:, None] + np.arange(1 - stack, 1)
        stacked: NDArray[np.uint8] = self.frames[rows.clip(0)]  # (T + 1, K, C, H, W)
        return stacked.reshape(len(stacked), -1, *stacked.shape[3:])


def read_episode(segment: Segment, number: int, spec: EpisodeSpec) -> HeldOutEpisode:
    """Read one episode of a segment.

    Raises:
        SegmentNotFoundError: The segment was removed.
        SegmentCorruptError: Its bytes are not those that were published.
    """
    table = segment.episode_table()
    start, length = int(table.offset[number]), int(table.length[number])
    first = int(table.observation_offset[number])
    steps, observations = slice(start, start + length), slice(first, first + length + 1)
    has_image = spec.image is not None
    return HeldOutEpisode(
        segment_id=segment.id,
        number=number,
        frames=segment.read_frames(observations.start, observations.stop) if has_image else None,
        vector=segment.read("vector")[observations] if spec.vector_size else None,
        action=segment.read("action")[steps],
        reward=segment.read("reward")[steps],
        terminated=bool(segment.read("terminated")[steps][-1]),
    )
