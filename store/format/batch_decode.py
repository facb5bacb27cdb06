"""Many chunks read side by side and decoded by one call: to blosc they are blocks of one buffer.

A Blosc-1 buffer is a header, a table of where its blocks begin, and the blocks in any order
(c-blosc's README_CHUNK_FORMAT). So a chunk of one block becomes a block of a larger buffer by an
entry in that buffer's table; nothing is copied. A thousand small chunks take one call in place of
as many, which decodes each straight into place, and the interpreter's lock is free all the while.
"""

import os
import struct

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.codec import BLOSC_HEADER_BYTES, CRC_BYTES, SEALED, ChainKind

SLACK_BYTES = 4096
"""By how much an encoded chunk may be larger than a decoded one to be decoded with others."""

_ENTRY_BYTES = 4
"""Of a block in the table."""
_LENGTH_BYTES = 4
"""Of a block, before its LZ4 bytes."""
_HEAD_BYTES = BLOSC_HEADER_BYTES + _ENTRY_BYTES + _LENGTH_BYTES
"""Of a buffer of one block, what comes before its LZ4 bytes."""
_LZ4 = bytes((2, 1, 0x20, 1))
"""How a buffer begins: Blosc-1, the first format of LZ4, LZ4 without filters, single bytes."""


def extents(
    file: NDArray[np.integer], begin: NDArray[np.int64], size: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stretches of files that chunks fill, one chunk right behind the other.

    Args:
        file: int (G,), a number for the file of each chunk, not negative.
        begin: int64 (G,), offset of each chunk in its file.
        size: int64 (G,), its bytes.

    Returns:
        int64 (stretches,): the first chunk of each, and its bytes.
    """
    is_new = np.diff(file, prepend=-1) != 0
    is_new[1:] |= begin[1:] != begin[:-1] + size[:-1]
    leads = np.flatnonzero(is_new)
    bounds = np.append(0, size.cumsum())
    return leads, np.diff(bounds.take(np.append(leads, len(size))))


def room_bytes(blocks: int) -> int:
    """Bytes that must be free before the first chunk, for a table of so many blocks."""
    return BLOSC_HEADER_BYTES + _ENTRY_BYTES * blocks + _LENGTH_BYTES


class PackedChunks:
    """Chunks as they are in their files, side by side in memory that is used again."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def read(
        self,
        files: NDArray[np.int32],
        offset: NDArray[np.int64],
        size: NDArray[np.int64],
        room: int,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read chunks and check their crc32c.

        Args:
            files: int32 (G,), the open file of each.
            offset: int64 (G,), where it begins there.
            size: int64 (G,), its bytes, crc32c included.
            room: Bytes to be left free before the first, at least `room_bytes`.

        Returns:
            uint8 (bytes,): room and chunks, until the next call. int64 (G,): where each begins
            there, 0 for one that could not be read or is not as it was written.
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
            packed[low + done : high] = 0  # nothing of an earlier batch
        fixed = packed.view()
        fixed.flags.writeable = False  # google_crc32c takes nothing that may change
        value = google_crc32c.value
        is_sound = [
            value(fixed[low:high]) == SEALED
            for low, high in zip(begins.tolist(), ends.tolist(), strict=True)
        ]
        return packed, np.where(is_sound, begins, 0)


def find_blocks(
    kind: ChainKind,
    packed: NDArray[np.uint8],
    begin: NDArray[np.int64],
    size: NDArray[np.int64],
    decoded: int,
) -> NDArray[np.int64]:
    """Where the one block of each chunk begins.

    Args:
        kind: How they are encoded.
        packed: uint8 (bytes,), from `PackedChunks.read`.
        begin: int64 (G,), where each chunk begins in it, 0 for one to be left out.
        size: int64 (G,), its bytes, crc32c included.
        decoded: Bytes that it must decode to.

    Returns:
        int64 (G,), 0 for a chunk that is none of one block, or lies about a length.
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
    # Decoded bytes, of them in a block, all bytes; where the block begins, and its LZ4 bytes.
    wanted[:] = (int.from_bytes(_LZ4, "little"), decoded, decoded, 0, table, 0)
    wanted[:, 3], wanted[:, 5] = size, size - _HEAD_BYTES
    is_good = (at > 0) & (head == wanted).all(axis=1)
    starts: NDArray[np.int64] = np.where(is_good, at + table, 0)
    return starts


def _raw_blocks(
    packed: NDArray[np.uint8], begin: NDArray[np.int64], size: NDArray[np.int64], decoded: int
) -> NDArray[np.int64]:
    """Blosc copies a block as long as what it decodes to; it wants the length before it.

    There it is written over the crc32c of the chunk before, which has been checked.
    """
    is_good = (begin > 0) & (size == decoded)
    starts = np.where(is_good, begin - _LENGTH_BYTES, 0)
    length = np.frombuffer(struct.pack("<I", decoded), np.uint8)
    packed[starts[is_good][:, None] + np.arange(_LENGTH_BYTES)] = length
    return starts


def decode_blocks(
    packed: NDArray[np.uint8], starts: NDArray[np.int64], decoded: int, out: NDArray[np.uint8]
) -> None:
    """Decode blocks, one behind the other.

    Args:
        packed: uint8 (bytes,), contiguous; its first `room_bytes` are written over. Less than
            2 GiB, as `out`.
        starts: int64 (G,), where the blocks begin, none of them 0; G at least 1.
        decoded: Bytes of each.
        out: uint8, contiguous, G * decoded bytes.

    Raises:
        ValueError: A block does not decode; which one is not said.
    """
    head = _LZ4 + struct.pack("<III", len(starts) * decoded, decoded, len(packed))
    head += starts.astype("<i4").tobytes()
    packed[: len(head)] = np.frombuffer(head, np.uint8)
    try:
        numcodecs.blosc.decompress(packed, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
