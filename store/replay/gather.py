"""One batch out of the replay cache: where each frame lies, and a single gather of all of them.

Frames are stored once. The observation of a step is the stack of the K frames up to its row,
clamped to the first row of its episode:

* n-step 1: a window of K + 1 frames, of which observation and next observation are two
  overlapping views.
* n-step above 1: two stacks side by side, 2 K frames. The next observation lies min(n, steps
  left) rows on, another distance in each transition near an episode's end, so in no single
  window is it at a fixed place.

``np.take(mode="clip")`` into a reused buffer is the fastest gather there is (the default mode
costs half of it). It also sweeps the processor's caches, after which numpy's small calls take five
times as long: so all that is small is looked up for many batches at once, and a batch then costs
its frames and little else (bench/replay_bench.py: at least 0.9 of the bare gather).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.replay.scratch import ACTION, ALIVE, REWARD
from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Transitions:
    """One batch; a later draw overwrites its frames (see `Sampler`), the rest is its own."""

    frames: NDArray[np.uint8] | None
    """uint8 (B, W, C, H, W), all gathered frames: K + 1 or, for n-step > 1, 2 K of them; None
    without an image, and if the sampler does not gather them."""
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
    """int64 (B, W), where `frames` lie in `Sampler.frame_array`; W = 0 without an image."""
    bc_mask: NDArray[np.float32] | None = None
    """float32 (B,), 1 where the action is marked for imitation, else 0; None if all are."""
    weight: NDArray[np.float32] | None = None
    """float32 (B,), importance weights in (0, 1]; None unless draws are prioritised."""
    index: NDArray[np.int64] | None = None
    """int64 (B,), names the transitions for `Sampler.update_priorities`; None likewise."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shapes = ", ".join(
            f"{name}={None if value is None else f'{value.dtype}{value.shape}'}"
            for name, value in values.items()
        )
        return f"Transitions({shapes})"


class FrameBuffer:
    """Memory for the frames of one batch, and the views of it that learners want."""

    def __init__(
        self, spec: EpisodeSpec, *, batch_size: int, n_step: int, holds: bool = True
    ) -> None:
        self.window: NDArray[np.uint8] | None = None
        self.flat: NDArray[np.uint8] | None = None
        self.observation: NDArray[np.uint8] | None = None
        self.next_observation: NDArray[np.uint8] | None = None
        if spec.image is None or not holds:
            return
        stack = spec.image.stack
        width = stack + 1 if n_step == 1 else 2 * stack
        shape = (batch_size, *spec.image.observation_shape)
        self.window = np.empty((batch_size, width, *spec.image.frame_shape), dtype=np.uint8)
        self.flat = self.window.reshape((batch_size, width, -1), copy=False)
        # (B, K, C, H, W) -> (B, K*C, H, W) without a copy: frames lie side by side
        self.observation = self.window[:, :stack].reshape(shape, copy=False)
        self.next_observation = self.window[:, -stack:].reshape(shape, copy=False)


class FrameSource(Protocol):
    """Where the frames of a batch come from: the one door to the pixels."""

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Put the frames of these rows into place.

        Args:
            rows: int64 (B, W), rows of the cache.
            out: uint8 (B, W, C*H*W), contiguous.
        """


class MappedFrames:
    """Frames that lie decoded in a column of the cache."""

    def __init__(self, column: NDArray[np.uint8]) -> None:
        """Read from a column uint8 (rows, C, H, W) from now on."""
        # Two axes, not four: np.take then copies each row as one block.
        self._frames = column.reshape(len(column), -1)

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Put the frames of these rows into place; see `FrameSource`."""
        np.take(self._frames, rows, axis=0, mode="clip", out=out)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRows:
    """Where the episodes lie, in the order in which their steps are numbered."""

    ends: NDArray[np.int64]
    """int64 (E,), number behind each episode's last step; sorted."""
    first: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation."""
    shift: NDArray[np.int64]
    """int64 (E,), from a step's number to its row."""
    bc_mask: NDArray[np.float32] | None = None
    """float32 (E,), 1 where the steps are marked for imitation, else 0; None if all are."""

    @classmethod
    def from_lengths(
        cls,
        lengths: NDArray[np.int64],
        first: NDArray[np.int64],
        bc_mask: NDArray[np.float32] | None = None,
    ) -> Self:
        """Number the steps of episodes, given their lengths and first rows."""
        ends: NDArray[np.int64] = lengths.cumsum()
        return cls(ends=ends, first=first, shift=first - (ends - lengths), bc_mask=bc_mask)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """All of some batches but their frames; see `Transitions` for what each array holds."""

    rows: NDArray[np.int64]
    """int64 (N, B, W), rows of the frames; W = 0 without an image."""
    vectors: NDArray[np.float32] | None
    """float32 (2, N, B, V), those of the observations and of the next ones."""
    action: NDArray[np.float32]
    """float32 (N, B, A)."""
    reward: NDArray[np.float32]
    """float32 (N, B)."""
    discount: NDArray[np.float32]
    """float32 (N, B)."""
    bc_mask: NDArray[np.float32] | None
    """float32 (N, B)."""

    def batch(self, number: int, frames: FrameBuffer) -> Transitions:
        """One of the batches, with frames that are gathered into `frames`."""
        vectors = self.vectors
        return Transitions(
            frames=frames.window,
            observation_frames=frames.observation,
            next_observation_frames=frames.next_observation,
            observation_vector=None if vectors is None else vectors[0, number],
            next_observation_vector=None if vectors is None else vectors[1, number],
            action=self.action[number],
            reward=self.reward[number],
            discount=self.discount[number],
            frame_rows=self.rows[number],
            bc_mask=None if self.bc_mask is None else self.bc_mask[number],
        )


class Gather:
    """Turns numbers of steps into batches."""

    def __init__(self, spec: EpisodeSpec, *, n_step: int, gamma: float) -> None:
        """Prepare what does not change between batches.

        Args:
            spec: What the cache holds.
            n_step: Most rewards summed per transition.
            gamma: Discount per step.
        """
        stack = 0 if spec.image is None else spec.image.stack
        self._n_step = n_step
        self._stack = np.arange(1 - stack, 1)
        self._window = np.arange(1 - stack, 2 if stack else 1)
        self._ahead = np.arange(n_step)
        powers = gamma ** np.arange(n_step + 1, dtype=np.float64)
        self._powers = powers.astype(np.float32)
        below = self._ahead < np.arange(n_step + 1)[:, None]
        self._weights = np.where(below, powers[:-1], 0.0)  # (m, i): gamma^i while i < m
        self._vector = ACTION + spec.action_size
        self._width = self._vector + spec.vector_size
        self._columns: dict[str, NDArray[Any]] = {}
        self._frames: FrameSource | None = None

    def bind(
        self,
        columns: Mapping[str, NDArray[Any]],
        episodes: EpisodeRows,
        frames: FrameSource | None = None,
    ) -> None:
        """Read from these columns of a cache from now on.

        Args:
            columns: Of a `ReplayCache`.
            episodes: Where the episodes lie in them.
            frames: Where the frames are; None if the columns hold them, or there are none.
        """
        self._columns = {name: column.reshape(len(column), -1) for name, column in columns.items()}
        if frames is None and "frames" in columns:
            frames = MappedFrames(columns["frames"])
        self._episodes, self._frames = episodes, frames

    def look_up(self, number: NDArray[np.int64]) -> Lookup:
        """Find the steps of these numbers and read all but their frames.

        Args:
            number: int64 (N, B), each at least 0 and below the number of steps.
        """
        episode = self._episodes.ends.searchsorted(number, side="right")
        row = number + self._episodes.shift.take(episode)
        if self._n_step == 1:
            next_row = row + 1
        else:
            left = self._episodes.ends.take(episode) - number
            count = np.minimum(left, self._n_step)
            next_row = row + count
        # One visit to memory for each transition: the two rows are neighbours if n = 1.
        pairs = np.stack([row, next_row], axis=-1)
        numbers = self._columns["numbers"].take(pairs, axis=0, mode="clip")  # (N, B, 2, 2 + A + V)
        if self._n_step == 1:
            reward = numbers[..., 0, REWARD].copy()
            discount = numbers[..., 0, ALIVE] * self._powers[1]
        else:
            reward, discount = self._sum_rewards(row, count)
        vectors = np.moveaxis(numbers[..., self._vector :], 2, 0)
        bc_mask = self._episodes.bc_mask
        return Lookup(
            rows=self._frame_rows(row, next_row, self._episodes.first.take(episode)),
            # Views: a batch that is copied to a device anyway need not be copied here.
            vectors=vectors if self._width > self._vector else None,
            action=numbers[..., 0, ACTION : self._vector],
            reward=reward,
            discount=discount,
            bc_mask=None if bc_mask is None else bc_mask.take(episode),
        )

    def take_frames(self, rows: NDArray[np.int64], frames: FrameBuffer) -> None:
        """Gather the frames of one batch, rows int64 (B, W)."""
        if frames.flat is not None:
            self.fill(rows, frames.flat)

    def fill(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Gather frames, rows int64 (B, W), into uint8 (B, W, C*H*W)."""
        assert self._frames is not None, "bind comes first"
        self._frames.take(rows, out)

    def take_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """All that is small of some rows: float32 (..., 2 + A + V), see `ReplayCache`."""
        found: NDArray[np.float32] = self._columns["numbers"].take(rows, axis=0, mode="clip")
        return found

    def _sum_rewards(
        self, row: NDArray[np.int64], count: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Discounted sums that end at each transition's last step, and its discounts."""
        flat = self._columns["numbers"].reshape(-1)
        last = row + (count - 1)
        ahead = np.minimum(row[..., None] + self._ahead, last[..., None])  # (N, B, n)
        reward = flat.take(ahead * self._width + REWARD, mode="clip")
        total = np.einsum("abn,abn->ab", reward, self._weights[count])
        alive = flat.take(last * self._width + ALIVE, mode="clip")
        return total.astype(np.float32), alive * self._powers.take(count)

    def _frame_rows(
        self, row: NDArray[np.int64], next_row: NDArray[np.int64], first: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        if self._n_step == 1:
            rows = row[..., None] + self._window
        else:
            stacks = (row[..., None] + self._stack, next_row[..., None] + self._stack)
            rows = np.concatenate(stacks, axis=-1)
        np.maximum(rows, first[..., None], out=rows)  # the episode's first frame
        return rows
