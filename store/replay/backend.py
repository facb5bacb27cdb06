"""The interface between `Sampler` and the place that frames come from, and its records.

`ReplayCache` and `DirectReplay` implement `ReplayBackend`. A backend holds some segments of a
dataset. It gives each of their observations a row, and reads frames and numbers by row.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

Key = tuple[int, str]
"""Identifies a segment in a sampler: index of its dataset, segment id."""

Progress = Callable[[int, int], None]
"""Called with the number of frames done and the number of frames in total."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSummary:
    """A few numbers about each of E episodes, as columns."""

    returns: NDArray[np.float64]
    """float64 (E,), sum of the rewards."""
    lengths: NDArray[np.int64]
    """int64 (E,), number of steps."""
    policy_versions: NDArray[np.int64]
    """int64 (E,), version of the policy that drove; -1 if no policy did."""
    end_reasons: tuple[str, ...]
    """Why each episode ended, length E."""
    reward_term_sums: NDArray[np.float64]
    """float64 (E, R), sum of each reward term over the steps, in the order of the spec."""
    vector_mean_abs: NDArray[np.float64]
    """float64 (E, V), mean absolute value over the observations, as stored (divided by the
    scale)."""

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], end_reasons: Sequence[str]) -> Self:
        """Summarise the episodes of a segment, none of them empty, from its arrays by name."""
        lengths = arrays["episode_length"]
        first_steps = np.cumsum(lengths) - lengths
        rows = lengths + 1
        vector = np.abs(arrays.get("vector", np.zeros((int(rows.sum()), 0), np.float32)))
        terms = arrays.get("reward_terms", np.zeros((int(lengths.sum()), 0), np.float32))
        return cls(
            returns=arrays["episode_return"],
            lengths=lengths,
            policy_versions=arrays["episode_policy_version"],
            end_reasons=tuple(end_reasons),
            reward_term_sums=_sum_runs(terms, first_steps),
            vector_mean_abs=_sum_runs(vector, np.cumsum(rows) - rows) / rows[:, None],
        )

    def choose(self, episodes: NDArray[np.bool_] | slice) -> Self:
        """Return the summary of some episodes, given as bool (E,) or a slice."""
        return type(self)(
            returns=self.returns[episodes],
            lengths=self.lengths[episodes],
            policy_versions=self.policy_versions[episodes],
            end_reasons=tuple(np.array(self.end_reasons, object)[episodes]),
            reward_term_sums=self.reward_term_sums[episodes],
            vector_mean_abs=self.vector_mean_abs[episodes],
        )

    @classmethod
    def join(cls, summaries: Sequence[Self], spec: EpisodeSpec) -> Self:
        """Concatenate summaries; `spec` gives the widths if there are none."""

        def stack(name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
            empty = np.zeros((0, *shape), dtype)
            return np.concatenate([empty, *(getattr(summary, name) for summary in summaries)])

        return cls(
            returns=stack("returns", np.float64),
            lengths=stack("lengths", np.int64),
            policy_versions=stack("policy_versions", np.int64),
            end_reasons=tuple(reason for summary in summaries for reason in summary.end_reasons),
            reward_term_sums=stack("reward_term_sums", np.float64, len(spec.reward_terms)),
            vector_mean_abs=stack("vector_mean_abs", np.float64, spec.vector_size),
        )


def _sum_runs(values: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum the runs of rows that begin at `starts`, none of them empty: float64 (E, ...)."""
    return np.add.reduceat(values, starts, axis=0, dtype=np.float64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSegment:
    """A segment whose transitions can be sampled."""

    steps: int
    """Number of transitions."""
    content: str
    """`Segment.content_digest`."""
    first_rows: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation, relative to `ReplayBackend.start`."""
    episodes: EpisodeSummary
    """Summary of its E episodes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one call of `ReplayBackend.follow` or `ReplayBackend.take_loaded` changed."""

    added: Mapping[Key, LoadedSegment]
    """Segments that can be sampled from now on."""
    removed: int
    """Number of segments that can no longer be sampled."""
    refused: Mapping[Key, Exception]
    """Wanted segments that cannot be used, with the reason."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameArray:
    """All decoded frames of one stream in a replay cache."""

    frames: NDArray[np.uint8] | None
    """uint8 (rows, C, H, W), memory of the cache itself; None while the cache is empty."""
    placed: Mapping[Key, slice]
    """Rows of each segment that can be sampled. The contents of other rows are undefined."""


class FrameSource(Protocol):
    """Reads the frames of one stream of a batch."""

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the frames of rows int64 (B, W) into `out`, uint8 (B, W, C*H*W), contiguous.

        Raise SegmentNotFoundError, SegmentCorruptError or SegmentUnreadableError if a segment was
        removed, is damaged, or cannot be read now; see `ReplayBackend.take_damaged`.
        """


class ReplayBackend(Protocol):
    """Where a sampler's frames and numbers come from."""

    @property
    def segments(self) -> Mapping[Key, LoadedSegment]:
        """Segments that can be sampled."""

    @property
    def frames(self) -> Mapping[str, FrameSource]:
        """Read the frames of each stream, until the next change; empty if there are none."""

    @property
    def is_loading(self) -> bool:
        """Whether a background thread is loading segments; `follow` must not be called then."""

    @property
    def has_loaded(self) -> bool:
        """Whether `take_loaded` has something to return; only True while `is_loading`."""

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the arrays in memory, each ``(rows, ...)``, valid until the next change.

        ``numbers`` is float32 (rows, 2 + A + V), see `avtd3.store.replay.scratch`. There are no
        arrays while there are no segments.
        """

    def start(self, key: Key) -> int:
        """Return the first row of a segment."""

    def frame_array(self, stream: str | None = None) -> FrameArray | None:
        """Return all decoded frames of a stream; None if they are not in memory."""

    def follow(self, wanted: Mapping[Key, Segment], on_progress: Progress | None = None) -> Changes:
        """Load the wanted segments and drop all others, or start to do so in the background.

        Raise StorageError if the disk is full; segments that were loaded and are wanted still are.
        """

    def wait(self) -> None:
        """Wait until `has_loaded`; only while `is_loading`."""

    def take_loaded(self) -> Changes:
        """Return what the background thread has loaded; raise StorageError if the disk is full."""

    def take_damaged(self) -> Mapping[Key, Exception]:
        """Return the segments that `frames` failed to read since the last call, with reasons."""

    def close(self) -> None:
        """Free the scratch space and close all files; safe to call twice."""
