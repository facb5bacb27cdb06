"""Where the segments of a replay cache lie: rows of its own, or rows shared with other processes.

Both kinds hold the columns and say which rows a segment has. Shared are only the frames, which
are large and take long to decode; the rest each process writes for itself into nameless files, at
the same row numbers.
"""

import mmap
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import StorageError
from avtd3.store.replay.scratch import (
    RowRanges,
    RowType,
    ScratchColumns,
    allocate,
    check_room,
    no_room,
    write_rows,
)
from avtd3.store.replay.shared_directory import SharedDirectory, directory_name, sweep
from avtd3.store.replay.shared_index import SharedIndex
from avtd3.store.segment import Segment

Key = tuple[int, str]
"""A segment in the cache: number of its dataset, segment id."""

FLUSH_S = 0.5
"""Most seconds until other processes are told which segments are ready."""


class Rows(Protocol):
    """Columns, and which of their rows belong to which segment."""

    @property
    def rows(self) -> int:
        """Rows that have disk space behind them."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns, each ``(rows, ...)``, until the next `change`."""

    def __getitem__(self, key: Key) -> slice:
        """Rows of a segment."""

    def put_frames(self, key: Key, start: int, frames: NDArray[np.uint8]) -> None:
        """Write frames of a segment, from one of its rows on.

        Raises:
            StorageError: The disk has no room after all.
        """

    def change(self, gone: Iterable[Key], new: Mapping[Key, Segment]) -> None:
        """Take the rows of some segments back and give rows to others.

        Raises:
            StorageError: The disk has no room; `new` has no rows then, and `gone` neither.
        """

    def look(self, keys: Iterable[Key], most: int) -> tuple[set[Key], list[Key]]:
        """Which of some segments are in place, and which this process is to decode.

        Args:
            keys: Segments that have rows.
            most: To decode, at most, before it looks again, if others may want them, too.
        """

    def finish(self, key: Key) -> None:
        """Say that all frames of a segment are in place."""

    def settle(self, failed: Iterable[Key]) -> None:
        """Make what was finished known, and take the rows of what failed back."""

    def close(self) -> None:
        """Give everything back; safe to call twice."""


class PrivateRows:
    """Rows in nameless files of this process."""

    def __init__(self, scratch: Path, types: Mapping[str, RowType]) -> None:
        """Start empty.

        Raises:
            StorageError: `scratch` cannot be written.
        """
        self._columns = ScratchColumns(scratch, types)
        self._ranges = RowRanges()

    @property
    def rows(self) -> int:
        """See `Rows`."""
        return self._columns.rows

    def columns(self) -> dict[str, NDArray[Any]]:
        """See `Rows`."""
        return {name: self._columns[name] for name in self._columns}

    def __getitem__(self, key: Key) -> slice:
        return self._ranges[key]

    def put_frames(self, key: Key, start: int, frames: NDArray[np.uint8]) -> None:
        """See `Rows`."""
        self._columns.write("frames", self[key].start + start, frames)

    def change(self, gone: Iterable[Key], new: Mapping[Key, Segment]) -> None:
        """See `Rows`."""
        for key in gone:
            self._ranges.release(key)
        self._columns.reserve(self._ranges.used + sum(s.observations for s in new.values()))
        placed: list[Key] = []
        try:
            for key, segment in new.items():
                for source, target in self._ranges.place(key, segment.observations):
                    for name in self._columns:
                        self._columns[name][target] = self._columns[name][source]
                placed.append(key)
            self._columns.reserve(self._ranges.end)
        except BaseException:
            self.settle(placed)
            raise

    def look(self, keys: Iterable[Key], most: int) -> tuple[set[Key], list[Key]]:
        """See `Rows`."""
        return set(), list(keys)

    def finish(self, key: Key) -> None:
        """See `Rows`; nobody else wants to know."""

    def settle(self, failed: Iterable[Key]) -> None:
        """See `Rows`."""
        for key in failed:
            self._ranges.release(key)

    def close(self) -> None:
        """See `Rows`."""
        self._ranges = RowRanges()
        self._columns.close()


class SharedRows:
    """Frames in a file that processes share; all else in nameless files of this process."""

    def __init__(self, scratch: Path, types: Mapping[str, RowType], digest: str) -> None:
        """Join the processes that hold frames of one kind in a scratch directory.

        Args:
            scratch: Where the shared directory lies or is to lie.
            types: What a row of each column holds; one of them is ``frames``.
            digest: Of all that says what a row is.

        Raises:
            StorageError: `scratch` cannot be written.
            OSError: The file system lacks what sharing takes, or something is in the way.
        """
        own = {name: kind for name, kind in types.items() if name != "frames"}
        self._own, self._kind = ScratchColumns(scratch, own), types["frames"]
        self._frames: NDArray[Any] = np.empty((0, *self._kind.shape), self._kind.dtype)
        self._contents: dict[Key, str] = {}
        self._ranges: dict[str, slice] = {}
        self._finished: list[str] = []
        self._flush_at_s = 0.0
        self._mapped_rows = 0
        self._used_rows = 0
        try:
            self._home = SharedDirectory(scratch / directory_name(digest))
        except OSError:
            self._own.close()
            raise
        self._leave = weakref.finalize(self, self._home.leave)
        try:
            with self._home.exclusive() as living:
                self._read(living)
            self._map(1)  # here, not later, is where a file system that cannot is found out
        except OSError:
            self.close()
            raise
        sweep(scratch)

    @property
    def rows(self) -> int:
        """See `Rows`; those of all processes, as of the last `change`."""
        return self._used_rows

    def columns(self) -> dict[str, NDArray[Any]]:
        """See `Rows`."""
        return {**{name: self._own[name] for name in self._own}, "frames": self._frames}

    def __getitem__(self, key: Key) -> slice:
        return self._ranges[self._contents[key]]

    def put_frames(self, key: Key, start: int, frames: NDArray[np.uint8]) -> None:
        """See `Rows`."""
        try:
            write_rows(self._home.frames, self[key].start + start, frames)
        except OSError as error:
            found = f"the system says: {error.strerror}"
            raise no_room(self._home.path, frames.nbytes, found) from error

    def change(self, gone: Iterable[Key], new: Mapping[Key, Segment]) -> None:
        """See `Rows`."""
        left = self._forget(gone)
        contents = {key: segment.manifest_digest for key, segment in new.items()}
        wanted = {contents[key]: segment.observations for key, segment in new.items()}
        with self._home.exclusive() as living:
            index = self._read(living)
            index.release(self._home.lease, left)
            claimed = index.copy()
            claimed.claim(self._home.lease, wanted)
            try:
                self._reserve(index.rows, claimed.rows)
                index = claimed
            finally:
                self._home.write_index(index.to_document())
        self._used_rows = index.rows
        self._contents |= contents
        self._ranges |= {c: slice(index[c].start, index[c].stop) for c in wanted}

    def look(self, keys: Iterable[Key], most: int) -> tuple[set[Key], list[Key]]:
        """See `Rows`; of two segments with the same content one is to be decoded."""
        ready: set[Key] = set()
        mine: dict[str, Key] = {}
        with self._home.exclusive() as living:
            index = self._read(living)
            index.finish(self._finished)
            for key in keys:
                content = self._contents[key]
                if index[content].is_ready:
                    ready.add(key)
                elif len(mine) < most and index.take_over(self._home.lease, content):
                    mine.setdefault(content, key)
            if mine or self._finished:
                self._home.write_index(index.to_document())
        self._finished = []
        return ready, list(mine.values())

    def finish(self, key: Key) -> None:
        """See `Rows`; others learn of it within `FLUSH_S`, if more follow, or by `settle`."""
        self._finished.append(self._contents[key])
        if time.monotonic() >= self._flush_at_s:
            self.settle(())

    def settle(self, failed: Iterable[Key]) -> None:
        """See `Rows`."""
        left = self._forget(failed)
        if left or self._finished:
            with self._home.exclusive() as living:
                index = self._read(living)
                index.finish(self._finished)
                index.release(self._home.lease, left)
                self._home.write_index(index.to_document())
            self._finished = []
        self._flush_at_s = time.monotonic() + FLUSH_S

    def close(self) -> None:
        """See `Rows`."""
        self._leave()
        self._own.close()
        self._frames = np.empty((0, *self._kind.shape), self._kind.dtype)
        self._contents, self._ranges = {}, {}
        self._used_rows = self._mapped_rows = 0

    def _forget(self, keys: Iterable[Key]) -> list[str]:
        """Forget segments; returns the contents that this process has no use for any more."""
        left = {self._contents.pop(key) for key in keys} - set(self._contents.values())
        for content in left:
            del self._ranges[content]
        return sorted(left)

    def _read(self, living: set[str]) -> SharedIndex:
        try:
            document = self._home.read_index()
            index = SharedIndex() if document is None else SharedIndex.from_document(document)
        except ValueError as error:
            raise StorageError(
                f"{self._home.path} holds an index that cannot be read ({error}); end the runs "
                "that use it, then remove the directory"
            ) from error
        index.keep(living)
        return index

    def _reserve(self, before: int, rows: int) -> None:
        """Make rows of the shared file usable, and those of the same number of the other files."""
        size = self._kind.size_bytes
        if rows > before:
            check_room(self._home.path, (rows - before) * size)
        try:
            self._map(rows)
            if rows > before:
                allocate(self._home.frames, before * size, (rows - before) * size)
        except OSError as error:
            more = (rows - before) * size
            raise no_room(self._home.path, more, f"the system says: {error.strerror}") from error
        self._own.reserve(rows)

    def _map(self, rows: int) -> None:
        """Map the shared file, far past its end; only with the lock held or before any use."""
        if rows <= self._mapped_rows:
            return
        size = 2 * rows * self._kind.size_bytes
        file = self._home.frames
        if os.fstat(file).st_size < size:  # never shorter: others have mapped what is there
            os.ftruncate(file, size)
        flat = np.frombuffer(mmap.mmap(file, size), dtype=self._kind.dtype)
        self._frames = flat.reshape((2 * rows, *self._kind.shape))
        self._mapped_rows = 2 * rows
