"""What an episode is, in one digest: the same in whichever segment it lies, however encoded."""

import hashlib
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.format.layout import EPISODE_STRINGS
from avtd3.store.segment import Segment

_FRAMES_AT_ONCE = 512
_OFFSET = "episode_offset"
"""The one column that says where an episode lies, not what it is."""


def episode_digests(segment: Segment) -> Iterator[str]:
    """SHA-256 of each episode of a segment, in order, in hexadecimal.

    It covers the decoded bytes of the episode's rows of every array, frames and wall time
    included, with names, dtypes and row shapes, the strings and the events; not where in the
    segment they lie.

    Raises:
        SegmentNotFoundError: The segment was removed.
        SegmentCorruptError: Its bytes are not those that were published.
    """
    table = segment.episode_table()
    names = [name for name in sorted(segment.names) if name not in (_OFFSET, "frames")]
    arrays = {name: segment.read(name) for name in names if name not in EPISODE_STRINGS}
    events = segment.events()
    strings = {name: segment.read_strings(name) for name in names if name in EPISODE_STRINGS}
    for number in range(segment.episodes):
        digest = hashlib.sha256()
        for name, values in arrays.items():
            rows = values[_rows(segment, name, len(values), table, number)]
            digest.update(f"{name} {rows.dtype.str} {rows.shape}\n".encode())
            digest.update(rows.tobytes())
        for name, texts in strings.items():
            text = texts[number].encode("utf-8", "surrogatepass")
            digest.update(f"{name} {len(text)}\n".encode() + text)
        for event in () if events is None else events.of_episode(number):
            digest.update(f"{event}\n".encode("utf-8", "surrogatepass"))
        for frames in _frames(segment, table, number):
            digest.update(frames.data)
        yield digest.hexdigest()


def _rows(segment: Segment, name: str, rows: int, table: EpisodeTable, number: int) -> slice:
    """An episode's rows of an array, told by the array's name and length."""
    if name.startswith("episode_"):
        return slice(number, number + 1)
    start, length = int(table.offset[number]), int(table.length[number])
    if rows == segment.steps:
        return slice(start, start + length)
    return slice(start + number, start + number + length + 1)  # observations: always more


def _frames(segment: Segment, table: EpisodeTable, number: int) -> Iterator[NDArray[Any]]:
    if segment.spec.image is None:
        return
    start = int(table.observation_offset[number])
    stop = start + int(table.length[number]) + 1
    for first in range(start, stop, _FRAMES_AT_ONCE):
        yield segment.read_frames(first, min(first + _FRAMES_AT_ONCE, stop))
