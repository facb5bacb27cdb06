"""`SegmentWriter`: steps in, sealed segments out.

Frames are compressed four at a time as they arrive, so that sealing a segment only writes what is
ready: with lz4hc, nine tenths of the writer's time is the compressor's own.
"""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.events import Event, check_events
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import MANIFEST_FILE, MAX_STEPS
from avtd3.store.pending import PendingSegment
from avtd3.store.seal import EpisodeInfo, SegmentNamer, base_provenance, check_text, seal_files
from avtd3.store.staging import publish
from avtd3.store.step_checker import StepChecker, as_bool
from avtd3.store.writer_config import WriterConfig

__all__ = ["EpisodeInfo", "FrameCodec", "PublishedSegment", "SegmentWriter", "WriterConfig"]

_COLLECTOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SPARE_ROWS = 512


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
        self._provenance = base_provenance(provenance, collector)
        self._is_closed = False
        self._checker = StepChecker(dataset.spec)
        rows = self._config.segment_steps + _SPARE_ROWS
        self._pending = PendingSegment(dataset.spec, self._config.codec, rows)

    @property
    def steps_unpublished(self) -> int:
        """Steps that a crash would lose now, those of the running episode included."""
        return self._pending.steps

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
        if self._pending.running is not None:
            raise SpecError("an episode is running; end_episode or truncate_episode comes first")
        self._checker.check_observation(frame, vector, frame_id, sim_time_s)
        self._pending.begin(info, self._clock())
        self._pending.add_observation(frame, vector, frame_id, sim_time_s)

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
        pending = self._pending
        if pending.running is None or pending.is_over:
            raise SpecError("no episode is running; begin_episode comes first")
        if pending.running_steps >= MAX_STEPS:
            raise SpecError(f"the episode has {MAX_STEPS} steps, the most allowed; end it")
        self._checker.check_action(action)
        total = self._checker.check_reward(reward, reward_terms)
        self._checker.check_observation(frame, vector, frame_id, sim_time_s)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated, truncated = as_bool(terminated), as_bool(truncated)
        pending.add_observation(frame, vector, frame_id, sim_time_s)
        pending.add_step(action, total, reward_terms, terminated, truncated)

    def end_episode(self, reason: str, events: Sequence[Event] = ()) -> PublishedSegment | None:
        """Close the running episode; publish if the segment is long or old enough.

        Args:
            reason: Why it ended.
            events: What happened in it, by step.

        Returns:
            What was published, or None if the segment goes on.

        Raises:
            SpecError: No episode is running, its last step was not the last of an episode, or an
                event is none of its steps'.
            StorageError: Publishing failed; the episodes are kept, `flush` tries again.
        """
        check_text("end reason", reason)
        pending = self._pending
        if pending.running is None or not pending.running_steps:
            raise SpecError("end_episode needs a running episode of at least one step")
        if not pending.is_over:
            raise SpecError(
                "the last step was neither terminated nor truncated; use truncate_episode"
            )
        check_events(events, pending.running_steps)
        pending.end(reason, events)
        age, config = self._clock() - pending.opened_at, self._config
        if pending.whole_steps >= config.segment_steps or age >= config.segment_seconds:
            return self.flush()
        return None

    def truncate_episode(
        self, reason: str, events: Sequence[Event] = ()
    ) -> PublishedSegment | None:
        """Make the running episode whole by marking its last step truncated, and close it.

        An episode without a step is dropped. Without a running episode this does nothing.

        Raises:
            StorageError: Publishing failed; the episodes are kept, `flush` tries again.
        """
        if self._pending.running is None:
            return None
        if not self._pending.running_steps:
            self._pending.drop_running()
            return None
        self._pending.truncate()
        return self.end_episode(reason, events)

    def flush(self) -> PublishedSegment | None:
        """Publish the whole episodes held; a running one stays.

        Returns:
            What was published, or None if there was no whole episode.

        Raises:
            StorageError: The disk is full or not writable; the episodes are kept.
        """
        pending = self._pending
        if not pending.ended:
            return None
        now = self._clock()
        segment_id = self._namer.next(now)
        chunks = pending.encoded_frames()
        files = seal_files(
            segment_id,
            self._dataset,
            pending.columns,
            pending.ended,
            chunks=chunks,
            codec=pending.codec,
            provenance={**self._provenance, "sealed_at": now},
        )
        staging, target = (
            self._dataset.staging_path / segment_id,
            self._dataset.segments_path / segment_id,
        )
        published = PublishedSegment(
            segment_id=segment_id,
            path=target,
            episodes=len(pending.ended),
            steps=pending.whole_steps,
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
        self.bytes_published += published.size_bytes
        self._pending.drop_whole()

    def close(self) -> PublishedSegment | None:
        """Publish the whole episodes held and drop a running one; safe to call twice.

        Raises:
            StorageError: The disk is full or not writable; call again once that is mended.
        """
        if self._is_closed:
            return None
        self._pending.drop_running()
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
