"""The shard: a file of all frames of a segment, encoded chunks followed by an index.

It is Zarr's ``sharding_indexed`` codec, written and read without zarr-python: writing is 2 to 10
times faster, and opening saves 4 ms. `docs/format.md` specifies the bytes.
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
_GROUP_BYTES = 2**20
"""Decoded bytes per call: few calls, and small enough for a core's cache."""


def build_shard(chunks: Sequence[bytes]) -> bytes:
    """Return the bytes of a shard: the chunks, then the index."""
    entries = []
    offset = 0
    for chunk in chunks:
        entries.append(struct.pack("<QQ", offset, len(chunk)))
        offset += len(chunk)
    index = b"".join(entries)
    return b"".join((*chunks, index, crc32c(index)))


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
    """Check an index, the last `index_bytes` bytes of a shard of ``shard_bytes``.

    Returns:
        int64 (chunks, 2): begin and end of each chunk, all within the file.
    """
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
    """Decode frames ``start`` to ``start + n`` of a shard into ``out``, contiguous (n, C, H, W).

    The file is read, not memory-mapped: truncating a mapped file would kill the process (SIGBUS),
    and reading takes a tenth of the time of decoding.

    Returns:
        The checksums of the chunks that were read, see `joined_checksums`.
    """
    frame_bytes = out[0].nbytes
    size, low = chunk_frames * frame_bytes, start * frame_bytes
    high = low + out.nbytes
    flat, packed = out.reshape(-1), PackedChunks()
    checksums = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first, last in _groups(low, high, size):
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
