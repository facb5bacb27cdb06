"""`Episode`: one stored episode; its arrays are read when they are used."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import Attribute, EpisodeTable
from avtd3.store.errors import SpecError, abbreviate
from avtd3.store.events import Event, EventTable
from avtd3.store.segment import Segment
from avtd3.store.step import Observation, Step
from avtd3.store.step_labels import StepLabels
from avtd3.store.world_record import WorldRecord

_Number = TypeVar("_Number", np.uint8, np.float32, np.float64, np.int64)


class SegmentReader:
    """The table and the small arrays of a segment, shared by its episodes and read once."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.table: EpisodeTable = segment.episode_table()
        self._arrays: dict[str, NDArray[Any]] = {}

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return a copy of rows of an array."""
        if name not in self._arrays:
            self._arrays[name] = self.segment.read(name)
        return self._arrays[name][start:stop].copy()

    @functools.cached_property
    def events(self) -> EventTable:
        """The events of the segment's episodes; none if they were not recorded."""
        return self.segment.events() or EventTable.of(())

    @functools.cached_property
    def world_records(self) -> list[WorldRecord | None]:
        """The state of the world in each episode of the segment."""
        return self.segment.world_records() or [None] * self.segment.episodes

    @functools.cached_property
    def labels(self) -> list[StepLabels | None]:
        """What else is known of the steps of each episode of the segment."""
        return self.segment.labels() or [None] * self.segment.episodes


class Episode:
    """One episode of T steps and T + 1 observations; made by `Dataset.episodes`.

    Arrays are read from disk and verified when they are first used, and belong to the caller.
    Reading raises `SegmentNotFoundError` if the segment has been removed, `SegmentCorruptError` if
    its bytes are damaged, and `SpecError` for what the dataset's spec does not have.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from avtd3.store.dataset import Dataset
        >>> from avtd3.store.writer import SegmentWriter
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> dataset = Dataset.create(tempfile.mkdtemp(), spec)
        >>> at = [Observation(vector=np.full(1, x, np.float32)) for x in (0.0, 0.5)]
        >>> with SegmentWriter(dataset) as writer:
        ...     writer.begin(at[0], lap=3)
        ...     writer.step(np.ones(1, np.float32), 2.0, at[1], terminated=True, end_reason="goal")
        >>> for episode in dataset.episodes("end=goal"):
        ...     print(episode.length, episode.episode_return, episode.attributes)
        ...     print(episode.vectors.tolist(), episode.actions.tolist())
        1 2.0 {'lap': 3}
        [[0.0], [0.5]] [[1.0]]
    """

    def __init__(self, reader: SegmentReader, number: int, *, action_repeat: int = 1) -> None:
        self._reader, self._repeat = reader, action_repeat
        self.number = number
        """Number of the episode in its segment, from 0."""
        self.segment = reader.segment
        """The segment that contains the episode."""
        self.spec = self.segment.spec
        """The dataset's spec."""
        self.name = f"{self.segment.id}:{number}"
        """``SEGMENT:NUMBER``, as ``replay-inspect --episode`` accepts it."""
        table = reader.table
        self._stored = int(table.length[number])
        self.length = -(-self._stored // action_repeat)
        """Number of steps, T; of decisions, if each is several stored steps."""
        self.episode_return = float(table.episode_return[number])
        """Sum of the stored rewards."""
        self.end_reason = table.end_reason[number]
        """Why the episode ended."""
        self.seed = int(table.seed[number])
        """Seed of the episode's world."""
        self.index = int(table.index[number])
        """Position in the collector's plan, -1 if unknown."""
        self.policy_version = int(table.policy_version[number])
        """Version of the policy that acted, -1 if there was none."""
        self.started_at = float(table.wall_time[number])
        """Start of the episode, in seconds since 1970, by the collector's clock."""

    def __repr__(self) -> str:
        return (
            f"Episode({self.name!r}, length={self.length}, episode_return={self.episode_return:g}, "
            f"end_reason={self.end_reason!r})"
        )

    @property
    def attributes(self) -> dict[str, Attribute]:
        """Attributes that were given when the episode began, such as town or driver."""
        return self._reader.table.attributes_of(self.number)

    @property
    def facts(self) -> dict[str, Attribute]:
        """Every column of the `EpisodeTable` for this episode, attributes included."""
        return self._reader.table.row(self.number)

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened in the episode, ordered by step; empty if it was not recorded."""
        return self._reader.events.of_episode(self.number)

    @property
    def world_record(self) -> WorldRecord | None:
        """State of the world in each observation; None if it was not recorded."""
        return self._reader.world_records[self.number]

    @property
    def labels(self) -> StepLabels | None:
        """What the expert would have done, who drove, and delays; None if nothing is known."""
        return self._reader.labels[self.number]

    @functools.cached_property
    def frames(self) -> NDArray[np.uint8]:
        """uint8 (T + 1, C, H, W): the frames of the only stream, each stored once."""
        return self.streams[self.spec.stream_name()]

    @functools.cached_property
    def streams(self) -> "EpisodeStreams":
        """The frames of each stream by name, uint8 (T + 1, C, H, W), read when first used."""
        rows = self._stored + 1
        return EpisodeStreams(
            self.spec.images,
            lambda stream: self._decided(self.read_frames(0, rows, stream=stream)),
        )

    @functools.cached_property
    def vectors(self) -> NDArray[np.float32]:
        """float32 (T + 1, V): the normalised vectors."""
        return self._decided(self._reader.rows("vector", *self._observation_rows()))

    @functools.cached_property
    def frame_ids(self) -> NDArray[np.int64]:
        """int64 (T + 1,): the simulator's frame numbers."""
        return self._decided(self._reader.rows("frame_id", *self._observation_rows()))

    @functools.cached_property
    def sim_times_s(self) -> NDArray[np.float64]:
        """float64 (T + 1,): simulated seconds."""
        return self._decided(self._reader.rows("sim_time", *self._observation_rows()))

    @functools.cached_property
    def actions(self) -> NDArray[np.float32]:
        """float32 (T, A): the actions as applied."""
        return self._reader.rows("action", *self._step_rows())[:: self._repeat]

    @functools.cached_property
    def rewards(self) -> NDArray[np.float32]:
        """float32 (T,): the rewards."""
        return self._summed(self._reader.rows("reward", *self._step_rows()))

    @functools.cached_property
    def reward_terms(self) -> NDArray[np.float32]:
        """float32 (T, R): the parts of the rewards, in the spec's order."""
        return self._summed(self._reader.rows("reward_terms", *self._step_rows()))

    @functools.cached_property
    def terminated(self) -> NDArray[np.bool_]:
        """Bool (T,): whether the step ended the episode in a state without a future."""
        return self._last(self._reader.rows("terminated", *self._step_rows()))

    @functools.cached_property
    def truncated(self) -> NDArray[np.bool_]:
        """Bool (T,): whether the episode was cut after the step."""
        return self._last(self._reader.rows("truncated", *self._step_rows()))

    def load(self, streams: Collection[str] | None = None) -> Self:
        """Read the frames, vectors, actions, rewards and ends now, so that using them cannot fail.

        Args:
            streams: Names of the streams whose frames are read; None for all.

        Raises:
            SegmentNotFoundError: The segment was removed.
            SegmentCorruptError: Its bytes are damaged.
            SegmentUnreadableError: A file cannot be read now.
        """
        names = ["actions", "rewards", "terminated", "truncated"]
        names += ["vectors"] * bool(self.spec.vector_names)
        for name in names:
            getattr(self, name)
        for stream in self.streams if streams is None else streams:
            _ = self.streams[stream]
        return self

    def read_frames(self, start: int, stop: int, *, stream: str | None = None) -> NDArray[np.uint8]:
        """Read the frames of the stored observations in range(start, stop).

        Returns:
            uint8 (stop - start, C, H, W), which is not kept.

        Raises:
            SpecError: The range is outside the episode, there is no such stream, or there are
                several and none is named.
        """
        first, end = self._observation_rows()
        if not 0 <= start <= stop <= end - first:
            raise SpecError(f"{self.name}: frames {start}:{stop} are outside 0:{end - first}")
        return self.segment.read_frames(first + start, first + stop, stream=stream)

    def observations(
        self,
        stack: int | None = None,
        start: int = 0,
        stop: int | None = None,
        stride: int = 1,
        *,
        stream: str | None = None,
    ) -> NDArray[np.uint8]:
        """Return the stacked frames of observations, clamped to the episode's first frame.

        Args:
            stack: Frames in a stack, K; None for the spec's.
            start: First observation.
            stop: Observation after the last one; None for all T + 1.
            stride: Observations between two frames of a stack, times the stream's own stride.
            stream: Name of the stream, needed if the spec has several.

        Returns:
            uint8 (stop - start, K * C, H, W), oldest frame first.

        Raises:
            SpecError: There is no such stream, or ``stack`` is below 1.
        """
        stream = self.spec.stream_name(stream)
        frames, image = self.streams[stream], self.spec.images[stream]
        stack = image.stack if stack is None else stack
        if stack < 1:
            raise SpecError(f"stack is {abbreviate(stack)}, expected 1 or more")
        places = image.stride * stride * np.arange(1 - stack, 1)
        rows = np.arange(len(frames))[start:stop, None] + places
        stacks = frames[np.maximum(rows, 0)]
        shape = (len(rows), stack * frames.shape[1], *frames.shape[2:])
        stacked: NDArray[np.uint8] = stacks.reshape(shape)
        return stacked

    def observation(self, number: int) -> Observation:
        """Return one observation, 0 to T, as the record that a writer takes."""
        spec = self.spec
        streams = {name: self.streams[name][number] for name in spec.streams}
        return Observation(
            image=None if spec.image is None else self.frames[number],
            streams=streams or None,
            vector=self.vectors[number] if spec.vector_size else None,
            frame_id=int(self.frame_ids[number]),
            sim_time_s=float(self.sim_times_s[number]),
        )

    def steps(self) -> Iterator[Step]:
        """Yield the steps as the records that a writer takes."""
        has_terms = bool(self.spec.reward_terms)
        for t in range(self.length):
            is_last = t + 1 == self.length
            yield Step(
                action=self.actions[t],
                reward=None if has_terms else float(self.rewards[t]),
                reward_terms=self.reward_terms[t] if has_terms else None,
                observation=self.observation(t + 1),
                terminated=bool(self.terminated[t]),
                truncated=bool(self.truncated[t]),
                end_reason=self.end_reason if is_last else "",
            )

    def _decided(self, values: NDArray[_Number]) -> NDArray[_Number]:
        """Return the rows of the observations in which a decision was made, and the last one."""
        if self._repeat == 1:
            return values
        rows = np.minimum(np.arange(self.length + 1) * self._repeat, self._stored)
        return values[rows]

    def _summed(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sums over the steps of each decision."""
        if self._repeat == 1:
            return values
        starts = np.arange(0, self._stored, self._repeat)
        return np.add.reduceat(values, starts, axis=0, dtype=np.float64).astype(np.float32)

    def _last(self, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the rows of the last step of each decision."""
        if self._repeat == 1:
            return values
        ends = np.minimum(np.arange(1, self.length + 1) * self._repeat, self._stored)
        last: NDArray[np.bool_] = values[ends - 1]
        return last

    def _step_rows(self) -> tuple[int, int]:
        start = int(self._reader.table.offset[self.number])
        return start, start + self._stored

    def _observation_rows(self) -> tuple[int, int]:
        start, stop = self._step_rows()
        return start + self.number, stop + self.number + 1


class EpisodeStreams(Mapping[str, NDArray[np.uint8]]):
    """The frames of an episode by stream, each uint8 (T + 1, C, H, W), read when first used."""

    def __init__(self, names: Collection[str], read: Callable[[str], NDArray[np.uint8]]) -> None:
        self._names, self._read = tuple(names), read
        self._frames: dict[str, NDArray[np.uint8]] = {}

    def __getitem__(self, stream: str) -> NDArray[np.uint8]:
        if stream not in self._names:
            raise KeyError(stream)
        if stream not in self._frames:
            self._frames[stream] = self._read(stream)
        return self._frames[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
