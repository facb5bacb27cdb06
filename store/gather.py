"""One batch out of the replay cache: where each frame lies, and a single gather of all of them.

Frames are stored once. The observation of a step is the stack of the K frames up to its row,
clamped to the first row of its episode:

* n-step 1: a window of K + 1 frames, of which observation and next observation are two
  overlapping views.
* n-step above 1: two stacks side by side, 2 K frames. The next observation lies min(n, steps
  left) rows on, another distance in each transition near an episode's end, so in no single
  window is it at a fixed place.

``np.take(mode="clip")`` into a reused buffer is the fastest gather there is (the default mode
costs half of it). All the rest has to stay within 5 % of it: bench/replay_bench.py.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.replay import AGE, LEFT, SHIFT, ReplayCache
from avtd3.store.spec import EpisodeSpec

BUFFERS = 3
"""Batches that are alive at a time: one in use, one waiting, one being gathered."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Transitions:
    """One batch; its arrays are overwritten by the third `Sampler.sample` after it."""

    frames: NDArray[np.uint8] | None
    """uint8 (B, W, C, H, W), all gathered frames: K + 1 or, for n-step > 1, 2 K of them; None
    without an image."""
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

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shapes = ", ".join(
            f"{name}={None if value is None else f'{value.dtype}{value.shape}'}"
            for name, value in values.items()
        )
        return f"Transitions({shapes})"


class Gather:
    """Turns positions of steps into batches, in `BUFFERS` buffers by turns."""

    def __init__(self, spec: EpisodeSpec, *, batch_size: int, n_step: int, gamma: float) -> None:
        """Allocate all buffers.

        Args:
            spec: What the cache holds.
            batch_size: Transitions per batch, B.
            n_step: Most rewards summed per transition.
            gamma: Discount per step.
        """
        stack = 0 if spec.image is None else spec.image.stack
        self._steps = n_step
        self._stack = np.arange(1 - stack, 1)
        self._window = np.arange(1 - stack, 2)
        self._ahead = np.arange(n_step)
        powers = gamma ** np.arange(n_step + 1, dtype=np.float64)
        self._powers = powers.astype(np.float32)
        below = self._ahead < np.arange(n_step + 1)[:, None]
        self._weights = np.where(below, powers[:-1], 0.0)  # (m, i): gamma^i while i < m
        self._buffers = [_allocate(spec, batch_size, n_step) for _ in range(BUFFERS)]
        width = stack + 1 if n_step == 1 else 2 * stack
        self._rows = np.empty((batch_size, width), dtype=np.int64)
        self._turn = 0
        self._columns: dict[str, NDArray[Any]] = {}

    def bind(self, cache: ReplayCache | None) -> None:
        """Read from the columns that the cache has now; None lets go of them."""
        self._columns = {} if cache is None else cache.columns()
        if "frames" in self._columns:
            frames = self._columns["frames"]
            # Two axes, not four: np.take then copies each frame as one block.
            self._columns["frames"] = frames.reshape(len(frames), -1)

    def __call__(self, position: NDArray[np.int64]) -> Transitions:
        """Gather the transitions at these positions of the bound cache.

        Args:
            position: int64 (B,), each that of a step.
        """
        batch = self._buffers[self._turn]
        self._turn = (self._turn + 1) % BUFFERS
        links = self._columns["links"].take(position, axis=0, mode="clip")
        row = position + links[:, SHIFT]
        if self._steps == 1:
            next_row, last = row + 1, position
            self._columns["reward"].take(position, mode="clip", out=batch.reward)
            batch.discount.fill(self._powers[1])
        else:
            count = np.minimum(links[:, LEFT], self._steps)
            next_row, last = row + count, position + (count - 1)
            self._sum_rewards(position, last, count, batch)
        batch.discount[self._columns["terminated"].take(last, mode="clip")] = 0.0
        self._columns["action"].take(position, axis=0, mode="clip", out=batch.action)
        if batch.observation_vector is not None and batch.next_observation_vector is not None:
            vector = self._columns["vector"]
            vector.take(row, axis=0, mode="clip", out=batch.observation_vector)
            vector.take(next_row, axis=0, mode="clip", out=batch.next_observation_vector)
        if batch.frames is not None:
            self._take_frames(row, next_row, row - links[:, AGE], batch.frames)
        return batch

    def _sum_rewards(
        self,
        position: NDArray[np.int64],
        last: NDArray[np.int64],
        count: NDArray[np.int32],
        batch: Transitions,
    ) -> None:
        """Discounted sums that stop at the last step of each transition."""
        ahead = np.minimum(position[:, None] + self._ahead, last[:, None])  # (B, n)
        reward = self._columns["reward"].take(ahead, mode="clip")
        np.einsum("bn,bn->b", reward, self._weights[count], out=batch.reward, casting="same_kind")
        self._powers.take(count, mode="clip", out=batch.discount)

    def _take_frames(
        self,
        row: NDArray[np.int64],
        next_row: NDArray[np.int64],
        first: NDArray[np.int64],
        out: NDArray[np.uint8],
    ) -> None:
        rows, stack = self._rows, len(self._stack)
        if self._steps == 1:
            np.add(row[:, None], self._window, out=rows)
        else:
            np.add(row[:, None], self._stack, out=rows[:, :stack])
            np.add(next_row[:, None], self._stack, out=rows[:, stack:])
        np.maximum(rows, first[:, None], out=rows)  # clamped to the episode's first frame
        self._columns["frames"].take(rows, axis=0, mode="clip", out=out.reshape(*rows.shape, -1))


def _allocate(spec: EpisodeSpec, batch: int, n_step: int) -> Transitions:
    frames = observation = following = None
    if spec.image is not None:
        stack = spec.image.stack
        width = stack + 1 if n_step == 1 else 2 * stack
        frames = np.empty((batch, width, *spec.image.frame_shape), dtype=np.uint8)
        shape = (batch, *spec.image.observation_shape)
        # (B, K, C, H, W) -> (B, K*C, H, W) without a copy: frames lie side by side
        observation = frames[:, :stack].reshape(shape, copy=False)
        following = frames[:, -stack:].reshape(shape, copy=False)
    vectors = [
        np.empty((batch, spec.vector_size), np.float32) if spec.vector_size else None
        for _ in range(2)
    ]
    return Transitions(
        frames=frames,
        observation_frames=observation,
        next_observation_frames=following,
        observation_vector=vectors[0],
        next_observation_vector=vectors[1],
        action=np.empty((batch, spec.action_size), dtype=np.float32),
        reward=np.empty(batch, dtype=np.float32),
        discount=np.empty(batch, dtype=np.float32),
    )
