"""`Draw`: from the sampler to a batch on the device, shifted at random if so configured."""

import dataclasses
import time

import numpy as np
import torch
from numpy.typing import NDArray

from avtd3.learn.batch import Batch, Shifting, flatten_sequences, to_batch
from avtd3.learn.pace import Pace
from avtd3.learn.ring import FrameRing
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How batches are drawn."""

    replay: ReplayConfig
    """Single transitions or sequences, and their discount."""
    device: torch.device
    """Where the networks are."""
    dtype: torch.dtype
    """Floating type of the pixels."""
    shifting: Shifting | None
    """How images are shifted; None leaves them alone."""
    ring: FrameRing | None
    """Where the frames are already, if the sampler does not gather them."""
    pace: Pace
    """Told how long the sampler took."""

    def __call__(self, sampler: Sampler) -> tuple[Batch, NDArray[np.int64] | None]:
        """A batch, and what names its transitions if draws are prioritised."""
        before_s = time.monotonic()
        if self.replay.sequence_length:
            sequences = sampler.sample_sequences()
            self.pace.sampled(before_s)
            gamma = self.replay.gamma
            return flatten_sequences(sequences, gamma, self.device, self.dtype, self.shifting), None
        transitions = sampler.sample()
        self.pace.sampled(before_s)
        stacks = None
        if self.ring is not None and transitions.frames is None:
            stacks = self.ring.stacks(sampler, transitions.frame_rows)
        batch = to_batch(transitions, self.device, self.dtype, self.shifting, stacks)
        return batch, transitions.index
