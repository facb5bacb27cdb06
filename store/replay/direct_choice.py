"""Cache or direct: where a sampler gets its frames from, and why."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from avtd3.store.replay.cache import ReplayCache
from avtd3.store.replay.columns import row_bytes
from avtd3.store.replay.direct import DirectReplay
from avtd3.store.replay.joined_decoder import JoinedDecoder
from avtd3.store.replay.native import native_problem, open_decoder
from avtd3.store.replay.rows import Key
from avtd3.store.replay.scratch import GIB
from avtd3.store.replay.selection import ReplayConfig
from avtd3.store.replay.shared_directory import FRAMES, directory_name
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

Mode = Literal["cache", "direct"]

_SPARE = 0.9
"""Most of the free space that a cache may take; others write to that disk, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMode:
    """Where frames come from."""

    mode: Mode
    """``cache``: decoded once into a scratch file; ``direct``: from the shards at every draw."""
    why: str
    """The reason, for people."""

    def __str__(self) -> str:
        return f"replay {self.mode}: {self.why}"


def choose_mode(
    config: ReplayConfig,
    spec: EpisodeSpec,
    wanted: Mapping[Key, Segment],
    scratch: Path,
    *,
    grows: bool,
) -> ReplayMode:
    """Take the mode that was configured, or with ``auto`` the cache wherever it fits.

    Args:
        config: `ReplayConfig.mode` and the capacity.
        spec: What a row holds.
        wanted: Segments to be held at first.
        scratch: Where the cache's files would lie; need not exist yet.
        grows: More will be published: room is needed for the whole capacity.
    """
    if config.mode == "direct" and spec.image is not None:
        return ReplayMode(mode="direct", why=f"as configured; {_describe_decoder()}")
    if spec.image is None:
        return ReplayMode(mode="cache", why="there are no frames to decode")
    if config.mode == "cache":
        return ReplayMode(mode="cache", why="as configured")
    steps = sum(segment.steps for segment in wanted.values())
    rows = sum(segment.observations for segment in wanted.values())
    if grows and steps < config.capacity:
        # Each episode has one row more than steps; until one is known, that is left aside.
        rows = config.capacity * rows // steps if steps else config.capacity
    need, free = rows * row_bytes(spec), _free_bytes(scratch) + _shared_bytes(scratch, spec)
    fits = need <= _SPARE * free
    text = (
        f"{rows:,} frames need {need / GIB:.2f} GiB of scratch, {free / GIB:.2f} GiB are free "
        f"in {scratch}"
    )
    if fits:
        return ReplayMode(mode="cache", why=text)
    return ReplayMode(mode="direct", why=f"{text}; {_describe_decoder()}")


def _describe_decoder() -> str:
    if problem := native_problem():
        return (
            "frames are decoded by numcodecs, half as fast as with `pip install 'avtd3[native]'` "
            f"({problem})"
        )
    return "frames are decoded natively"


def _free_bytes(directory: Path) -> int:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    state = os.statvfs(directory)
    return state.f_bavail * state.f_frsize


def _shared_bytes(directory: Path, spec: EpisodeSpec) -> int:
    """Room taken by frames that other processes share: most likely those that are wanted."""
    try:
        return 512 * (directory / directory_name(spec.digest) / FRAMES).lstat().st_blocks
    except OSError:
        return 0


def open_replay(mode: ReplayMode, spec: EpisodeSpec, scratch: Path) -> ReplayCache | DirectReplay:
    """An empty replay of the chosen mode.

    Raises:
        StorageError: `scratch` cannot be written.
    """
    if mode.mode == "direct":
        size = 0 if spec.image is None else spec.image.frame_bytes
        return DirectReplay(spec, scratch, open_decoder(size) or JoinedDecoder(size))
    return ReplayCache(spec, scratch)
