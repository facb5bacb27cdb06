"""Batches from a replay backend: where each frame is, and one gather of all frames of a batch.

Frames are stored once. The observation of a step is the stack of the K frames up to its row,
clamped to the first row of its episode:

* n-step 1: a window of K + 1 frames. Observation and next observation are overlapping views of it.
* n-step or the stride of the stack above 1: two stacks next to each other, 2 K frames. The next
  observation is min(n, steps left) rows later, which varies near the end of an episode, so no
  window has it at a fixed place.

With `ReplayConfig.action_repeat` N above 1, a decision is N rows, and all of this counts decisions:
decision d of an episode of L steps starts at its row ``min(N * d, L)``.

``np.take(mode="clip")`` into a reused buffer is the fastest gather (the default mode takes twice as
long). It also evicts everything else from the CPU caches, after which small numpy calls take five
times as long. Therefore everything small is looked up for many batches at once, and a batch then
costs little more than its frames (bench/replay_bench.py: at least 0.9 of the bare gather).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SpecError
from avtd3.store.replay.cache import FrameSource
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.draws import TransitionIndex
from avtd3.store.replay.scratch import ACTION, ALIVE, REWARD
from avtd3.store.spec import EpisodeSpec, ImageSpec


class StreamBatch(NamedTuple):
    """The frames of one stream in a batch of B transitions."""

    frames: NDArray[np.uint8] | None
    """uint8 (B, W, C, H, W), all gathered frames: K + 1 or, for n-step > 1 and for a stride above
    1, 2 K of them; None if the sampler does not gather them."""
    observation: NDArray[np.uint8] | None
    """uint8 (B, K*C, H, W), a view of the first K of `frames`, oldest first."""
    next_observation: NDArray[np.uint8] | None
    """uint8 (B, K*C, H, W), a view of the last K of `frames`."""
    rows: NDArray[np.int64]
    """int64 (B, W), rows of `frames` in `Sampler.frame_array`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Transitions:
    """A batch of B transitions.

    A later call of `Sampler.sample` overwrites the frames, see there. The other arrays stay valid.

    Example:
        >>> import numpy as np
        >>> zeros = np.zeros(2, np.float32)
        >>> batch = Transitions(
        ...     frames=None,
        ...     observation_frames=None,
        ...     next_observation_frames=None,
        ...     observation_vector=np.zeros((2, 3), np.float32),
        ...     next_observation_vector=np.zeros((2, 3), np.float32),
        ...     action=np.zeros((2, 1), np.float32),
        ...     reward=zeros,
        ...     discount=zeros,
        ...     frame_rows=np.zeros((2, 0), np.int64),
        ... )
        >>> batch.observation_vector.shape
        (2, 3)
    """

    frames: NDArray[np.uint8] | None
    """uint8 (B, W, C, H, W), all gathered frames of the only stream, see `StreamBatch`; None
    without an image, with several streams, and if the sampler does not gather them."""
    observation_frames: NDArray[np.uint8] | None
    """uint8 (B, K*C, H, W), a view of the first K of `frames`, oldest first."""
    next_observation_frames: NDArray[np.uint8] | None
    """uint8 (B, K*C, H, W), a view of the last K of `frames`."""
    observation_vector: NDArray[np.float32] | None
    """float32 (B, V); None without a vector."""
    next_observation_vector: NDArray[np.float32] | None
    """float32 (B, V)."""
    action: NDArray[np.float32]
    """float32 (B, A)."""
    reward: NDArray[np.float32]
    """float32 (B,): ``sum(gamma**i * r[t + i] for i < m)``, m = min(n, steps left)."""
    discount: NDArray[np.float32]
    """float32 (B,): ``gamma**m * (1 - terminated[t + m - 1])``; truncation bootstraps."""
    frame_rows: NDArray[np.int64]
    """int64 (B, W), rows of `frames` in `Sampler.frame_array`; W = 0 without an image, and with
    several streams."""
    streams: Mapping[str, StreamBatch] = dataclasses.field(default_factory=dict)
    """The frames of each stream by name, those of the only one included."""
    bc_mask: NDArray[np.float32] | None = None
    """float32 (B,), 1 where the action is marked for imitation, else 0; None if all are."""
    bc_action: NDArray[np.float32] | None = None
    """float32 (B, A), the action to imitate: the expert's where it is known, else the one taken;
    None unless `ReplayConfig.imitate_expert` is set."""
    weight: NDArray[np.float32] | None = None
    """float32 (B,), importance weights in (0, 1]; None unless sampling is prioritised."""
    index: NDArray[np.int64] | None = None
    """int64 (B,), identifies the transitions for `Sampler.update_priorities`; None likewise. In a
    sampler of a part, it has the whole batch."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        several = values.pop("streams")
        if len(several) > 1:
            values |= {name: stream.frames for name, stream in several.items()}
        shapes = ", ".join(
            f"{name}={None if value is None else f'{value.dtype}{value.shape}'}"
            for name, value in values.items()
        )
        return f"Transitions({shapes})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SequenceBatch:
    """A batch of S sequences of L consecutive steps.

    The next call of `Sampler.sample_sequences` overwrites the frames. The other arrays stay valid.
    """

    frames: NDArray[np.uint8] | None
    """uint8 (S, W, C, H, W), single frames of the only stream, W = (K - 1) stride + L + 1. Frames
    before the start of an episode repeat its first frame. None without an image, and with several
    streams."""
    vector: NDArray[np.float32] | None
    """float32 (S, L + 1, V); None without a vector."""
    action: NDArray[np.float32]
    """float32 (S, L, A)."""
    reward: NDArray[np.float32]
    """float32 (S, L), of single steps."""
    terminated: NDArray[np.bool_]
    """bool (S, L); only True for last steps of episodes."""
    truncated: NDArray[np.bool_]
    """bool (S, L); only True for last steps of episodes."""
    bc_mask: NDArray[np.float32] | None = None
    """float32 (S,), 1 where the actions are marked for imitation, else 0; None if all are."""
    streams: Mapping[str, NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    """The frames of each stream by name, as `frames`, that of the only one included."""
    strides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Observations between two frames of a stack, by stream; not given: 1."""

    def observation_frames(self, step: int, stream: str | None = None) -> NDArray[np.uint8]:
        """Return the stacks before a step, or after the last one: uint8 (S, K*C, H, W).

        It is a view if the stride is 1.

        Args:
            step: From 0 to L.
            stream: Name of the stream, needed if there are several.

        Raises:
            SpecError: The sequences have no such stream.
        """
        frames = self.frames if stream is None else self.streams.get(stream)
        if frames is None:
            raise SpecError("there are no observation frames: the spec of the dataset has no image")
        reach, stride = frames.shape[1] - self.action.shape[1], self.strides.get(stream or "", 1)
        if stream is None and self.strides:
            stride = next(iter(self.strides.values()))
        window = frames[:, step : step + reach : stride]
        shape = (len(window), -1, *window.shape[3:])
        return window.reshape(shape, copy=False if stride == 1 else None)

    def __repr__(self) -> str:
        return "SequenceBatch(sequences={}, steps={})".format(*self.reward.shape)


class UngatheredBatch(NamedTuple):
    """A batch, and how to fill its frames."""

    transitions: Transitions
    takes: Sequence[tuple[Callable[..., None], NDArray[np.int64], NDArray[np.uint8]]]
    """For each stream, `FrameSource.take` and its arguments."""

    def gather(self) -> Transitions:
        """Fill the frames, and return the batch."""
        for take, rows, flat in self.takes:
            take(rows, flat)
        return self.transitions


class FrameBuffer:
    """Memory for the frames of one stream in one batch of transitions, and views of it."""

    def __init__(self, image: ImageSpec, config: ReplayConfig) -> None:
        stack, batch_size = image.stack, config.batch_size
        width, shape = frame_places(image, config).width, (batch_size, *image.observation_shape)
        self.window = np.empty((batch_size, width, *image.frame_shape), dtype=np.uint8)
        self.flat = self.window.reshape((batch_size, width, -1), copy=False)
        # (B, K, C, H, W) -> (B, K*C, H, W) without a copy: frames are contiguous
        self.observation = self.window[:, :stack].reshape(shape, copy=False)
        self.next_observation = self.window[:, -stack:].reshape(shape, copy=False)


def frame_buffers(
    spec: EpisodeSpec, config: ReplayConfig, *, gathers: bool = True
) -> dict[str, FrameBuffer]:
    """Return memory for the frames of each stream; none without `gathers`."""
    return {stream: FrameBuffer(image, config) for stream, image in spec.images.items() if gathers}


class FramePlaces(NamedTuple):
    """Which frames of a stream a transition needs, as distances from its two rows."""

    stack: NDArray[np.int64]
    """int64 (K,), of a stack, from the row of its observation."""
    window: NDArray[np.int64] | None
    """int64 (K + 1,), of both stacks, from the first row, if they overlap; else None."""

    @property
    def width(self) -> int:
        """Number of frames."""
        return 2 * len(self.stack) if self.window is None else len(self.window)

    def rows(
        self, row: NDArray[np.int64], next_row: NDArray[np.int64], first: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the rows of the frames, int64 (..., W), clamped to the episode's first."""
        rows = np.empty((*row.shape, self.width), np.int64)
        if self.window is not None:
            places = [row + distance for distance in self.window]
        else:
            places = [last + distance for last in (row, next_row) for distance in self.stack]
        for at, place in enumerate(places):
            np.maximum(place, first, out=rows[..., at])
        return rows


def frame_places(image: ImageSpec, config: ReplayConfig) -> FramePlaces:
    """Return which frames of a stream a transition needs."""
    stride = image.stride * config.stack_stride
    is_shared = config.n_step == 1 and stride == 1
    return FramePlaces(
        stack=stride * np.arange(1 - image.stack, 1),
        window=np.arange(1 - image.stack, 2) if is_shared else None,
    )


_NOTHING = StreamBatch(None, None, None, np.empty((0, 0), np.int64))
_FEW_STEPS = 64
"""Up to so many steps, rewards are summed as `n_step` says, in the order of earlier versions."""
_AT_ONCE = 1 << 20
"""Rewards that are summed at once; it limits the memory use where `n_step` is large."""


class Gather:
    """Turns numbers of transitions into batches."""

    def __init__(self, spec: EpisodeSpec, config: ReplayConfig) -> None:
        self._n_step, self._gamma = config.n_step, config.gamma
        self._repeat = config.action_repeat
        self._places = {
            stream: frame_places(image, config) for stream, image in spec.images.items()
        }
        self._vector = ACTION + spec.action_size
        self._label = self._vector + spec.vector_size
        self._width = self._label + spec.action_size * config.imitate_expert
        self._frames: Mapping[str, FrameSource] = {}

    def bind(
        self,
        arrays: Mapping[str, NDArray[Any]],
        index: TransitionIndex,
        frames: Mapping[str, FrameSource],
    ) -> None:
        """Read from these arrays from now on."""
        self._numbers, self._index, self._frames = arrays.get("numbers"), index, frames
        self._ends, self._shift = index.number(index.lengths)
        # No sum is longer than the longest episode, whatever `n_step` is.
        longest = int(index.stored.max(initial=1))
        self._most = min(self._n_step * self._repeat, max(longest, _FEW_STEPS))
        steps = np.arange(self._most + 1)
        self._powers = self._gamma ** self._decisions(steps).astype(np.float64)
        self._weights = self._gamma ** (steps[:-1] // self._repeat).astype(np.float64)

    def _decisions(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return in how many decisions so many steps are, the last of which may be shorter."""
        return -(-steps // self._repeat)

    def look_up(self, number: NDArray[np.int64]) -> Transitions:
        """Read everything except the frames of N batches, given numbers int64 (N, B).

        Each array has one axis more than in a batch, the first, of N.
        """
        assert self._numbers is not None, "there are no transitions"
        index = self._index
        episode = self._ends.searchsorted(number, side="right")
        row = number + self._shift.take(episode)
        is_single = self._n_step * self._repeat == 1
        if is_single:
            next_row = row + 1
        else:
            first = index.first_rows.take(episode)
            row = first + self._repeat * (row - first)
            left = first + index.stored.take(episode) - row
            count = np.minimum(left, self._most)
            next_row = row + count
        # One memory access per transition: for n = 1, the two rows are neighbours.
        pairs = np.stack([row, next_row], axis=-1)
        numbers = self._numbers.take(pairs, axis=0, mode="clip")  # (N, B, 2, 2 + A + V)
        if is_single:
            reward = numbers[..., 0, REWARD].copy()
            discount = numbers[..., 0, ALIVE] * np.float32(self._gamma)
        else:
            reward, discount = self._sum_rewards(self._numbers, row, count)
        vectors = np.moveaxis(numbers[..., self._vector : self._label], 2, 0)
        has_vector, bc_mask = self._label > self._vector, index.bc_mask
        mask = None if bc_mask is None else bc_mask.take(episode)
        bc_action = None
        if self._width > self._label:
            bc_action, mask = self._imitated(numbers[..., 0, :], mask)
        streams = self._stream_rows(row, next_row, index.first_rows.take(episode))
        return Transitions(
            frames=None,
            observation_frames=None,
            next_observation_frames=None,
            # Views: a batch that is copied to a device anyway need not be copied here.
            observation_vector=vectors[0] if has_vector else None,
            next_observation_vector=vectors[1] if has_vector else None,
            action=numbers[..., 0, ACTION : self._vector],
            reward=reward,
            discount=discount,
            frame_rows=(
                next(iter(streams.values())).rows
                if len(streams) == 1
                else np.empty((*row.shape, 0), np.int64)
            ),
            streams=streams,
            bc_mask=mask,
            bc_action=bc_action,
        )

    def _stream_rows(
        self, row: NDArray[np.int64], next_row: NDArray[np.int64], first: NDArray[np.int64]
    ) -> dict[str, StreamBatch]:
        """Return which frames of each stream the transitions need."""
        if self._repeat == 1:
            rows = {n: places.rows(row, next_row, first) for n, places in self._places.items()}
        else:
            before, after = (row - first) // self._repeat, self._decisions(next_row - first)
            rows = {
                name: first[..., None] + self._repeat * places.rows(before, after, 0 * first)
                for name, places in self._places.items()
            }
            for found in rows.values():  # the last decision may be shorter
                np.minimum(found, next_row[..., None], out=found)
        return {name: StreamBatch(None, None, None, found) for name, found in rows.items()}

    def _imitated(
        self, numbers: NDArray[np.float32], mask: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the actions to imitate, and which of them are marked for it."""
        label = numbers[..., self._label :]
        is_known = ~np.isnan(label[..., :1])
        action = np.where(is_known, label, numbers[..., ACTION : self._vector])
        return action, None if mask is None else np.maximum(mask, is_known[..., 0])

    def batches(
        self, block: Transitions, buffers: Sequence[Mapping[str, FrameBuffer]]
    ) -> list[UngatheredBatch]:
        """Return the batches of `look_up`, whose frames will be in these buffers, one per batch.

        All batches of a block are made at once, because the gather of frames between two of them
        would evict this code from the CPU caches.
        """
        return [self._batch(block, number, taken) for number, taken in enumerate(buffers)]

    def _batch(
        self, block: Transitions, number: int, buffers: Mapping[str, FrameBuffer]
    ) -> UngatheredBatch:
        """Return one of the batches of `look_up`."""

        def pick(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[number]

        streams: dict[str, StreamBatch] = {}
        takes = []
        for name, stream in block.streams.items():
            rows, buffer = stream.rows[number], buffers.get(name)
            if buffer is None:
                streams[name] = StreamBatch(None, None, None, rows)
                continue
            takes.append((self._frames[name].take, rows, buffer.flat))
            views = (buffer.window, buffer.observation, buffer.next_observation)
            streams[name] = StreamBatch(*views, rows)
        only = next(iter(streams.values())) if len(streams) == 1 else _NOTHING
        transitions = Transitions(
            frames=only.frames,
            observation_frames=only.observation,
            next_observation_frames=only.next_observation,
            observation_vector=pick(block.observation_vector),
            next_observation_vector=pick(block.next_observation_vector),
            action=block.action[number],
            reward=block.reward[number],
            discount=block.discount[number],
            frame_rows=block.frame_rows[number],
            streams=streams,
            bc_mask=pick(block.bc_mask),
            bc_action=pick(block.bc_action),
            weight=pick(block.weight),
            index=pick(block.index),
        )
        return UngatheredBatch(transitions, takes)

    def _sum_rewards(
        self, numbers: NDArray[np.float32], row: NDArray[np.int64], count: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the discounted sums up to each transition's last step, and its discounts."""
        flat = numbers.reshape(-1)
        last = row + (count - 1)
        total = np.empty(row.shape, np.float64)
        rows, lasts, totals = row.reshape(-1), last.reshape(-1), total.reshape(-1)
        ahead = np.arange(self._most)
        part = max(1, _AT_ONCE // self._most)
        for low in range(0, len(rows), part):
            first, end = rows[low : low + part, None], lasts[low : low + part, None]
            at = first + ahead  # (rows, n)
            weights = np.where(at <= end, self._weights, 0.0)
            reward = flat.take(np.minimum(at, end) * self._width + REWARD, mode="clip")
            np.einsum("bn,bn->b", reward, weights, out=totals[low : low + part])
        alive = flat.take(last * self._width + ALIVE, mode="clip")
        return total.astype(np.float32), alive * self._powers.astype(np.float32).take(count)


class SequenceGather:
    """Turns numbers of sequence starts into batches of sequences.

    A sequence is completely in one episode. Nothing is padded or masked.
    """

    def __init__(
        self, spec: EpisodeSpec, *, length: int, count: int, action_repeat: int = 1
    ) -> None:
        self._vector, self._repeat = ACTION + spec.action_size, action_repeat
        self._has_vector = spec.vector_size > 0
        self._steps = np.arange(length + 1)
        self._frames: Mapping[str, FrameSource] = {}
        self._places, self._windows, self._strides = {}, {}, {}
        for stream, image in spec.images.items():
            reach = (image.stack - 1) * image.stride
            self._places[stream] = np.arange(-reach, length + 1)
            shape = (count, reach + length + 1, *image.frame_shape)
            self._windows[stream] = np.empty(shape, np.uint8)
            self._strides[stream] = image.stride

    def bind(
        self,
        arrays: Mapping[str, NDArray[Any]],
        index: TransitionIndex,
        frames: Mapping[str, FrameSource],
    ) -> None:
        """Read from these arrays from now on; see `Gather.bind`."""
        self._numbers, self._index, self._frames = arrays.get("numbers"), index, frames
        self._ends, self._shift = index.number(index.sequence_starts(len(self._steps) - 1))

    def batch(self, number: NDArray[np.int64]) -> SequenceBatch:
        """Return the sequences with these numbers, int64 (S,); the next call reuses the frames."""
        assert self._numbers is not None, "there are no sequences"
        index = self._index
        episode = self._ends.searchsorted(number, side="right")
        first = index.first_rows[episode][:, None]
        decision = (number + self._shift[episode])[:, None] - first
        last = first + index.stored[episode][:, None]
        rows = np.minimum(first + self._repeat * (decision + self._steps), last)
        numbers: NDArray[np.float32] = self._numbers.take(rows, axis=0, mode="clip")
        steps = numbers[:, :-1]  # of (S, L + 1, 2 + A + V)
        reward, alive = steps[..., REWARD].copy(), steps[..., ALIVE]
        if self._repeat > 1:
            reward, alive = self._over_decisions(self._numbers, rows)
        terminated = alive == 0.0
        truncated = np.zeros_like(terminated)
        is_last = number == self._ends[episode] - 1
        truncated[:, -1] = is_last & ~terminated[:, -1]
        for stream, window in self._windows.items():
            places = np.maximum(decision + self._places[stream], 0)
            frame_rows = np.minimum(first + self._repeat * places, last)
            out = window.reshape((*frame_rows.shape, -1), copy=False)
            self._frames[stream].take(frame_rows, out)
        only = len(self._windows) == 1
        return SequenceBatch(
            frames=next(iter(self._windows.values())) if only else None,
            streams=self._windows,
            strides=self._strides,
            vector=numbers[..., self._vector :].copy() if self._has_vector else None,
            action=steps[..., ACTION : self._vector].copy(),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            bc_mask=None if index.bc_mask is None else index.bc_mask[episode],
        )

    def _over_decisions(
        self, numbers: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the sum of the rewards of each decision, and 1 - terminated after it: (S, L)."""
        within = rows[:, :-1, None] + np.arange(self._repeat)
        is_inside = within < rows[:, 1:, None]
        rewards = numbers[:, REWARD].take(within, mode="clip")
        total = np.where(is_inside, rewards, 0.0).sum(axis=-1, dtype=np.float64)
        return total.astype(np.float32), numbers[:, ALIVE].take(rows[:, 1:] - 1, mode="clip")
