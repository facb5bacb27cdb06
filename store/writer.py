"""`SegmentWriter`: take steps, keep whole episodes in memory, publish them as segments.

`StepChecker` checks each step against the spec, `PendingSegment` holds what is not published yet.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import MAX_ATTRIBUTES, Attribute, EpisodeInfo, check_text
from avtd3.store.errors import ConfigError, SpecError, abbreviate
from avtd3.store.events import Event, check_events
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import MANIFEST_FILE, MAX_STEPS, frames_array
from avtd3.store.seal import (
    EncodedFrames,
    EndedEpisode,
    SegmentNamer,
    StepColumns,
    base_provenance,
    frame_buffers,
    seal_files,
)
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import publish
from avtd3.store.step import Observation, Step
from avtd3.store.step_labels import StepLabels
from avtd3.store.world_record import WorldRecord, publish_map


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WriterConfig:
    """Codec of the frames, and when a segment is closed.

    Example:
        >>> WriterConfig(segment_steps=512).codec.name
        'lz4hc'
    """

    codec: FrameCodec = dataclasses.field(default_factory=FrameCodec)
    """How frames are compressed."""
    segment_steps: int = 2048
    """Steps after which a segment is closed, when the episode that reaches them ends."""
    segment_seconds: float = 30.0
    """Age in seconds after which a segment is closed, when an episode ends."""

    def __post_init__(self) -> None:
        steps, seconds = self.segment_steps, self.segment_seconds
        if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
            raise ConfigError(
                f"writer.segment_steps is {abbreviate(steps)}, expected 1..{MAX_STEPS}"
            )
        if not 0.0 <= seconds < math.inf:
            raise ConfigError(
                f"writer.segment_seconds is {abbreviate(seconds)}, expected 0 or more"
            )


_REWARD_TOLERANCE = 1e-5
_INT64 = 2**63
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_WHOLE = (int, np.integer)
_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


class StepChecker:
    """Checks steps against a spec, in a few microseconds each."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self._vector_names = spec.vector_names
        self._frame_shape = None if spec.image is None else spec.image.frame_shape
        self._stream_shapes = {name: image.frame_shape for name, image in spec.streams.items()}
        self._vector_shape = (spec.vector_size,) if spec.vector_size else None
        self._terms_shape = (len(spec.reward_terms),) if spec.reward_terms else None
        self._action_shape = (spec.action_size,)
        # Compared as float32, which is what is stored.
        bounds = np.asarray((spec.action_low, spec.action_high), np.float32).T.tolist()
        self._bounds = list(enumerate(bounds))
        self._zeros = np.zeros(spec.vector_size, np.float32)
        self._period_s = spec.control_period_s

    def check_action(self, action: NDArray[np.float32]) -> None:
        """Raise if an action is not float32 (A,) within the bounds."""
        _check_array("action", action, self._action_shape, _FLOAT32)
        values = action.tolist()
        for n, (low, high) in self._bounds:
            if not low <= values[n] <= high:  # also true of NaN
                raise SpecError(f"action[{n}] is {values[n]}, expected {low} to {high}")

    def check_reward(self, reward: float | None, reward_terms: NDArray[np.float32] | None) -> float:
        """Return the reward to store: the sum of its terms, which a given reward must equal."""
        _check_array("reward_terms", reward_terms, self._terms_shape, _FLOAT32)
        if reward_terms is None:
            if reward is None:
                raise SpecError("reward is None, but the spec has no reward_terms to add up")
            total = float(reward)
        else:
            total = sum(reward_terms.tolist())
            if reward is not None and not abs(reward - total) <= _REWARD_TOLERANCE * (
                1.0 + abs(total)
            ):
                raise SpecError(f"reward is {reward}, but its terms add up to {total}")
        if not abs(total) <= _FLOAT32_MAX:
            raise SpecError(f"reward is {total}, expected a finite number (terms {reward_terms})")
        return total

    def check_observation(self, observation: Observation, number: int) -> tuple[int, float]:
        """Raise if an observation is not uint8 (C, H, W) and finite float32 (V,).

        Return its frame number and simulated seconds, counted from ``number`` if not given.
        """
        if not isinstance(observation, Observation):
            raise SpecError(
                f"observation is {type(observation).__name__}, expected an avtd3.store.Observation"
            )
        vector, frame_id, time_s = observation.vector, observation.frame_id, observation.sim_time_s
        _check_array("image", observation.image, self._frame_shape, _UINT8)
        if self._stream_shapes or observation.streams is not None:
            self._check_streams(observation.streams or {})
        _check_array("vector", vector, self._vector_shape, _FLOAT32)
        # Zero times any finite number is zero: one product instead of a comparison and a search.
        if vector is not None and vector.dot(self._zeros) != 0.0:
            names = self._vector_names
            wrong = [names[n] for n in np.flatnonzero(~np.isfinite(vector))]
            raise SpecError(f"vector is not finite at {', '.join(wrong)}")
        if time_s is None:
            time_s = number * self._period_s
        elif not math.isfinite(time_s):
            raise SpecError(f"sim_time_s is {time_s}, expected a finite number")
        if frame_id is None:
            frame_id = number
        elif not isinstance(frame_id, _WHOLE) or not -_INT64 <= frame_id < _INT64:
            raise SpecError(f"frame_id is {abbreviate(frame_id)}, expected a 64-bit whole number")
        return frame_id, time_s

    def _check_streams(self, streams: Mapping[str, NDArray[np.uint8]]) -> None:
        if streams.keys() != self._stream_shapes.keys():
            expected = ", ".join(self._stream_shapes) or "none"
            raise SpecError(
                f"observation has the streams {abbreviate(sorted(streams))}, expected {expected}"
            )
        for name, shape in self._stream_shapes.items():
            _check_array(f"stream {name}", streams[name], shape, _UINT8)


def _check_array(
    name: str, value: object, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> None:
    if shape is None:
        if value is not None:
            raise SpecError(f"{name} was given, but the spec has none")
    elif not isinstance(value, np.ndarray):
        raise SpecError(f"{name} is {type(value).__name__}, expected {dtype} {shape}")
    elif value.shape != shape or value.dtype != dtype:
        raise SpecError(f"{name} is {value.dtype} {value.shape}, expected {dtype} {shape}")


def as_bool(value: object) -> bool:
    """Return a Python or numpy bool as a Python one."""
    if not isinstance(value, bool | np.bool_):
        raise SpecError(f"terminated or truncated is {abbreviate(value)}, expected True or False")
    return bool(value)


class PendingSegment:
    """Episodes in memory; their frames are compressed as they arrive.

    It does not check anything: the writer checks values (`StepChecker`) and the order of calls.
    """

    def __init__(self, spec: EpisodeSpec, codec: FrameCodec, rows: int) -> None:
        self.codec = codec
        """The configured codec of the frames."""
        self.columns = StepColumns(spec, rows)
        self.ended: list[EndedEpisode] = []
        """The whole episodes."""
        self.running: EpisodeInfo | None = None
        """What is known of the running episode; None between episodes."""
        self.end_reason = ""
        """End reason that came with the last step of the running episode."""
        self.steps = 0
        """Steps in memory, those of the running episode included."""
        self.whole_steps = 0
        """Steps of the whole episodes."""
        arrays = {stream: frames_array(spec, stream) for stream in spec.images}
        self._arrays = tuple(arrays.items())
        self._frames = frame_buffers(spec, dict.fromkeys(arrays.values(), codec))
        self.opened_at = 0.0
        """Seconds since 1970 at which the first episode began."""
        self._observations = 0
        self._running_since = 0.0
        self._over_at = -1
        """Value of `steps` at which the running episode is over; -1 while it is not."""

    @property
    def running_steps(self) -> int:
        """Steps of the running episode."""
        return self.steps - self.whole_steps

    @property
    def is_over(self) -> bool:
        """Whether the last step was the last of the running episode."""
        return self._over_at == self.steps

    @property
    def whole_observations(self) -> int:
        """Observations of the whole episodes: one more than steps in each."""
        return self.whole_steps + len(self.ended)

    def begin(self, info: EpisodeInfo, now_s: float) -> None:
        """Begin an episode; its first observation comes next."""
        self.drop_running()  # what an interrupt left
        if not self.ended or now_s < self.opened_at:
            self.opened_at = now_s
        self.running, self._running_since, self.end_reason = info, now_s, ""

    def add_observation(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        vector: NDArray[np.float32] | None,
        frame_id: int,
        sim_time_s: float,
    ) -> None:
        """Add an observation of the running episode: uint8 (C, H, W) by stream, float32 (V,)."""
        columns, row = self.columns, self._observations
        if row >= columns.rows:
            columns.grow(2 * columns.rows)
        columns.frame_id[row] = frame_id
        columns.sim_time[row] = sim_time_s
        if vector is not None:
            columns.vector[row] = vector
        for stream, array in self._arrays:
            frames = self._frames[array]
            if frames.is_due:
                self._frames[array] = frames = frames.settled()
            frames.append(images[stream])
        self._observations = row + 1

    def add_step(
        self,
        action: NDArray[np.float32],
        reward: float,
        reward_terms: NDArray[np.float32] | None,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add the rest of a step; its observation has been added before."""
        columns, row = self.columns, self.steps
        columns.action[row] = action
        columns.reward[row] = reward
        if reward_terms is not None:
            columns.reward_terms[row] = reward_terms
        columns.terminated[row] = terminated
        columns.truncated[row] = truncated
        if terminated or truncated:
            self._over_at = row + 1
        self.steps = row + 1  # last: what an interrupt leaves before is no part of the episode

    def truncate(self) -> None:
        """Mark the last step of the running episode as its last, if it is not."""
        if not self.is_over:
            self.columns.truncated[self.steps - 1] = True
            self._over_at = self.steps

    def end(
        self,
        reason: str,
        events: Sequence[Event] = (),
        world: WorldRecord | None = None,
        labels: StepLabels | None = None,
    ) -> None:
        """Make the running episode, of at least one step, a whole one."""
        assert self.running is not None, "checked by the writer"
        rewards = self.columns.reward[self.whole_steps : self.steps]
        episode = EndedEpisode(
            info=self.running,
            length=self.running_steps,
            episode_return=float(rewards.sum(dtype=np.float64)),
            end_reason=reason,
            wall_time=self._running_since,
            events=tuple(events),
            world=world,
            labels=labels,
        )
        # CPython handles signals between calls: without one, an interrupt leaves all or nothing.
        self.ended += [episode]
        self.whole_steps, self.running = self.steps, None
        self.drop_running()

    def drop_running(self) -> None:
        """Cut everything back to the whole episodes, also what an interrupted step left."""
        self.running, self._over_at = None, -1
        self.steps = self.whole_steps
        self._observations = self.whole_observations
        for frames in self._frames.values():
            frames.truncate(self._observations)

    def encoded_frames(self) -> dict[str, EncodedFrames]:
        """Return the encoded frames of the whole episodes, by the name of their array."""
        self._frames = {name: frames.settled() for name, frames in self._frames.items()}
        count = self.whole_observations
        return {name: frames.encoded(count) for name, frames in self._frames.items()}

    def drop_whole(self) -> None:
        """Drop the whole episodes, which are published, and keep the running one.

        An interrupt drops the running one, too, but never publishes an episode twice.
        """
        observations, steps, running = self.whole_observations, self.whole_steps, self.running
        self.ended, self.whole_steps, self.running = [], 0, None
        self.columns.drop(observations, steps)
        for frames in self._frames.values():
            frames.drop(observations)
        self._observations -= observations
        self._over_at -= steps
        self.steps -= steps
        self.opened_at, self.running = self._running_since, running


_COLLECTOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SPARE_ROWS = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSegment:
    """A segment that a writer has just published.

    Example:
        >>> published = PublishedSegment(
        ...     segment_id="a", path=Path("data/segments/a"), episodes=2, steps=50, size_bytes=4096
        ... )
        >>> published.steps
        50
    """

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


class _NotClaimed(Exception):  # noqa: N818 - an outcome, not a fault
    """Another segment has claimed the same unit of work."""


class SegmentWriter:
    """Writes the episodes of one environment into a dataset, as segments of whole episodes.

    Episodes stay in memory until a segment is long or old enough (`WriterConfig`), or until `flush`
    or `close`; leaving the ``with`` block closes the writer. If publishing fails (`StorageError`:
    the disk is full), nothing is lost: the episodes stay in memory, and the next `flush`, `end` or
    `close` tries again. A value that is not of the spec, or a call out of order, raises `SpecError`
    and adds nothing. A writer must not be shared between threads. Any number of writers, in any
    processes, may write into one dataset.

    Args:
        dataset: The dataset, or the path of an existing one.
        collector: Name of the writer, part of each segment's name: letters, digits, - and _.
        provenance: JSON to store with every segment, such as a configuration; None for nothing.
        config: Codec and size of the segments; None for the defaults.
        clock: Returns seconds since 1970.

    Raises:
        ConfigError: ``collector`` cannot be part of a directory's name.
        DatasetError: There is no dataset at the path.
        SpecError: ``provenance`` is not JSON.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from avtd3.store.spec import EpisodeSpec
        >>> path = tempfile.mkdtemp()
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> with SegmentWriter(Dataset.create(path, spec)) as writer:
        ...     writer.begin(Observation(vector=np.zeros(1, np.float32)), seed=1, town="Town01")
        ...     after = Observation(vector=np.ones(1, np.float32))
        ...     writer.step(np.zeros(1, np.float32), 1.0, after, terminated=True)
        >>> Dataset.open(path).snapshot().steps
        1
    """

    def __init__(
        self,
        dataset: Dataset | Path | str,
        *,
        collector: str = "writer",
        provenance: Mapping[str, Any] | None = None,
        config: WriterConfig | None = None,
        clock: Callable[[], float] = time.time,
        claim: Callable[[bytes], bool] | None = None,
    ) -> None:
        if not _COLLECTOR_NAME.fullmatch(collector):
            raise ConfigError(
                f"collector is {abbreviate(collector)}, expected 1 to 64 letters, digits, - and _"
            )
        self.bytes_published = 0
        """Bytes of all segments that this writer has published."""
        self._dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
        self._config = config or WriterConfig()
        self._clock, self._claim = clock, claim
        self._namer = SegmentNamer(collector)
        self._provenance = base_provenance(provenance or {}, collector)
        self._is_closed = False
        self._is_text: dict[str, bool] = {}
        self._maps: set[str] = set()
        self._checker = StepChecker(self._dataset.spec)
        rows = self._config.segment_steps + _SPARE_ROWS
        self._pending = PendingSegment(self._dataset.spec, self._config.codec, rows)

    @property
    def steps_unpublished(self) -> int:
        """Steps that would be lost if the process died now, those of a running episode included."""
        return self._pending.steps

    def begin(
        self,
        observation: Observation,
        *,
        index: int = -1,
        seed: int = 0,
        policy_version: int = -1,
        policy_digest: str = "",
        exploration_noise: float = 0.0,
        **attributes: Attribute,
    ) -> None:
        """Begin an episode with its first observation.

        An episode before it whose last step was terminated or truncated is ended, see `end`.

        Args:
            observation: Image or streams uint8 (C, H, W), vector float32 (V,), as the spec says.
            index: Position in a plan, -1 if there is none.
            seed: Seed of the episode's world.
            policy_version: Version of the policy that acts, -1 if there is none.
            policy_digest: SHA-256 of the policy's file, or an empty string.
            exploration_noise: Standard deviation of the noise on the actions.
            attributes: Anything else to store with the episode: texts and finite numbers. An
                attribute must be a text in all episodes or a number in all.
        """
        if self._is_closed:
            raise SpecError("the writer is closed; make a new one")
        pending = self._pending
        if pending.running is not None and not pending.is_over:
            raise SpecError("an episode is running; call end or truncate first")
        frame_id, sim_time_s = self._checker.check_observation(observation, 0)
        info = EpisodeInfo(
            index=index,
            seed=seed,
            policy_version=policy_version,
            policy_digest=policy_digest,
            exploration_noise=exploration_noise,
            attributes=attributes,
        )
        self._check_kinds(info.attributes)
        if pending.running is not None:
            self.end()
        pending.begin(info, self._clock())
        pending.add_observation(observation.images, observation.vector, frame_id, sim_time_s)

    def _check_kinds(self, attributes: Mapping[str, Attribute]) -> None:
        kinds = self._is_text | {name: isinstance(v, str) for name, v in attributes.items()}
        changed = [name for name, is_text in self._is_text.items() if kinds[name] != is_text]
        if changed:
            raise SpecError(
                f"attribute {changed[0]} is {abbreviate(attributes[changed[0]])}, expected a "
                f"{'text' if self._is_text[changed[0]] else 'number'} as in an earlier episode"
            )
        if len(kinds) > MAX_ATTRIBUTES:
            raise SpecError(
                f"the episodes have {len(kinds)} different attributes, expected at most "
                f"{MAX_ATTRIBUTES}"
            )
        self._is_text = kinds

    def step(
        self,
        action: NDArray[np.float32],
        reward: float | None,
        observation: Observation,
        *,
        terminated: bool = False,
        truncated: bool = False,
        reward_terms: NDArray[np.float32] | None = None,
        end_reason: str = "",
    ) -> None:
        """Add one step: an action, its reward, and the observation after it.

        Args:
            action: float32 (A,), within the spec's bounds.
            reward: The reward, or None for the sum of ``reward_terms``.
            observation: Image or streams uint8 (C, H, W), vector float32 (V,), as the spec says.
            terminated: Whether the episode ended in a state without a future.
            truncated: Whether it was cut although it could have gone on.
            reward_terms: float32 (R,), finite, or None if the spec has none.
            end_reason: Why the episode ended; only with the last step.
        """
        pending = self._pending
        if pending.running is None or pending.is_over:
            raise SpecError("no episode is running; call begin first")
        number, checker = pending.running_steps + 1, self._checker
        if pending.steps >= MAX_STEPS and (self._claim is not None or self.flush() is None):
            raise SpecError(f"the episode has {MAX_STEPS} steps, the most allowed; end it")
        checker.check_action(action)
        total = checker.check_reward(reward, reward_terms)
        frame_id, sim_time_s = checker.check_observation(observation, number)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated, truncated = as_bool(terminated), as_bool(truncated)
        if end_reason:
            check_text("end_reason", end_reason)
            if not (terminated or truncated):
                raise SpecError(
                    f"end_reason is {abbreviate(end_reason)}, but the step is not terminated or "
                    "truncated; give it with the last step only"
                )
        pending.end_reason = end_reason
        pending.add_observation(observation.images, observation.vector, frame_id, sim_time_s)
        pending.add_step(action, total, reward_terms, terminated, truncated)

    def add(self, step: Step) -> None:
        """Add one step, given as a record; see `step`."""
        self.step(
            step.action,
            step.reward,
            step.observation,
            terminated=step.terminated,
            truncated=step.truncated,
            reward_terms=step.reward_terms,
            end_reason=step.end_reason,
        )

    def end(
        self,
        reason: str | None = None,
        events: Sequence[Event] = (),
        world: WorldRecord | None = None,
        labels: StepLabels | None = None,
    ) -> PublishedSegment | None:
        """End the running episode; publish if the segment is long or old enough.

        Calling it is optional: the next `begin`, or `close`, ends an episode that is over.

        Args:
            reason: Why it ended; None for the last step's ``end_reason``, or if that is empty
                ``terminated`` or ``truncated``.
            events: What happened in it, ordered by step.
            world: State of the world in its observations, and possibly in later ones.
            labels: What else is known of its steps, and possibly of later ones.

        Returns:
            What was published, or None if the segment stays open.
        """
        self._end(reason, events, world, labels)
        pending, config = self._pending, self._config
        age = self._clock() - pending.opened_at
        is_due = pending.whole_steps >= config.segment_steps or age >= config.segment_seconds
        return self.flush() if is_due and self._claim is None else None

    def _end(
        self,
        reason: str | None,
        events: Sequence[Event],
        world: WorldRecord | None = None,
        labels: StepLabels | None = None,
    ) -> None:
        pending = self._pending
        if pending.running is None or not pending.running_steps:
            raise SpecError("there is no running episode of at least one step to end")
        if not pending.is_over:
            raise SpecError("the last step was neither terminated nor truncated; call truncate")
        if reason is None:
            was_terminated = pending.columns.terminated[pending.steps - 1]
            reason = pending.end_reason or ("terminated" if was_terminated else "truncated")
        check_text("end_reason", reason)
        check_events(events, pending.running_steps)
        if world is not None:
            world = world.first(pending.running_steps + 1)
        if labels is not None:
            labels = labels.first(pending.running_steps, self._dataset.spec)
        pending.end(reason, events, world, labels)

    def truncate(
        self,
        reason: str | None = None,
        events: Sequence[Event] = (),
        world: WorldRecord | None = None,
        labels: StepLabels | None = None,
    ) -> PublishedSegment | None:
        """Mark the last step of the running episode as truncated, and end the episode; see `end`.

        An episode without a step is dropped. Without a running episode this does nothing.
        """
        if self._pending.running is None:
            return None
        if not self._pending.running_steps:
            self._pending.drop_running()
            return None
        self._pending.truncate()
        return self.end(reason, events, world, labels)

    def flush(self) -> PublishedSegment | None:
        """Publish the whole episodes in memory; a running one stays.

        Returns:
            What was published, or None if there was no whole episode.
        """
        pending = self._pending
        if not pending.ended:
            return None
        now = self._clock()
        segment_id = self._namer.next(now)
        files = seal_files(
            segment_id,
            self._dataset,
            pending.columns,
            pending.ended,
            frames=pending.encoded_frames(),
            codec=pending.codec,
            provenance={**self._provenance, "sealed_at": now},
        )
        target = self._dataset.segments_path / segment_id
        published = PublishedSegment(
            segment_id=segment_id,
            path=target,
            episodes=len(pending.ended),
            steps=pending.whole_steps,
            size_bytes=sum(map(len, files.values())),
        )
        self._publish_maps()
        staging, is_published = self._dataset.staging_path / segment_id, False
        try:
            publish(staging, target, files, check=lambda _: self._check_claim(files))
            is_published = True
        except _NotClaimed:
            pending.drop_whole()
            return None
        finally:
            # What readers can see is published, even if the last fsync failed or a signal came.
            # If it were kept, it would be published twice.
            if is_published or os.path.exists(target):  # noqa: PTH110 - never raises
                self.bytes_published += published.size_bytes
                pending.drop_whole()
        return published

    def _check_claim(self, files: Mapping[str, bytes]) -> None:
        if self._claim is not None and not self._claim(files[MANIFEST_FILE]):
            raise _NotClaimed

    def _publish_maps(self) -> None:
        """Store the road networks of the whole episodes before the segment that needs them."""
        for world in (episode.world for episode in self._pending.ended):
            if world is not None and world.map_text and world.map_digest not in self._maps:
                self._maps.add(publish_map(self._dataset.path, world.map_text))

    def close(self) -> PublishedSegment | None:
        """Publish the whole episodes in memory; safe to call twice.

        A running episode is ended if its last step was terminated or truncated, else dropped.
        """
        if self._is_closed:
            return None
        if self._pending.running is not None and self._pending.is_over:
            self._end(None, ())
        self._pending.drop_running()
        published = self.flush()
        self._is_closed = True
        return published

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
