"""Sequences of L steps in a row, out of the same cache by the same gather as single transitions.

A sequence lies wholly in one episode: every start from which L steps are left is equally likely (by
weights, mix and age as for transitions), nothing is padded or masked, and episodes of fewer steps
are never drawn.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.replay.gather import EpisodeRows, Gather
from avtd3.store.replay.scratch import ACTION, ALIVE, REWARD
from avtd3.store.replay.transition_index import Draws
from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SequenceBatch:
    """S sequences of L steps; a later draw overwrites the frames, the rest is its own."""

    frames: NDArray[np.uint8] | None
    """uint8 (S, K - 1 + L + 1, C, H, W), single frames, those before the episode's first repeating
    it; None without an image."""
    vector: NDArray[np.float32] | None
    """float32 (S, L + 1, V); None without a vector."""
    action: NDArray[np.float32]
    """float32 (S, L, A)."""
    reward: NDArray[np.float32]
    """float32 (S, L), of single steps."""
    terminated: NDArray[np.bool_]
    """bool (S, L); only last steps can be."""
    truncated: NDArray[np.bool_]
    """bool (S, L); only last steps can be."""
    bc_mask: NDArray[np.float32] | None = None
    """float32 (S,), 1 where the actions are marked for imitation, else 0; None if all are."""

    def observation_frames(self, step: int) -> NDArray[np.uint8]:
        """The stack before a step, or after the last one: uint8 (S, K*C, H, W), a view.

        Args:
            step: From 0 to L.
        """
        assert self.frames is not None, "there are no stacks without an image"
        stack = self.frames.shape[1] - self.action.shape[1]
        window = self.frames[:, step : step + stack]
        return window.reshape((len(window), -1, *window.shape[3:]), copy=False)

    def __repr__(self) -> str:
        return "SequenceBatch(sequences={}, steps={})".format(*self.reward.shape)


class Sequences:
    """Draws of sequences."""

    def __init__(
        self, spec: EpisodeSpec, gather: Gather, *, seed: int, length: int, count: int
    ) -> None:
        """Start at a seed, with nothing to draw from.

        Args:
            spec: What the cache holds.
            gather: Bound to the cache whenever this is.
            seed: Seed of the draws.
            length: Steps of each, L.
            count: Sequences in a batch, S.
        """
        self.draws = Draws(seed=seed, batch_size=count)
        self._gather, self._length = gather, length
        self._vector = ACTION + spec.action_size
        self._has_vector = spec.vector_size > 0
        self._steps = np.arange(length + 1)
        self._window: NDArray[np.uint8] | None = None
        if spec.image is not None:
            stack = spec.image.stack
            self._stack = np.arange(1 - stack, length + 1)
            shape = (count, stack + length, *spec.image.frame_shape)
            self._window = np.empty(shape, np.uint8)
        self._block: NDArray[np.int64] | None = None

    def bind(self, starts: EpisodeRows) -> None:
        """Draw from these starts; the draws must be bound to their counts beforehand."""
        self._starts, self._block = starts, None

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `Draws.state` was taken.

        Raises:
            CheckpointError: It is not what that returns.
        """
        self._block = self.draws.restore(state)

    def sample(self) -> SequenceBatch:
        """Draw a batch; the next call overwrites its frames."""
        if self._block is None or not self.draws.is_drawn:
            self._block = self.draws.draw()
        number = self._block[self.draws.take()]
        episode = self._starts.ends.searchsorted(number, side="right")
        row = number + self._starts.shift[episode]
        numbers = self._gather.take_numbers(row[:, None] + self._steps)  # (S, L + 1, 2 + A + V)
        steps = numbers[:, :-1]
        terminated = steps[..., ALIVE] == 0.0
        truncated = np.zeros_like(terminated)
        is_last = number == self._starts.ends[episode] - 1
        truncated[:, -1] = is_last & ~terminated[:, -1]
        if self._window is not None:
            first = self._starts.first[episode]
            rows = np.maximum(row[:, None] + self._stack, first[:, None])
            self._gather.fill(rows, self._window.reshape((*rows.shape, -1), copy=False))
        return SequenceBatch(
            frames=self._window,
            vector=numbers[..., self._vector :].copy() if self._has_vector else None,
            action=steps[..., ACTION : self._vector].copy(),
            reward=steps[..., REWARD].copy(),
            terminated=terminated,
            truncated=truncated,
            bc_mask=None if self._starts.bc_mask is None else self._starts.bc_mask[episode],
        )
