"""Memory-mapped arrays in unnamed scratch files, and the rows that segments have in them.

The kernel frees an unnamed file (``O_TMPFILE``, or unlinked at once) whenever its process ends,
even by `kill -9`, so nothing is ever left to clean up. Arrays are mapped once, far past their end,
and disk blocks are reserved before rows are used. So arrays grow without a new mapping, whose page
faults would cost more than the sampling. And a full disk is an error when rows are requested, not
a SIGBUS when they are written.
"""

import contextlib
import dataclasses
import errno
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from avtd3.store.errors import StorageError, advice
from avtd3.store.format.layout import frames_array
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

Key = tuple[int, str]
"""Identifies a segment in a sampler: index of its dataset, segment id."""

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowType:
    """The dtype and shape of one row of an array."""

    dtype: DTypeLike
    shape: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Return the size of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


class ScratchArrays:
    """Arrays with the same number of rows, on disk, mapped into this process."""

    def __init__(self, directory: Path, types: Mapping[str, RowType]) -> None:
        """Create one empty, unnamed file per array."""
        self.directory = directory
        self.rows = 0
        self._types = dict(types)
        self._files: dict[str, IO[bytes]] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._mapped_rows = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name in self._types:
                self._files[name] = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - closed in close
        except OSError as error:
            self.close()
            raise StorageError(
                f"replay scratch directory {directory} cannot be written: {advice(error)}; "
                "or name another one with --set learn.replay.scratch=DIR"
            ) from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array, shape ``(mapped rows, *shape)``; only the first `rows` may be used."""
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def reserve(self, rows: int) -> None:
        """Make at least `rows` rows usable, or raise StorageError and change nothing."""
        if rows <= self.rows:
            return
        more = (rows - self.rows) * sum(kind.size_bytes for kind in self._types.values())
        check_room(self.directory, more)
        with full_disk_errors(self.directory, more):
            if rows > self._mapped_rows:
                self._map(2 * rows)
            for name, kind in self._types.items():
                size = kind.size_bytes
                allocate(self._files[name].fileno(), self.rows * size, (rows - self.rows) * size)
        self.rows = rows

    def write(self, name: str, row: int, values: NDArray[Any]) -> None:
        """Write values into an array from a row on; see `write_rows`."""
        with full_disk_errors(self.directory, values.nbytes):
            write_rows(self._files[name].fileno(), row, values)

    def close(self) -> None:
        """Free the disk space, once no array is referenced any more; safe to call twice."""
        self._arrays.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()
        self.rows = self._mapped_rows = 0

    def _map(self, rows: int) -> None:
        arrays = {}
        for name, kind in self._types.items():
            file, size = self._files[name], rows * kind.size_bytes
            os.ftruncate(file.fileno(), size)  # a hole: takes no blocks until they are reserved
            flat = np.frombuffer(mmap.mmap(file.fileno(), size), dtype=kind.dtype)
            arrays[name] = flat.reshape((rows, *kind.shape))
        self._arrays, self._mapped_rows = arrays, rows


def gaps(ranges: Iterable[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """Return the ranges of rows below `end` that are in none of some disjoint ranges, in order."""
    found, free = [], 0
    for start, stop in sorted(ranges):
        if start > free:
            found.append((free, start))
        free = stop
    return [*found, (free, end)] if free < end else found


class RowRanges:
    """Assigns contiguous, disjoint ranges of rows to owners.

    Owners are released in any order, which leaves gaps. `place` compacts the ranges only when an
    eighth of the rows is lost to gaps.
    """

    def __init__(self) -> None:
        self.end = 0
        self.used = 0
        self._ranges: dict[Any, tuple[int, int]] = {}

    def __getitem__(self, owner: object) -> slice:
        return slice(*self._ranges[owner])

    def place(self, owner: object, rows: int) -> list[tuple[slice, slice]]:
        """Assign rows to `owner`; return moves ``(from, to)`` to make first, in this order."""
        moves: list[tuple[slice, slice]] = []
        start = None
        if self.end > self.used:
            free = gaps(self._ranges.values(), self.end)
            start = next((low for low, high in free if high - low >= rows), None)
            if start is None and self.end - self.used >= max(rows, self.used // 8):
                moves = self._pack()
        start = self.end if start is None else start
        self._ranges[owner] = (start, start + rows)
        self.end = max(self.end, start + rows)
        self.used += rows
        return moves

    def release(self, owner: object) -> None:
        """Release the range of `owner`."""
        start, stop = self._ranges.pop(owner)
        self.used -= stop - start
        if stop == self.end:
            self.end = max((end for _, end in self._ranges.values()), default=0)

    def _pack(self) -> list[tuple[slice, slice]]:
        moves, free = [], 0
        for owner, (start, stop) in sorted(self._ranges.items(), key=lambda item: item[1]):
            new = (free, free + stop - start)
            if new[0] != start:
                moves.append((slice(start, stop), slice(*new)))
            self._ranges[owner], free = new, new[1]
        self.end = free
        return moves


def check_room(directory: Path, more_bytes: int) -> None:
    """Raise StorageError if a disk has not enough free space."""
    state = os.statvfs(directory)
    free = state.f_bavail * state.f_frsize
    if more_bytes > free:
        raise no_room(directory, more_bytes, f"{free / GIB:.2f} GiB are free")


def no_room(directory: Path, more_bytes: int, found: str) -> StorageError:
    """Return the error for a scratch directory that is too small, and what was found instead."""
    return StorageError(
        f"replay scratch needs {more_bytes / GIB:.2f} GiB more in {directory}, {found}; lower "
        "learn.replay.capacity or name a larger disk with --set learn.replay.scratch=DIR"
    )


@contextlib.contextmanager
def full_disk_errors(directory: Path, more_bytes: int) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `StorageError` that says how much space is missing."""
    try:
        yield
    except OSError as error:
        found = f"the system says: {advice(error)}"
        raise no_room(directory, more_bytes, found) from error


def write_rows(file: int, row: int, values: NDArray[Any]) -> None:
    """Write rows to a file that is also mapped; they are visible in the mapping at once.

    For large pieces this takes half the time of writing to the mapping, which causes page faults.
    """
    data, at = values.reshape(-1).data.cast("B"), row * values[0].nbytes
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done


def allocate(file: int, offset: int, size: int) -> None:
    """Reserve disk blocks; do nothing where the file system does not support it."""
    try:
        with contextlib.suppress(AttributeError):  # macOS has no posix_fallocate
            os.posix_fallocate(file, offset, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


REWARD, ALIVE, ACTION = 0, 1, 2
"""Columns of the array ``numbers``: a step's reward, 1 - terminated, and the first number of the
action. The vector of the observation follows the action, and then the action that the expert would
have taken, if it is needed; NaN where that is not known."""


def row_types(spec: EpisodeSpec, *, frames: bool, labels: bool = False) -> dict[str, RowType]:
    """Return the row type of ``numbers`` and, with `frames`, of the frames of each stream.

    They have the names of the arrays in segments: ``frames``, or ``frames_NAME``.
    """
    width = ACTION + spec.action_size * (1 + labels) + spec.vector_size
    types = {"numbers": RowType(dtype=np.float32, shape=(width,))}
    if frames:
        for stream, image in spec.images.items():
            name = frames_array(spec, stream)
            types[name] = RowType(dtype=np.uint8, shape=image.frame_shape)
    return types


def row_bytes(spec: EpisodeSpec) -> int:
    """Return the scratch space of one row in a cache with frames."""
    return sum(kind.size_bytes for kind in row_types(spec, frames=True).values())


def write_numbers(
    out: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]], spec: EpisodeSpec
) -> None:
    """Write a segment's small arrays to its rows, float32 (S + E, 2 + A + V), or A more columns."""
    vector = ACTION + spec.action_size
    label = vector + spec.vector_size
    out[:, :vector] = 0.0
    if spec.vector_size:
        out[:, vector:label] = arrays["vector"]
    lengths = arrays["episode_length"]
    rows = np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)), lengths)
    out[rows, REWARD] = arrays["reward"]
    out[rows, ALIVE] = ~arrays["terminated"]
    out[rows, ACTION:vector] = arrays["action"]
    if out.shape[1] > label:
        out[:, label:] = np.nan
        out[rows, label:] = arrays["expert_action"]


class PrivateRows:
    """Arrays in unnamed files of this process, and which of their rows belong to which segment."""

    def __init__(self, scratch: Path, types: Mapping[str, RowType]) -> None:
        self._scratch = ScratchArrays(scratch, types)
        self._ranges = RowRanges()

    @property
    def rows(self) -> int:
        """Number of rows that have disk space."""
        return self._scratch.rows

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, each ``(rows, ...)``, valid until the next `change`."""
        return {name: self._scratch[name] for name in self._scratch}

    def __getitem__(self, key: Key) -> slice:
        return self._ranges[key]

    def put_frames(self, name: str, key: Key, start: int, frames: NDArray[np.uint8]) -> None:
        """Write frames of a segment into an array, from the segment's row `start` on."""
        self._scratch.write(name, self[key].start + start, frames)

    def change(self, gone: Iterable[Key], new: Mapping[Key, Segment]) -> None:
        """Release the rows of some segments and assign rows to others.

        If the disk is full, this raises StorageError, and neither have rows.
        """
        for key in gone:
            self._ranges.release(key)
        self._scratch.reserve(self._ranges.used + sum(s.observations for s in new.values()))
        placed: list[Key] = []
        try:
            for key, segment in new.items():
                for source, target in self._ranges.place(key, segment.observations):
                    for name in self._scratch:
                        self._scratch[name][target] = self._scratch[name][source]
                placed.append(key)
            self._scratch.reserve(self._ranges.end)
        except BaseException:
            self.settle(placed)
            raise

    def claim(self, keys: Iterable[Key], most: int) -> tuple[set[Key], list[Key]]:
        """Return the complete segments, and at most about `most` that this process must decode."""
        return set(), list(keys)

    def finish(self, key: Key) -> None:
        """Record that all frames of a segment are written: no other process asks for it."""

    def settle(self, failed: Iterable[Key]) -> None:
        """Publish what was finished, and release the rows of the segments that failed."""
        for key in failed:
            self._ranges.release(key)

    def close(self) -> None:
        """Free everything; safe to call twice."""
        self._ranges = RowRanges()
        self._scratch.close()
