"""`SegmentWriter`: steps in, sealed segments out.

Frames are compressed four at a time as they arrive, so that sealing a segment only writes what is
ready: with lz4hc, nine tenths of the writer's time is the compressor's own.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.codec import FrameCodec
from avtd3.store.columns import FrameBuffer, StepColumns
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.layout import MANIFEST_FILE, MAX_STEPS
from avtd3.store.seal import (
    EndedEpisode,
    EpisodeInfo,
    SegmentNamer,
    base_provenance,
    check_text,
    seal_files,
)
from avtd3.store.staging import publish
from avtd3.store.step_checker import StepChecker, as_bool

__all__ = ["EpisodeInfo", "FrameCodec", "PublishedSegment", "SegmentWriter", "WriterConfig"]

_COLLECTOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SPARE_ROWS = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WriterConfig:
    """How frames are encoded and when a segment is closed."""

    codec: FrameCodec = dataclasses.field(default_factory=FrameCodec)
    """How frames are compressed."""
    segment_steps: int = 2048
    """Steps after which a segment is closed, at the end of the episode that reaches them."""
    segment_seconds: float = 30.0
    """Age in seconds after which a segment is closed, at the end of an episode."""

    def __post_init__(self) -> None:
        steps, seconds = self.segment_steps, self.segment_seconds
        if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
            raise ConfigError(f"writer.segment_steps is {steps!r}, expected 1..{MAX_STEPS}")
        if not 0.0 <= seconds < math.inf:
            raise ConfigError(f"writer.segment_seconds is {seconds!r}, expected 0 or more")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSegment:
    """What has just appeared in a dataset."""

    segment_id: str
    """Name of the segment."""
    path: Path
    """Its directory."""
    episodes: int
    """Whole episodes in it."""
    steps: int
    """Sum of their lengths."""
    size_bytes: int
    """Bytes on disk, the manifest included."""


class SegmentWriter:
    """Collects the steps of one environment and publishes whole episodes as segments.

    A failed publication (`StorageError`: the disk is full) loses nothing: the episodes stay in
    memory, and the next `flush` or `end_episode` tries again. Not for use by several threads; any
    number of writers, in any processes, may publish into one dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        collector: str,
        provenance: Mapping[str, Any],
        config: WriterConfig | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start with nothing.

        Args:
            dataset: Where to publish.
            collector: Name of the collector, part of each segment's name: letters, digits, - and _.
            provenance: JSON that is kept with every segment: config, its digest, simulator build.
            config: How and when; None for the defaults.
            clock: Seconds since 1970.

        Raises:
            ConfigError: The collector's name cannot be part of a directory's name.
            SpecError: The provenance is not JSON.
        """
        if not _COLLECTOR_NAME.fullmatch(collector):
            raise ConfigError(
                f"collector is {collector!r}, expected 1 to 64 letters, digits, '-' or '_'"
            )
        self.bytes_published = 0
        self._dataset = dataset
        self._config = config or WriterConfig()
        self._clock = clock
        self._namer = SegmentNamer(collector)
        self._provenance = base_provenance(provenance, collector, self._config.codec)
        self._is_closed = False
        self._checker = StepChecker(dataset.spec)
        self._start_buffers()

    def _start_buffers(self) -> None:
        spec, config = self._dataset.spec, self._config
        self._columns = StepColumns(spec, config.segment_steps + _SPARE_ROWS)
        self._frames = (
            None if spec.image is None else FrameBuffer(config.codec, spec.image.frame_shape)
        )
        self._ended: list[EndedEpisode] = []
        self._running: EpisodeInfo | None = None
        self._observations = 0
        self._steps = 0
        self._whole_steps = 0
        self._opened_at = 0.0
        self._running_since = 0.0

    @property
    def steps_unpublished(self) -> int:
        """Steps that a crash would lose now, those of the running episode included."""
        return self._steps

    def begin_episode(
        self,
        info: EpisodeInfo,
        *,
        frame: NDArray[np.uint8] | None,
        vector: NDArray[np.float32] | None,
        frame_id: int,
        sim_time_s: float,
    ) -> None:
        """Take in an episode's first observation.

        Args:
            info: What is known of the episode.
            frame: uint8 (C, H, W), or None if the spec has no image.
            vector: float32 (V,), finite, or None if the spec has no vector.
            frame_id: The simulator's number of the frame.
            sim_time_s: Simulated seconds.

        Raises:
            SpecError: The observation is not of the spec, or an episode is running.
        """
        if self._is_closed:
            raise SpecError("the writer is closed; make a new one")
        if self._running is not None:
            raise SpecError("an episode is running; end_episode or truncate_episode comes first")
        self._checker.check_observation(frame, vector, frame_id, sim_time_s)
        now = self._clock()
        if not self._ended or now < self._opened_at:
            self._opened_at = now
        self._running_since = now
        self._running = info
        self._append_observation(frame, vector, frame_id, sim_time_s)

    def step(
        self,
        *,
        action: NDArray[np.float32],
        reward: float | None,
        reward_terms: NDArray[np.float32] | None,
        frame: NDArray[np.uint8] | None,
        vector: NDArray[np.float32] | None,
        terminated: bool,
        truncated: bool,
        frame_id: int,
        sim_time_s: float,
    ) -> None:
        """Take in one step: an action, its reward, and the observation it led to.

        Args:
            action: float32 (A,), within the spec's bounds.
            reward: The reward, or None for the sum of its terms.
            reward_terms: float32 (R,), finite, or None if the spec has none.
            frame: uint8 (C, H, W), or None if the spec has no image.
            vector: float32 (V,), finite, or None if the spec has no vector.
            terminated: Whether the episode ended in a state without a future.
            truncated: Whether it was cut off.
            frame_id: The simulator's number of the frame.
            sim_time_s: Simulated seconds.

        Raises:
            SpecError: Something is not of the spec; nothing was taken in.
        """
        row = self._steps
        if self._running is None or (row > self._whole_steps and self._is_over(row - 1)):
            raise SpecError("no episode is running; begin_episode comes first")
        if row - self._whole_steps >= MAX_STEPS:
            raise SpecError(f"the episode has {MAX_STEPS} steps, the most allowed; end it")
        self._checker.check_action(action)
        total = self._checker.check_reward(reward, reward_terms)
        self._checker.check_observation(frame, vector, frame_id, sim_time_s)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated, truncated = as_bool(terminated), as_bool(truncated)
        self._append_observation(frame, vector, frame_id, sim_time_s)
        columns = self._columns
        columns.action[row] = action
        columns.reward[row] = total
        if reward_terms is not None:
            columns.reward_terms[row] = reward_terms
        columns.terminated[row] = terminated
        columns.truncated[row] = truncated
        self._steps = row + 1

    def _append_observation(
        self,
        frame: NDArray[np.uint8] | None,
        vector: NDArray[np.float32] | None,
        frame_id: int,
        sim_time_s: float,
    ) -> None:
        columns, row = self._columns, self._observations
        if row >= columns.rows:
            columns.grow(2 * columns.rows)
        columns.frame_id[row] = frame_id
        columns.sim_time[row] = sim_time_s
        if vector is not None:
            columns.vector[row] = vector
        if self._frames is not None and frame is not None:
            self._frames.append(frame)
        self._observations = row + 1

    def _is_over(self, row: int) -> bool:
        return bool(self._columns.terminated[row] or self._columns.truncated[row])

    def end_episode(self, reason: str) -> PublishedSegment | None:
        """Close the running episode; publish if the segment is long or old enough.

        Args:
            reason: Why it ended.

        Returns:
            What was published, or None if the segment goes on.

        Raises:
            SpecError: No episode is running, or its last step was not the last of an episode.
            StorageError: Publishing failed; the episodes are kept, `flush` tries again.
        """
        check_text("end reason", reason)
        if self._running is None or self._steps == self._whole_steps:
            raise SpecError("end_episode needs a running episode of at least one step")
        if not self._is_over(self._steps - 1):
            raise SpecError(
                "the last step was neither terminated nor truncated; use truncate_episode"
            )
        rewards = self._columns.reward[self._whole_steps : self._steps]
        self._ended.append(
            EndedEpisode(
                info=self._running,
                length=self._steps - self._whole_steps,
                episode_return=float(rewards.sum(dtype=np.float64)),
                end_reason=reason,
                wall_time=self._running_since,
            )
        )
        self._whole_steps = self._steps
        self._discard_running()
        age = self._clock() - self._opened_at
        if self._whole_steps >= self._config.segment_steps or age >= self._config.segment_seconds:
            return self.flush()
        return None

    def truncate_episode(self, reason: str) -> PublishedSegment | None:
        """Make the running episode whole by marking its last step truncated, and close it.

        An episode without a step is dropped. Without a running episode this does nothing.

        Raises:
            StorageError: Publishing failed; the episodes are kept, `flush` tries again.
        """
        if self._running is None:
            return None
        if self._steps == self._whole_steps:
            self._discard_running()
            return None
        if not self._is_over(self._steps - 1):
            self._columns.truncated[self._steps - 1] = True
        return self.end_episode(reason)

    def _discard_running(self) -> None:
        """Cut everything back to the whole episodes, also what an interrupted `step` left."""
        self._running = None
        self._steps = self._whole_steps
        self._observations = self._whole_steps + len(self._ended)
        if self._frames is not None:
            self._frames.truncate(self._observations)

    def flush(self) -> PublishedSegment | None:
        """Publish the whole episodes held; a running one stays.

        Returns:
            What was published, or None if there was no whole episode.

        Raises:
            StorageError: The disk is full or not writable; the episodes are kept.
        """
        if not self._ended:
            return None
        now = self._clock()
        segment_id = self._namer.next(now)
        observations = self._whole_steps + len(self._ended)
        chunks = None if self._frames is None else self._frames.encoded(observations)
        files = seal_files(
            segment_id,
            self._dataset,
            self._columns,
            self._ended,
            chunks=chunks,
            codec=self._config.codec,
            provenance={**self._provenance, "sealed_at": now},
        )
        staging, target = (
            self._dataset.staging_path / segment_id,
            self._dataset.segments_path / segment_id,
        )
        published = PublishedSegment(
            segment_id=segment_id,
            path=target,
            episodes=len(self._ended),
            steps=self._whole_steps,
            size_bytes=sum(map(len, files.values())),
        )
        try:
            publish(staging, target, files, MANIFEST_FILE)
        except BaseException:
            # What readers can see is published, even if the last fsync failed or a signal came:
            # kept, it would be published twice.
            if os.path.exists(target):  # noqa: PTH110 - never raises
                self._forget(published)
            raise
        self._forget(published)
        return published

    def _forget(self, published: PublishedSegment) -> None:
        """Let go of what has been published and keep the running episode."""
        self.bytes_published += published.size_bytes
        observations = published.steps + published.episodes
        self._columns.drop(observations, published.steps)
        if self._frames is not None:
            self._frames.drop(observations)
        self._ended = []
        self._observations -= observations
        self._steps -= published.steps
        self._whole_steps = 0
        self._opened_at = self._running_since

    def close(self) -> PublishedSegment | None:
        """Publish the whole episodes held and drop a running one; safe to call twice.

        Raises:
            StorageError: The disk is full or not writable; call again once that is mended.
        """
        if self._is_closed:
            return None
        if self._running is not None:
            self._discard_running()
        published = self.flush()
        self._is_closed = True
        return published

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
