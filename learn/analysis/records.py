"""Read the records of an event file: framing, checksums, and where the file is broken.

A record is a uint64 length, the checksum of the length, the data, and the checksum of the data,
all little-endian; a checksum is a masked crc32c (tensorflow/core/lib/io/record_writer.h).

TensorBoard's own reader stops at a broken record without a word, computes checksums byte by byte
in Python, and allocates whatever length a record claims. Event files may come from strangers, so
here a length is first compared with the size of the file (docs/decisions/007).
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from avtd3.store.format.codec import crc32c

MAX_RECORD_BYTES = 64 << 20
"""Larger records are skipped: those of scalars take a few kilobytes."""
_HEAD = struct.Struct("<Q4s")
_FRAME = _HEAD.size + 4
"""Size of a record without its data."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Reason why a file could not be read to its end."""

    text: str
    """Description, to be printed after the file's name."""
    torn: bool
    """Whether the file only ends early, because its run is still writing or was killed."""


class Records:
    """Iterator over the records of a file, up to its end or to the first broken one."""

    def __init__(self, path: Path) -> None:
        """Create the iterator; iterating opens the file."""
        self.trouble: Trouble | None = None
        self.skipped = 0
        """Number of records that were too large."""
        self._path = path
        self._start, self._size = 0, 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the data of each record whose checksums are right."""
        with self._path.open("rb") as file:
            self._size = self._path.stat().st_size
            while self._start < self._size and self.trouble is None:
                found = self._next(file)
                if isinstance(found, Trouble):
                    self.trouble = found
                elif found is not None:
                    yield found
                    self._start += _FRAME + len(found)

    def stop(self) -> None:
        """Report that the current record is not an event, and end the iteration."""
        self.trouble = self._fault("holds no event at")

    def _next(self, file: BinaryIO) -> bytes | Trouble | None:
        """Return the data of the next record, or None if it is too large."""
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return self._torn()
        length, checksum = _HEAD.unpack(head)
        if _masked(head[:8]) != checksum:
            return self._fault("fails a checksum at")
        if self._start + _FRAME + length > self._size:
            return self._torn()
        if length > MAX_RECORD_BYTES:
            self.skipped += 1
            self._start += _FRAME + length
            file.seek(self._start)
            return None
        data = file.read(length)
        if len(data) < length:  # truncated since its size was read
            return self._torn()
        if file.read(4) != _masked(data):
            return self._fault("fails a checksum at")
        return data

    def _torn(self) -> Trouble:
        left = self._size - self._start
        text = f"ends inside a record: its last {left:,} bytes were left out"
        return Trouble(text=text, torn=True)

    def _fault(self, what: str) -> Trouble:
        left = self._size - self._start
        text = f"{what} byte {self._start:,}: {left:,} bytes from there on were not read"
        return Trouble(text=text, torn=False)


def _masked(data: bytes) -> bytes:
    value = int.from_bytes(crc32c(data), "little")
    return (((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")
