"""The records of an event file: their framing, their checksums, and how a file may be broken.

TensorBoard's own reader computes each checksum byte by byte in Python and takes a length at its
word; event files come from strangers, so here a length is held against the file first. A record is
uint64 length, its checksum, the data, their checksum, little-endian; a checksum is a masked crc32c
(tensorflow/core/lib/io/record_writer.h).
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from avtd3.store.format.codec import crc32c

MAX_RECORD_BYTES = 64 << 20
"""Records above this are passed over: those of scalars take a few kilobytes."""
_HEAD = struct.Struct("<Q4s")
_FRAME = _HEAD.size + 4
"""Bytes that a record's length and checksums take."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a file could not be read to its end."""

    text: str
    """In words, after the file's name."""
    torn: bool
    """Whether it only ends early, as that of a run that is writing or was killed."""


class Records:
    """Iterates over the records of a file up to its end or to the first that is broken."""

    def __init__(self, path: Path) -> None:
        """Take a file; it is opened by iterating."""
        self.trouble: Trouble | None = None
        self.passed_over = 0
        """Records that are too large."""
        self._path = path
        self._start, self._size = 0, 0

    def __iter__(self) -> Iterator[bytes]:
        """The data of each record, checked."""
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
        """Say that the record at hand is no event: the iteration ends behind it."""
        self.trouble = self._fault("holds no event at")

    def _next(self, file: BinaryIO) -> bytes | Trouble | None:
        """The data of the next record; None if it is too large."""
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return self._torn()
        length, checksum = _HEAD.unpack(head)
        if _masked(head[:8]) != checksum:
            return self._fault("fails a checksum at")
        if self._start + _FRAME + length > self._size:
            return self._torn()
        if length > MAX_RECORD_BYTES:
            self.passed_over += 1
            self._start += _FRAME + length
            file.seek(self._start)
            return None
        data = file.read(length)
        if len(data) < length:  # cut while it was read
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
