"""The shard: a file of all frames of a segment, encoded chunks followed by an index.

It is Zarr's ``sharding_indexed`` codec, written and read without zarr-python: writing is 2 to 10
times faster, and opening saves 4 ms. `docs/format.md` specifies the bytes.

Many chunks are read into one buffer and decoded with one call of blosc: a Blosc-1 buffer has a
header, a table of the offsets of its blocks, and the blocks in any order (c-blosc's
README_CHUNK_FORMAT). A chunk with one block therefore becomes a block of a larger buffer with an
entry in that buffer's table, without a copy. One call decodes a thousand small chunks, each to its
place, without holding the interpreter's lock.
"""

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from avtd3.store.files import open_regular
from avtd3.store.format.codec import (
    BLOSC_HEADER_BYTES,
    CRC_BYTES,
    SEALED,
    ChainKind,
    decode,
    decode_into,
    seal,
    unseal,
)

ENTRY_BYTES = 16
"""Offset and length of one chunk, two little-endian uint64."""
_MISSING = 2**64 - 1
_GROUP_BYTES = 2**20
"""Decoded bytes per call: few calls, and small enough for a core's cache."""


def build_shard(chunks: Sequence[bytes]) -> bytes:
    """Return the bytes of a shard: the chunks, then the index."""
    entries = []
    offset = 0
    for chunk in chunks:
        entries.append(struct.pack("<QQ", offset, len(chunk)))
        offset += len(chunk)
    return b"".join((*chunks, seal(b"".join(entries))))


def joined_checksums(chunks: Sequence[bytes]) -> bytes:
    """Return the crc32c of every chunk (its last four bytes), joined.

    A chunk's own checksum says nothing about where the chunk belongs. All of them in order identify
    the shard of a segment.
    """
    return b"".join(chunk[-CRC_BYTES:] for chunk in chunks)


def index_bytes(chunks: int) -> int:
    """Return the size of the index of a shard of this many chunks, with its checksum."""
    return chunks * ENTRY_BYTES + CRC_BYTES


def parse_index(data: bytes, chunks: int, shard_bytes: int) -> NDArray[np.int64]:
    """Check the index of a shard; return begin and end of each chunk in it, int64 (chunks, 2)."""
    entries = np.frombuffer(unseal(data), dtype="<u8").reshape(chunks, 2)
    if (entries == _MISSING).all(axis=1).any():
        raise ValueError("a chunk is missing from the shard")
    limit = shard_bytes - index_bytes(chunks)
    # Compare before adding, because an offset near 2**64 would wrap around.
    if (entries > limit).any() or (entries.sum(axis=1) > limit).any():
        raise ValueError("the index points outside the shard")
    spans = entries.astype(np.int64)
    spans[:, 1] += spans[:, 0]
    return spans


def read_index(path: Path, chunks: int) -> NDArray[np.int64]:
    """Read the index of a shard file; see `parse_index`."""
    need = index_bytes(chunks)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < need:
            raise ValueError(f"{size} bytes, expected at least the {need} of the index")
        return parse_index(os.pread(file.fileno(), need, size - need), chunks, size)


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


def read_chunks(
    path: Path,
    spans: NDArray[np.int64],
    kind: ChainKind,
    out: NDArray[np.uint8],
    *,
    chunk_frames: int,
    start: int,
) -> bytes:
    """Decode frames ``start`` to ``start + n`` of a shard into ``out``, contiguous (n, C, H, W).

    The file is read, not memory-mapped: truncating a mapped file would kill the process (SIGBUS),
    and reading takes a tenth of the time of decoding. Return the `joined_checksums` of the chunks.
    """
    frame_bytes = out[0].nbytes
    size, low = chunk_frames * frame_bytes, start * frame_bytes
    high = low + out.nbytes
    flat, packed = out.reshape(-1), PackedChunks()
    checksums = []
    with open_regular(path) as file:
        for first, last in _groups(low, high, size):
            begin, end = max(first * size, low), min(last * size, high)
            place, chunks = flat[begin - low : end - low], spans[first:last]
            found = b""
            if len(chunks) > 1:
                found = _decode_together(file.fileno(), chunks, kind, place, packed)
            if not found:
                skip = begin - first * size
                found = _decode_singly(file.fileno(), chunks, kind, size, skip, place, first)
            checksums.append(found)
    return b"".join(checksums)


def _groups(low: int, high: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of the chunks of bytes ``low:high``: whole ones in groups, others alone."""
    first, last = -(-low // size), high // size  # whole chunks
    most = max(1, _GROUP_BYTES // size)
    cuts = (low // size, *range(first, last, most), max(first, last), -(-high // size))
    return ((a, b) for a, b in itertools.pairwise(cuts) if a < b)


def _decode_together(
    descriptor: int,
    spans: NDArray[np.int64],
    kind: ChainKind,
    out: NDArray[np.uint8],
    packed: PackedChunks,
) -> bytes:
    """Decode whole chunks with one call; return their checksums, or b"" if that is impossible."""
    begin, size = spans[:, 0], spans[:, 1] - spans[:, 0]
    decoded = len(out) // len(spans)
    if kind == "zstd" or (size > decoded + SLACK_BYTES).any():
        return b""
    files = np.full(len(spans), descriptor, np.int32)
    data, at = packed.read(files, begin, size, room_bytes(len(spans)))
    if not at.all():
        return b""
    ends = at + size
    checksums = data[ends[:, None] + np.arange(-CRC_BYTES, 0)].tobytes()
    starts = find_blocks(kind, data, at, size, decoded)
    if not starts.all():
        return b""
    try:
        decode_blocks(data, starts, decoded, out)
    except ValueError:
        return b""
    return checksums


def _decode_singly(
    descriptor: int,
    spans: NDArray[np.int64],
    kind: ChainKind,
    size: int,
    skip: int,
    out: NDArray[np.uint8],
    first: int,
) -> bytes:
    """Decode chunks one by one, skipping bytes of the first one; return their checksums."""
    checksums, at = [], 0
    for number, (low, high) in enumerate(spans.tolist(), first):
        data = os.pread(descriptor, high - low, low)
        place = out[at : at + size - skip]
        try:
            if len(place) == size:
                decode_into(kind, data, place.data)
            else:
                values = np.frombuffer(decode(kind, data, size), np.uint8)
                place[:] = values[skip : skip + len(place)]
        except ValueError as error:
            raise ValueError(f"chunk {number}: {error}") from error
        checksums.append(data[-CRC_BYTES:])
        at, skip = at + len(place), 0
    return b"".join(checksums)
