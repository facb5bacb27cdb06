"""What a writer holds of a segment before it is published: whole episodes, and a running one.

Counted last, cut back first: whatever interrupts a call, `drop_running` leaves whole episodes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.columns import FrameBuffer, StepColumns
from avtd3.store.events import Event
from avtd3.store.format.codec import FrameCodec
from avtd3.store.seal import EndedEpisode, EpisodeInfo
from avtd3.store.spec import EpisodeSpec


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
