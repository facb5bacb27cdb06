"""Memory-mapped columns in nameless scratch files, and the row ranges they are divided into.

A nameless file (``O_TMPFILE``, or unlinked at once) is given back by the kernel whenever its
process ends, `kill -9` included: there is never a left-over to find and remove. Columns are
mapped once, far past their end, and blocks of disk are reserved before rows are handed out. So
they grow without a new mapping (whose page faults cost more than the sampling), and a full disk
is an error when rows are asked for, not a SIGBUS when they are written.
"""

import contextlib
import dataclasses
import errno
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from avtd3.store.errors import StorageError
from avtd3.store.spec import EpisodeSpec

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowType:
    """What one row of a column holds."""

    dtype: DTypeLike
    """Type of each number."""
    shape: tuple[int, ...] = ()
    """Shape of the row."""

    @property
    def size_bytes(self) -> int:
        """Size of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


class ScratchColumns:
    """Columns of equal length on disk that this process maps as numpy arrays."""

    def __init__(self, directory: Path, types: Mapping[str, RowType]) -> None:
        """Create one empty file per column.

        Args:
            directory: Where the files lie, without a name; created if missing.
            types: What a row of each column holds.

        Raises:
            StorageError: The directory cannot be created or written.
        """
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
                f"replay scratch directory {directory} cannot be written: {error.strerror}; "
                "name another one with --set learn.replay.scratch=DIR"
            ) from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The column, shape ``(mapped rows, *shape)``; only the first `rows` may be touched."""
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._types

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    @property
    def row_bytes(self) -> int:
        """Size of one row over all columns."""
        return sum(kind.size_bytes for kind in self._types.values())

    def reserve(self, rows: int) -> None:
        """Make at least `rows` rows usable; what they held before stays.

        Raises:
            StorageError: The disk has no room for them; nothing has changed then.
        """
        if rows <= self.rows:
            return
        more = (rows - self.rows) * self.row_bytes
        check_room(self.directory, more)
        try:
            if rows > self._mapped_rows:
                self._map(2 * rows)
            for name, kind in self._types.items():
                size = kind.size_bytes
                allocate(self._files[name].fileno(), self.rows * size, (rows - self.rows) * size)
        except OSError as error:
            raise no_room(self.directory, more, f"the system says: {error.strerror}") from error
        self.rows = rows

    def write(self, name: str, row: int, values: NDArray[Any]) -> None:
        """Put values into rows of a column; see `write_rows`.

        Raises:
            StorageError: The disk has no room after all.
        """
        try:
            write_rows(self._files[name].fileno(), row, values)
        except OSError as error:
            raise no_room(
                self.directory, values.nbytes, f"the system says: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Give the disk space back, once no array of a column is held any more; idempotent."""
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


class RowRanges:
    """Which rows belong to which owner; ranges are whole and do not overlap.

    Owners leave in any order, so the room between the rest may fall into pieces. `place` packs
    the ranges together only when an eighth of the rows is lost to such pieces.
    """

    def __init__(self) -> None:
        self.end = 0
        self.used = 0
        self._ranges: dict[Any, tuple[int, int]] = {}
        self._gaps: list[tuple[int, int]] = []

    def __getitem__(self, owner: object) -> slice:
        return slice(*self._ranges[owner])

    def place(self, owner: object, rows: int) -> list[tuple[slice, slice]]:
        """Give `owner` a range of `rows` rows.

        Returns:
            Moves ``(from, to)`` that the caller must make, in this order, before writing to the
            new range; nearly always none.
        """
        moves: list[tuple[slice, slice]] = []
        gap = next((gap for gap in self._gaps if gap[1] - gap[0] >= rows), None)
        if gap is None and self.end - self.used >= max(rows, self.used // 8):
            moves = self._pack()
        if gap is None:
            gap = (self.end, self.end + rows)
            self.end += rows
        else:
            self._gaps.remove(gap)
            if gap[1] - gap[0] > rows:
                self._gaps.append((gap[0] + rows, gap[1]))
        self._ranges[owner] = (gap[0], gap[0] + rows)
        self.used += rows
        return moves

    def release(self, owner: object) -> None:
        """Take the range of `owner` back."""
        start, stop = self._ranges.pop(owner)
        self.used -= stop - start
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self._gaps, (start, stop)]):
            if merged and merged[-1][1] == low:
                low = merged.pop()[0]
            merged.append((low, high))
        if merged[-1][1] == self.end:
            self.end = merged.pop()[0]
        self._gaps = merged

    def _pack(self) -> list[tuple[slice, slice]]:
        moves, free = [], 0
        for owner, (start, stop) in sorted(self._ranges.items(), key=lambda item: item[1]):
            new = (free, free + stop - start)
            if new[0] != start:
                moves.append((slice(start, stop), slice(*new)))
            self._ranges[owner], free = new, new[1]
        self.end, self._gaps = free, []
        return moves


def check_room(directory: Path, more_bytes: int) -> None:
    """See that a disk has room.

    Raises:
        StorageError: It has not.
    """
    state = os.statvfs(directory)
    free = state.f_bavail * state.f_frsize
    if more_bytes > free:
        raise no_room(directory, more_bytes, f"{free / GIB:.2f} GiB are free")


def no_room(directory: Path, more_bytes: int, found: str) -> StorageError:
    """The error of a scratch directory that is too small.

    Args:
        directory: Where it lies.
        more_bytes: What was asked for.
        found: What came of it.
    """
    return StorageError(
        f"replay scratch needs {more_bytes / GIB:.2f} GiB more in {directory}, {found}; lower "
        "learn.replay.capacity or name a larger disk with --set learn.replay.scratch=DIR"
    )


def write_rows(file: int, row: int, values: NDArray[Any]) -> None:
    """Write rows of a file that is mapped, too: the mapping shows them at once.

    In large pieces this costs half of what the page faults of writing to the mapping do.

    Args:
        file: The open file.
        row: The first row.
        values: (rows, ...), C-contiguous.

    Raises:
        OSError: The file system cannot.
    """
    data, at = values.reshape(-1).data.cast("B"), row * values[0].nbytes
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done


def allocate(file: int, offset: int, size: int) -> None:
    """Reserve blocks; where the file system cannot, the check of free space has to do."""
    unsupported = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
    try:
        with contextlib.suppress(AttributeError):  # macOS has no posix_fallocate
            os.posix_fallocate(file, offset, size)
    except OSError as error:
        if error.errno not in unsupported:
            raise


REWARD, ALIVE, ACTION = 0, 1, 2
"""Where the column ``numbers`` has a step's reward, 1 - terminated, and the first number of the
action; the observation's vector follows."""


def row_types(spec: EpisodeSpec, *, frames: bool) -> dict[str, RowType]:
    """The columns: ``numbers``, and with frames, if the spec has an image, ``frames``."""
    width = ACTION + spec.action_size + spec.vector_size
    types = {"numbers": RowType(dtype=np.float32, shape=(width,))}
    if frames and spec.image is not None:
        types["frames"] = RowType(dtype=np.uint8, shape=spec.image.frame_shape)
    return types


def row_bytes(spec: EpisodeSpec) -> int:
    """Scratch that one row takes in a cache with frames."""
    return sum(kind.size_bytes for kind in row_types(spec, frames=True).values())


def write_numbers(
    out: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]], spec: EpisodeSpec
) -> None:
    """Write the small arrays of a segment of S steps in E episodes.

    Args:
        out: float32 (S + E, 2 + A + V), the segment's rows of the column ``numbers``.
        arrays: From `read_checked`.
        spec: What the segment holds.
    """
    vector = ACTION + spec.action_size
    out[:, :vector] = 0.0
    if spec.vector_size:
        out[:, vector:] = arrays["vector"]
    lengths = arrays["episode_length"]
    rows = np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)), lengths)
    out[rows, REWARD] = arrays["reward"]
    out[rows, ALIVE] = ~arrays["terminated"]
    out[rows, ACTION:vector] = arrays["action"]
