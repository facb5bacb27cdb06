"""`Observation` and `Step`: the records that worlds return, drivers read and writers store.

An episode is one `Observation`, followed by `Step`s. Each camera frame is stored once. `FrameStack`
builds the stack that a network sees, by the same rule as the replay sampler.
"""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from avtd3.store.spec import IMAGE

STOP_REASON = "collector_stop"
"""End reason of an episode that was cut because the collector was asked to stop."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A camera frame, a vector, or both, at one instant.

    Example:
        >>> import numpy as np
        >>> Observation(vector=np.zeros(3, np.float32))
        Observation(vector float32 (3,))
    """

    image: NDArray[np.uint8] | None = None
    """uint8 (C, H, W), the newest camera frame; None without a camera."""
    vector: NDArray[np.float32] | None = None
    """float32 (V,), normalised by the spec's scales; None if the spec has no vector."""
    streams: Mapping[str, NDArray[np.uint8]] | None = None
    """uint8 (C, H, W) by name, the newest frame of each named stream of the spec."""
    frame_id: int | None = None
    """The simulator's number of this frame; None to count from 0."""
    sim_time_s: float | None = None
    """Simulated seconds; None to count control periods from 0."""

    @property
    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        """The frames by name, as `avtd3.store.EpisodeSpec.images` names them."""
        return (self.streams or {}) if self.image is None else {IMAGE: self.image}

    def __repr__(self) -> str:
        parts = (*self.images.items(), ("vector", self.vector))
        shapes = (
            f"{name} {value.dtype} {value.shape}" for name, value in parts if value is not None
        )
        return f"Observation({', '.join(shapes)})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One action, its reward, and the observation after it.

    Example:
        >>> import numpy as np
        >>> after = Observation(vector=np.zeros(3, np.float32))
        >>> Step(action=np.zeros(2, np.float32), reward=1.0, observation=after, terminated=True)
        Step(action (2,), reward 1.0, terminated)
    """

    action: NDArray[np.float32]
    """float32 (A,), the action as applied, within the spec's bounds."""
    observation: Observation
    """The observation after the action."""
    reward: float | None = None
    """The reward; None for the sum of `reward_terms`."""
    reward_terms: NDArray[np.float32] | None = None
    """float32 (R,), the parts of the reward in the spec's order; None if the spec names none."""
    terminated: bool = False
    """Whether the episode ended in a terminal state: there is no future reward."""
    truncated: bool = False
    """Whether the episode was cut off although it could have continued."""
    end_reason: str = ""
    """Why the episode ended; empty for all steps but the last."""

    @property
    def is_last(self) -> bool:
        """Whether this is the last step of its episode."""
        return self.terminated or self.truncated

    def __repr__(self) -> str:
        end = ", terminated" * self.terminated + ", truncated" * self.truncated
        return f"Step(action {self.action.shape}, reward {self.reward}{end})"


class FrameStack:
    """The last K camera frames of an episode, oldest first, clamped to its first frame.

    Place j of the stack at observation t is frame ``max(0, t - (K - 1 - j) * stride)``.

    Example:
        >>> import numpy as np
        >>> stack = FrameStack(4)
        >>> stack.reset(np.zeros((1, 84, 84), np.uint8))
        >>> stack.push(np.ones((1, 84, 84), np.uint8))
        >>> stack.stacked()[:, 0, 0].tolist()
        [0, 0, 0, 1]
    """

    def __init__(self, size: int, stride: int = 1) -> None:
        length = (size - 1) * stride + 1
        self._frames: collections.deque[NDArray[np.uint8]] = collections.deque(maxlen=length)
        self._stride = stride

    def reset(self, frame: NDArray[np.uint8]) -> None:
        """Start an episode with its first frame, uint8 (C, H, W)."""
        self._frames.extend([frame.copy()] * (self._frames.maxlen or 1))

    def push(self, frame: NDArray[np.uint8]) -> None:
        """Add the next frame, uint8 (C, H, W); it is copied, so a world may reuse its buffer."""
        self._frames.append(frame.copy())

    def stacked(self) -> NDArray[np.uint8]:
        """Return the stack as a new array, uint8 (K * C, H, W)."""
        if self._stride == 1:
            return np.concatenate(self._frames)
        return np.concatenate(list(self._frames)[:: self._stride])
