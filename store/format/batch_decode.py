"""Read many chunks into one buffer and decode them with one call of blosc.

A Blosc-1 buffer has a header, a table of the offsets of its blocks, and the blocks in any order
(c-blosc's README_CHUNK_FORMAT). A chunk with one block therefore becomes a block of a larger buffer
with an entry in that buffer's table, without a copy. One call decodes a thousand small chunks, each
to its place, without holding the interpreter's lock.
"""

import os
import struct

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.codec import BLOSC_HEADER_BYTES, CRC_BYTES, SEALED, ChainKind

SLACK_BYTES = 4096
"""Bytes by which an encoded chunk may exceed its decoded size to be decoded with others."""

_ENTRY_BYTES = 4
"""Size of a block's entry in the table."""
_LENGTH_BYTES = 4
"""Size of the length before a block's LZ4 bytes."""
_HEAD_BYTES = BLOSC_HEADER_BYTES + _ENTRY_BYTES + _LENGTH_BYTES
"""Bytes before the LZ4 bytes in a buffer of one block."""
_LZ4 = bytes((2, 1, 0x20, 1))
"""First bytes of a buffer: Blosc-1, format 1 of LZ4, LZ4 without filters, single bytes."""


def extents(
    file: NDArray[np.integer], begin: NDArray[np.int64], size: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ranges of files that consecutive chunks occupy without gaps.

    ``file`` has the number of each of G chunks' file, not negative, ``begin`` its offset there, and
    ``size`` its bytes. The results have the first chunk and the bytes of each range.
    """
    is_new = np.diff(file, prepend=-1) != 0
    is_new[1:] |= begin[1:] != begin[:-1] + size[:-1]
    leads = np.flatnonzero(is_new)
    bounds = np.append(0, size.cumsum())
    return leads, np.diff(bounds.take(np.append(leads, len(size))))


def room_bytes(blocks: int) -> int:
    """Return the bytes that the table of this many blocks needs before the first chunk."""
    return BLOSC_HEADER_BYTES + _ENTRY_BYTES * blocks + _LENGTH_BYTES


class PackedChunks:
    """Reads chunks side by side into memory that it reuses."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def read(
        self,
        files: NDArray[np.int32],
        offset: NDArray[np.int64],
        size: NDArray[np.int64],
        room: int,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read G chunks of open files behind ``room`` free bytes, and verify their crc32c.

        Returns:
            uint8 (bytes,): the free bytes and the chunks, valid until the next call. int64 (G,):
            offset of each chunk there, 0 for one that could not be read or is damaged.
        """
        ends = room + size.cumsum()
        begins, total = ends - size, room + int(size.sum())
        if len(self._memory) < total:
            self._memory = np.empty(total + total // 4, np.uint8)
        packed = self._memory[:total]
        leads, lengths = extents(files, offset, size)
        lows, view = begins.take(leads), packed.data
        for file, at, low, high in zip(
            files.take(leads).tolist(),
            offset.take(leads).tolist(),
            lows.tolist(),
            (lows + lengths).tolist(),
            strict=True,
        ):
            try:
                done = os.preadv(file, [view[low:high]], at)
            except OSError:
                done = 0
            packed[low + done : high] = 0  # no bytes of an earlier batch
        fixed = packed.view()
        fixed.flags.writeable = False  # google_crc32c needs read-only memory
        value = google_crc32c.value
        is_valid = [
            value(fixed[low:high]) == SEALED
            for low, high in zip(begins.tolist(), ends.tolist(), strict=True)
        ]
        return packed, np.where(is_valid, begins, 0)


def find_blocks(
    kind: ChainKind,
    packed: NDArray[np.uint8],
    begin: NDArray[np.int64],
    size: NDArray[np.int64],
    decoded: int,
) -> NDArray[np.int64]:
    """Return where the block of each chunk of `PackedChunks.read` begins, int64 (G,).

    It is 0 for a chunk that does not have exactly one block of ``decoded`` bytes, or that begins
    at 0.
    """
    if kind == "blosc":
        return _lz4_blocks(packed, begin, size - CRC_BYTES, decoded)
    if kind == "raw":
        return _raw_blocks(packed, begin, size - CRC_BYTES, decoded)
    return np.zeros(len(begin), np.int64)


def _lz4_blocks(
    packed: NDArray[np.uint8], begin: NDArray[np.int64], size: NDArray[np.int64], decoded: int
) -> NDArray[np.int64]:
    at = np.where(size > _HEAD_BYTES, begin, 0)
    head = packed[at[:, None] + np.arange(_HEAD_BYTES)].view("<i4")
    table = BLOSC_HEADER_BYTES + _ENTRY_BYTES
    wanted = np.empty(head.shape, "<i4")
    # Decoded bytes, decoded bytes per block, encoded bytes; offset of the block, its LZ4 bytes.
    wanted[:] = (int.from_bytes(_LZ4, "little"), decoded, decoded, 0, table, 0)
    wanted[:, 3], wanted[:, 5] = size, size - _HEAD_BYTES
    is_good = (at > 0) & (head == wanted).all(axis=1)
    starts: NDArray[np.int64] = np.where(is_good, at + table, 0)
    return starts


def _raw_blocks(
    packed: NDArray[np.uint8], begin: NDArray[np.int64], size: NDArray[np.int64], decoded: int
) -> NDArray[np.int64]:
    """Prepare raw chunks: blosc copies a block of the decoded size, with its length before it.

    The length overwrites the crc32c of the chunk before, which has been verified.
    """
    is_good = (begin > 0) & (size == decoded)
    starts = np.where(is_good, begin - _LENGTH_BYTES, 0)
    length = np.frombuffer(struct.pack("<I", decoded), np.uint8)
    packed[starts[is_good][:, None] + np.arange(_LENGTH_BYTES)] = length
    return starts


def decode_blocks(
    packed: NDArray[np.uint8], starts: NDArray[np.int64], decoded: int, out: NDArray[np.uint8]
) -> None:
    """Decode the blocks at ``starts``, G >= 1 and none 0, into ``out`` of G * ``decoded`` bytes.

    The first `room_bytes` of ``packed`` are overwritten. Both are below 2 GiB and contiguous.
    """
    head = _LZ4 + struct.pack("<III", len(starts) * decoded, decoded, len(packed))
    head += starts.astype("<i4").tobytes()
    packed[: len(head)] = np.frombuffer(head, np.uint8)
    try:
        numcodecs.blosc.decompress(packed, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
