"""`WriterConfig`: how a writer encodes frames and when it closes a segment."""

import dataclasses
import math
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
from avtd3.store.seal import (
    EndedEpisode,
    EpisodeInfo,
    FrameBuffer,
    SegmentNamer,
    StepColumns,
    base_provenance,
    check_text,
    seal_files,
)
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import publish


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


_REWARD_TOLERANCE = 1e-5
_INT64 = 2**63
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_WHOLE = (int, np.integer)
_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


class StepChecker:
    """Holds steps against a spec, in a few microseconds each."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self._vector_names = spec.vector_names
        self._frame_shape = None if spec.image is None else spec.image.frame_shape
        self._vector_shape = (spec.vector_size,) if spec.vector_size else None
        self._terms_shape = (len(spec.reward_terms),) if spec.reward_terms else None
        self._action_shape = (spec.action_size,)
        # Compared as float32, because that is what is stored.
        self._low = np.asarray(spec.action_low, np.float32).tolist()
        self._high = np.asarray(spec.action_high, np.float32).tolist()
        self._zeros = np.zeros(spec.vector_size, np.float32)

    def check_action(self, action: NDArray[np.float32]) -> None:
        """Refuse an action that is not float32 (A,) within the bounds.

        Raises:
            SpecError: It is not.
        """
        _check_array("action", action, self._action_shape, _FLOAT32)
        for value, low, high in zip(action.tolist(), self._low, self._high, strict=True):
            if not low <= value <= high:  # also true of NaN
                raise SpecError(f"action {action} leaves its bounds {self._low} to {self._high}")

    def check_reward(self, reward: float | None, reward_terms: NDArray[np.float32] | None) -> float:
        """The reward to store: the sum of its terms, which a given reward must equal.

        Raises:
            SpecError: Not finite, not the sum, or terms that are not float32 (R,).
        """
        _check_array("reward_terms", reward_terms, self._terms_shape, _FLOAT32)
        if reward_terms is None:
            if reward is None:
                raise SpecError("reward is None, and the spec has no reward_terms to add up")
            total = float(reward)
        else:
            total = sum(reward_terms.tolist())
            if reward is not None and not abs(reward - total) <= _REWARD_TOLERANCE * (
                1.0 + abs(total)
            ):
                raise SpecError(f"reward is {reward}, its terms add up to {total}")
        if not abs(total) <= _FLOAT32_MAX:
            raise SpecError(f"reward is {total}, expected a finite number (terms {reward_terms})")
        return total

    def check_observation(
        self,
        frame: NDArray[np.uint8] | None,
        vector: NDArray[np.float32] | None,
        frame_id: int,
        sim_time_s: float,
    ) -> None:
        """Refuse an observation that is not uint8 (C, H, W) and finite float32 (V,).

        Raises:
            SpecError: It is not.
        """
        _check_array("frame", frame, self._frame_shape, _UINT8)
        _check_array("vector", vector, self._vector_shape, _FLOAT32)
        # Zero times anything finite is zero: one product in place of a comparison and a search.
        if vector is not None and vector.dot(self._zeros) != 0.0:
            names = self._vector_names
            wrong = [names[n] for n in np.flatnonzero(~np.isfinite(vector))]
            raise SpecError(f"vector is not finite at {', '.join(wrong)}")
        if not math.isfinite(sim_time_s):
            raise SpecError(f"sim_time_s is {sim_time_s}, expected a finite number")
        if not isinstance(frame_id, _WHOLE) or not -_INT64 <= frame_id < _INT64:
            raise SpecError(f"frame_id is {frame_id!r}, expected a 64-bit whole number")


def _check_array(
    name: str, value: object, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> None:
    if shape is None:
        if value is not None:
            raise SpecError(f"{name} was given, the spec has none")
        return
    if not isinstance(value, np.ndarray):
        raise SpecError(f"{name} is {type(value).__name__}, expected {dtype} {shape}")
    if value.shape != shape or value.dtype != dtype:
        raise SpecError(f"{name} is {value.dtype} {value.shape}, expected {dtype} {shape}")


def as_bool(value: object) -> bool:
    """Take in Python's and numpy's truth values, and nothing else.

    Raises:
        SpecError: Something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise SpecError(f"terminated and truncated are truth values, not {value!r}")
    return bool(value)


class PendingSegment:
    """Episodes in memory, their frames compressed as they arrive.

    It takes in what a `StepChecker` has let through; the order of calls is the writer's to check.
    """

    def __init__(self, spec: EpisodeSpec, codec: FrameCodec, rows: int) -> None:
        """Start with nothing.

        Args:
            spec: What a step holds.
            codec: How frames are compressed.
            rows: Steps for which there is room at first.
        """
        self._settings = codec
        self.columns = StepColumns(spec, rows)
        self.ended: list[EndedEpisode] = []
        """The whole episodes."""
        self.running: EpisodeInfo | None = None
        """What is known of the running episode; None between episodes."""
        self.steps = 0
        """Steps held, those of the running episode included."""
        self.whole_steps = 0
        """Steps of the whole episodes."""
        self._frames = None if spec.image is None else FrameBuffer(codec, spec.image.frame_shape)
        self.opened_at = 0.0
        """Seconds since 1970 at which the first episode began."""
        self._observations = 0
        self._running_since = 0.0

    @property
    def codec(self) -> FrameCodec:
        """How the frames are compressed; without an image, how they would be."""
        return self._settings if self._frames is None else self._frames.codec

    @property
    def running_steps(self) -> int:
        """Steps of the running episode."""
        return self.steps - self.whole_steps

    @property
    def is_over(self) -> bool:
        """Whether the last step was the last of the running episode."""
        last, columns = self.steps - 1, self.columns
        return last >= self.whole_steps and bool(
            columns.terminated[last] or columns.truncated[last]
        )

    @property
    def whole_observations(self) -> int:
        """Observations of the whole episodes: one more than steps in each."""
        return self.whole_steps + len(self.ended)

    def begin(self, info: EpisodeInfo, now_s: float) -> None:
        """Begin an episode; its first observation comes next."""
        if not self.ended or now_s < self.opened_at:
            self.opened_at = now_s
        self.running, self._running_since = info, now_s

    def add_observation(
        self,
        frame: NDArray[np.uint8] | None,
        vector: NDArray[np.float32] | None,
        frame_id: int,
        sim_time_s: float,
    ) -> None:
        """Take in an observation of the running episode: uint8 (C, H, W) and float32 (V,)."""
        columns, row = self.columns, self._observations
        if row >= columns.rows:
            columns.grow(2 * columns.rows)
        columns.frame_id[row] = frame_id
        columns.sim_time[row] = sim_time_s
        if vector is not None:
            columns.vector[row] = vector
        if self._frames is not None and frame is not None:
            if self._frames.is_due:
                self._frames = self._frames.settled()
            self._frames.append(frame)
        self._observations = row + 1

    def add_step(
        self,
        action: NDArray[np.float32],
        reward: float,
        reward_terms: NDArray[np.float32] | None,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Take in the rest of a step, whose observation came before it."""
        columns, row = self.columns, self.steps
        columns.action[row] = action
        columns.reward[row] = reward
        if reward_terms is not None:
            columns.reward_terms[row] = reward_terms
        columns.terminated[row] = terminated
        columns.truncated[row] = truncated
        self.steps = row + 1

    def truncate(self) -> None:
        """Mark the last step of the running episode as its last, if it is not."""
        if not self.is_over:
            self.columns.truncated[self.steps - 1] = True

    def end(self, reason: str, events: Sequence[Event] = ()) -> None:
        """Make the running episode, of at least one step, a whole one."""
        assert self.running is not None, "the writer has asked"
        rewards = self.columns.reward[self.whole_steps : self.steps]
        self.ended.append(
            EndedEpisode(
                info=self.running,
                length=self.running_steps,
                episode_return=float(rewards.sum(dtype=np.float64)),
                end_reason=reason,
                wall_time=self._running_since,
                events=tuple(events),
            )
        )
        self.whole_steps = self.steps
        self.drop_running()

    def drop_running(self) -> None:
        """Cut everything back to the whole episodes, also what an interrupted step left."""
        self.running = None
        self.steps = self.whole_steps
        self._observations = self.whole_observations
        if self._frames is not None:
            self._frames.truncate(self._observations)

    def encoded_frames(self) -> list[bytes] | None:
        """The chunks of the whole episodes, encoded as `codec` says; None without an image."""
        if self._frames is None:
            return None
        self._frames = self._frames.settled()
        return self._frames.encoded(self.whole_observations)

    def drop_whole(self) -> None:
        """Let go of the whole episodes, which are published, and keep the running one."""
        observations, steps = self.whole_observations, self.whole_steps
        self.columns.drop(observations, steps)
        if self._frames is not None:
            self._frames.drop(observations)
        self.ended = []
        self._observations -= observations
        self.steps -= steps
        self.whole_steps = 0
        self.opened_at = self._running_since


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
