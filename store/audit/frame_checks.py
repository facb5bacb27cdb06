"""Whether a segment's pictures show anything: black, uniform and frozen frames.

Frames are read once, in blocks of a few MiB, and reduced to six bytes each; the checks are pure
functions over those.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.evidence import (
    CheckLimits,
    Evidence,
    FrameFeatures,
    SemanticCheck,
    first_rows,
    runs,
    speed_mps,
)
from avtd3.store.audit.findings import Fault
from avtd3.store.spec import EpisodeSpec, ImageSpec

MOVING_MPS = 0.5
"""Speed above which a picture must change."""
FAST_MPS = 3.0
"""Speed above which two pictures in a row must differ: 15 cm apart at 20 Hz."""
UNIFORM_SPREAD = 1
"""Largest difference between two pixels of a frame that shows nothing."""
BLOCK_BYTES = 1 << 20
"""Raw frames held at a time: small enough for the cache, large enough to cost no calls."""


def scan_frames(
    read: Callable[[int, int, NDArray[np.uint8]], object], frames: int, image: ImageSpec
) -> FrameFeatures:
    """Reduce frames to what the checks need, in bounded memory.

    Args:
        read: Decodes frames ``start`` to ``stop`` into a uint8 (n, C, H, W) buffer.
        frames: Number of frames, N_obs.
        image: Their shape.
    """
    # Whole chunks, so that none is decoded twice.
    block = max(4, BLOCK_BYTES // image.frame_bytes // 16 * 16)
    # One row more in front: the last frame of the block before.
    buffer = np.empty((min(block, frames) + 1, *image.frame_shape), np.uint8)
    # Twice as fast as 64 bits, and enough for frames of up to 16 MiB.
    total = np.uint32 if image.frame_bytes <= 2**24 else np.uint64
    mean = np.empty(frames, np.float32)
    spread = np.empty(frames, np.uint8)
    repeated = np.zeros(frames, np.bool_)
    for start in range(0, frames, block):
        stop = min(frames, start + block)
        read(start, stop, buffer[1 : 1 + stop - start])
        flat = buffer[: 1 + stop - start].reshape(1 + stop - start, -1)
        mean[start:stop] = flat[1:].sum(axis=1, dtype=total) / image.frame_bytes
        spread[start:stop] = flat[1:].max(axis=1) - flat[1:].min(axis=1)
        repeated[start:stop] = (flat[1:] == flat[:-1]).all(axis=1)
        buffer[0] = buffer[stop - start]
    repeated[:1] = False
    return FrameFeatures(mean=mean, spread=spread, repeated=repeated)


def black_frames(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Frames have light in them."""
    if evidence.frames is None:
        return
    message = f"mean grey below {limits.black_level:g} of 255"
    yield from _by_episode("black-frames", evidence, _is_black(evidence.frames, limits), message)


def uniform_frames(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Frames that are not black show more than one grey."""
    if evidence.frames is None:
        return
    uniform = (evidence.frames.spread <= UNIFORM_SPREAD) & ~_is_black(evidence.frames, limits)
    message = f"all pixels within {UNIFORM_SPREAD} grey of each other"
    yield from _by_episode("uniform-frames", evidence, uniform, message)


def frozen_frames(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """The picture changes while the car moves, or at all where no speed is known."""
    if evidence.frames is None:
        return
    still = evidence.frames.repeated & ~_is_black(evidence.frames, limits)
    still[evidence.observation_start] = False
    speed = speed_mps(evidence, spec)
    if speed is not None:
        still &= np.abs(speed) > MOVING_MPS
    episode_of = evidence.observation_episode
    reported: set[int] = set()
    for start, stop in runs(still):
        # A run of n repetitions is n + 1 equal frames; an episode's first frame splits runs.
        frames, episode = stop - start + 1, int(episode_of[start])
        if frames >= limits.frozen_frames and episode not in reported:
            reported.add(episode)
            moving = "" if speed is None else " while the car moves"
            first = start - 1 - evidence.observation_start[episode]
            message = (
                f"{frames} equal frames from observation {first}{moving}, "
                f"expected less than {limits.frozen_frames}"
            )
            yield Fault(check="frozen-frames", episode=episode, message=message)


def _is_black(frames: FrameFeatures, limits: CheckLimits) -> NDArray[np.bool_]:
    black: NDArray[np.bool_] = frames.mean < limits.black_level
    return black


def _by_episode(
    check: str, evidence: Evidence, bad: NDArray[np.bool_], says: str
) -> Iterator[Fault]:
    for episode, row, count in first_rows(bad, evidence.observation_episode):
        held = evidence.episodes.length[episode] + 1
        where = row - evidence.observation_start[episode]
        message = f"{says} in {count} of {held} frames, first at observation {where}; expected none"
        yield Fault(check=check, episode=episode, message=message)


def frame_stutter(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Most frames of a car that moves are new."""
    speed = speed_mps(evidence, spec)
    if evidence.frames is None or speed is None:
        return
    moving = np.abs(speed) > FAST_MPS
    moving &= ~_is_black(evidence.frames, limits)
    moving[evidence.observation_start] = False
    repeated = moving & evidence.frames.repeated
    for episode, row, count in first_rows(repeated, evidence.observation_episode):
        start = int(evidence.observation_start[episode])
        among = int(moving[start : start + 1 + int(evidence.episodes.length[episode])].sum())
        if among >= limits.frozen_frames and count > limits.stutter_share * among:
            message = (
                f"{count} of {among} frames of the moving car repeat the one before, first at "
                f"observation {row - start}; expected at most {limits.stutter_share:.0%}"
            )
            yield Fault(check="frame-stutter", episode=episode, message=message)


def frame_stale(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """An episode does not begin with the picture that the one before ended with."""
    if evidence.frames is None:
        return
    frames = evidence.frames
    shown = (frames.spread > UNIFORM_SPREAD) & ~_is_black(frames, limits)
    stale = frames.repeated & shown
    for episode in np.flatnonzero(stale[evidence.observation_start]).tolist():
        message = "its first frame is the last of the episode before, expected a new picture"
        yield Fault(check="frame-stale", episode=episode, message=message)


def frame_flash(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """No single frame differs far from two neighbours that are alike: it is another picture."""
    if evidence.frames is None:
        return
    frames, flash = evidence.frames, np.zeros(len(evidence.frames.mean), np.bool_)
    before, here, after = frames.mean[:-2], frames.mean[1:-1], frames.mean[2:]
    apart = np.minimum(np.abs(here - before), np.abs(here - after))
    flash[1:-1] = (apart > limits.flash_level) & (np.abs(after - before) < apart / 3.0)
    # Those at either end of an episode have one neighbour only.
    flash[evidence.observation_start] = False
    flash[evidence.observation_start + evidence.episodes.length] = False
    flash &= (frames.spread > UNIFORM_SPREAD) & ~_is_black(frames, limits)
    says = f"more than {limits.flash_level:g} greys off both neighbours"
    yield from _by_episode("frame-flash", evidence, flash, says)


FRAME_CHECKS: tuple[SemanticCheck, ...] = (
    black_frames,
    uniform_frames,
    frozen_frames,
    frame_stutter,
    frame_stale,
    frame_flash,
)
"""The checks of the pictures; they rely on `episode_bounds` finding nothing."""
