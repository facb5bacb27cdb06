"""`WriterConfig`: how a writer encodes frames and when it closes a segment."""

import dataclasses
import math

from avtd3.store.errors import ConfigError
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import MAX_STEPS


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
