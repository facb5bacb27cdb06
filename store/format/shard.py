"""The file that holds all frames of a segment: encoded chunks, then an index with its checksum.

This is Zarr's ``sharding_indexed`` codec, written in one go and read without zarr-python: 2 to 10
times faster than its writer, 4 ms less to open. `docs/format.md` has the bytes.
"""

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.batch_decode import (
    SLACK_BYTES,
    PackedChunks,
    decode_blocks,
    find_blocks,
    room_bytes,
)
from avtd3.store.format.codec import CRC_BYTES, ChainKind, crc32c, decode, decode_into, unseal

ENTRY_BYTES = 16
"""Offset and length of one chunk, two little-endian uint64."""
_MISSING = 2**64 - 1
_LOT_BYTES = 2**20
"""Chunks that are decoded together: enough that a call costs little, few enough for a cache."""


def build_shard(chunks: Sequence[bytes]) -> bytes:
    """Lay out a shard: the chunks one behind the other, then the index.

    Args:
        chunks: Encoded chunks with their checksums, in order, none missing.
    """
    entries = []
    offset = 0
    for chunk in chunks:
        entries.append(struct.pack("<QQ", offset, len(chunk)))
        offset += len(chunk)
    index = b"".join(entries)
    return b"".join((*chunks, index, crc32c(index)))


def joined_checksums(chunks: Sequence[bytes]) -> bytes:
    """The last four bytes of each chunk, which are its crc32c, one behind the other.

    Each chunk's checksum holds for whatever chunk it is; all of them together, in order, tell the
    shard of one segment from that of another.
    """
    return b"".join(chunk[-CRC_BYTES:] for chunk in chunks)


def index_bytes(chunks: int) -> int:
    """Size of the index of a shard of so many chunks, checksum included."""
    return chunks * ENTRY_BYTES + CRC_BYTES


def parse_index(data: bytes, chunks: int, shard_bytes: int) -> NDArray[np.int64]:
    """Read and check an index.

    Args:
        data: The last `index_bytes` bytes of the shard.
        chunks: How many chunks the shard must hold.
        shard_bytes: Size of the whole shard.

    Returns:
        int64 (chunks, 2): begin and end of each chunk in the file, all within the file.

    Raises:
        ValueError: The checksum differs, a chunk is missing, or one lies outside the file.
    """
    entries = np.frombuffer(unseal(data), dtype="<u8").reshape(chunks, 2)
    if (entries == _MISSING).all(axis=1).any():
        raise ValueError("a chunk is missing from the shard")
    limit = shard_bytes - index_bytes(chunks)
    # Compared one by one before adding: an offset near 2**64 must not wrap into range.
    if (entries > limit).any() or (entries.sum(axis=1) > limit).any():
        raise ValueError("the index points outside the shard")
    spans = entries.astype(np.int64)
    spans[:, 1] += spans[:, 0]
    return spans


def read_index(path: Path, chunks: int) -> NDArray[np.int64]:
    """Read the index of a shard file; see `parse_index`.

    Raises:
        OSError: The file is gone or cannot be read.
        ValueError: The file is not a whole shard of so many chunks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        need = index_bytes(chunks)
        if size < need:
            raise ValueError(f"{size} bytes, expected at least the {need} of the index")
        return parse_index(os.pread(descriptor, need, size - need), chunks, size)
    finally:
        os.close(descriptor)


def read_chunks(
    path: Path,
    spans: NDArray[np.int64],
    kind: ChainKind,
    out: NDArray[np.uint8],
    *,
    chunk_frames: int,
    start: int,
) -> bytes:
    """Decode a run of frames from a shard file straight into place.

    The file is read, not mapped: a mapping of a file that someone truncates kills the process
    (SIGBUS), and reading costs a tenth of the decoding.

    Args:
        path: The shard.
        spans: From `read_index`.
        kind: The chain's decoder.
        out: uint8 (n, C, H, W), C-contiguous.
        chunk_frames: Frames per chunk.
        start: Number of the first frame wanted; ``start + n`` must lie within the chunks.

    Returns:
        The checksums of the chunks that were read, see `joined_checksums`.

    Raises:
        OSError: The file is gone or cannot be read.
        ValueError: A chunk is not whole; the message has its number.
    """
    frame_bytes = out[0].nbytes
    size, low = chunk_frames * frame_bytes, start * frame_bytes
    high = low + out.nbytes
    flat, packed = out.reshape(-1), PackedChunks()
    checksums = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first, last in _lots(low, high, size):
            begin, end = max(first * size, low), min(last * size, high)
            place, chunks = flat[begin - low : end - low], spans[first:last]
            found = b""
            if len(chunks) > 1:
                found = _decode_together(descriptor, chunks, kind, place, packed)
            if not found:
                skip = begin - first * size
                found = _decode_singly(descriptor, chunks, kind, size, skip, place, first)
            checksums.append(found)
    finally:
        os.close(descriptor)
    return b"".join(checksums)


def _lots(low: int, high: int, size: int) -> Iterator[tuple[int, int]]:
    """Chunks that hold bytes ``low:high`` of all: whole ones in lots, the others alone."""
    first, last = -(-low // size), high // size  # of the whole ones
    most = max(1, _LOT_BYTES // size)
    cuts = (low // size, *range(first, last, most), max(first, last), -(-high // size))
    return ((a, b) for a, b in itertools.pairwise(cuts) if a < b)


def _decode_together(
    descriptor: int,
    spans: NDArray[np.int64],
    kind: ChainKind,
    out: NDArray[np.uint8],
    packed: PackedChunks,
) -> bytes:
    """Decode whole chunks with one call; their checksums, or nothing if one is not as it should."""
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
    """Decode chunks one by one, without the first bytes of the first; their checksums.

    Raises:
        ValueError: A chunk is not whole; the message has its number, counted from ``first``.
    """
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
