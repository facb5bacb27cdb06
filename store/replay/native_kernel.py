"""The compiled loop over the chunks of a batch, without the GIL.

Imported only if the extra ``native`` is installed: importing numba takes half a second, compiling
this two more. C functions are passed as arguments; nothing is bound at import.

Chunks that the loop does not support, or finds damaged, are left undone. The caller decodes them
one at a time, and reports errors. So nothing here needs an error message, and no input is trusted:
every length is checked before it is used.
"""

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

CFunction = Callable[..., int]
RAW, ZSTD, BLOSC = 0, 1, 2
_CRC_BYTES = 4
_BLOSC_HEADER_BYTES = 16
_BLOSC_1 = 2
"""Version byte of Blosc-1 buffers."""
_LZ4 = 1
"""Code of LZ4 and LZ4HC in the upper three bits of a Blosc buffer's flags, and the version of its
format, in the byte before."""
_FILTERS = 0x0D
"""Flags of shuffle and bit shuffle, and one reserved flag."""
_COPY = 0x02
"""Flag: the buffer is an uncompressed copy."""
_WHOLE_BLOCKS = 0x10
"""Flag: blocks are not split by byte of the type."""


class Functions(NamedTuple):
    """C functions, and the contexts of one thread."""

    pread: CFunction
    memcpy: CFunction
    crc32c: CFunction
    lz4_decompress: CFunction
    """``LZ4_decompress_safe_partial``: writes no byte after the wanted ones."""
    zstd_content_size: CFunction
    zstd_decompress: CFunction
    zstd_context: int


class Chunks(NamedTuple):
    """What to decode; see `avtd3.store.replay.direct.ChunkPlan`."""

    descriptor: NDArray[np.int32]
    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    kind: NDArray[np.int64]
    decoded: NDArray[np.int64]
    """Size in bytes of each decoded chunk."""
    first: NDArray[np.int64]
    inside: NDArray[np.int64]
    place: NDArray[np.int64]


class Buffers(NamedTuple):
    """Memory of one thread."""

    packed: NDArray[np.uint8]
    """Memory for an encoded chunk."""
    aside: NDArray[np.uint8]
    """Memory for a decoded chunk."""


@numba.njit(nogil=True, inline="always")
def _number(data: NDArray[np.uint8], at: int) -> np.int64:
    """Read four bytes, little-endian."""
    low = np.int64(data[at]) | np.int64(data[at + 1]) << 8
    return low | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24


@numba.njit(nogil=True, cache=True)
def _read(c: Functions, chunks: Chunks, g: int, packed: NDArray[np.uint8]) -> int:
    """Read a chunk and check its crc32c; return its size without the crc32c, or -1."""
    size = chunks.size[g]
    if size > len(packed) or size < _CRC_BYTES:
        return -1
    if c.pread(chunks.descriptor[g], packed.ctypes.data, size, chunks.begin[g]) != size:
        return -1
    payload = size - _CRC_BYTES
    if c.crc32c(packed.ctypes.data, payload) != _number(packed, payload):
        return -1
    return payload


@numba.njit(nogil=True, cache=True)
def _lz4_block(
    c: Functions, packed: NDArray[np.uint8], size: int, at: int, target: int, wanted: int, full: int
) -> bool:
    """Decode the first bytes of the block at offset `at` of a Blosc buffer."""
    if at < _BLOSC_HEADER_BYTES or at + 4 > size:
        return False
    length = _number(packed, at)
    if length < 1 or length > size - at - 4:
        return False
    source = np.int64(packed.ctypes.data) + at + 4
    if length == full:  # an uncompressed block
        c.memcpy(target, source, wanted)
        return True
    return c.lz4_decompress(source, target, length, wanted, wanted) == wanted


@numba.njit(nogil=True, cache=True)
def _lz4_blocks(
    c: Functions, packed: NDArray[np.uint8], size: int, target: int, wanted: int, total: int
) -> bool:
    """Decode only the first `wanted` bytes of a Blosc buffer of LZ4 blocks.

    A window of five frames needs, on average, 6.5 of the 8 frames in its two chunks.
    """
    block = _number(packed, 8)
    if not 1 <= block <= total or (total + block - 1) // block > (size - _BLOSC_HEADER_BYTES) // 4:
        return False
    for number in range((wanted + block - 1) // block):
        done = number * block
        at = _number(packed, _BLOSC_HEADER_BYTES + 4 * number)
        full = min(block, total - done)
        part = min(full, wanted - done)
        if not _lz4_block(c, packed, size, at, target + done, part, full):
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _blosc(
    c: Functions, packed: NDArray[np.uint8], size: int, target: int, wanted: int, total: int
) -> bool:
    """Decode the first bytes of a Blosc-1 buffer, if it is LZ4 or a copy without filters."""
    if size < _BLOSC_HEADER_BYTES or packed[0] != _BLOSC_1:
        return False
    if _number(packed, 4) != total or _number(packed, 12) != size:
        return False
    flags = packed[2]
    if flags & _COPY:
        if size != total + _BLOSC_HEADER_BYTES:
            return False
        c.memcpy(target, np.int64(packed.ctypes.data) + _BLOSC_HEADER_BYTES, wanted)
        return True
    is_whole = packed[3] == 1 or (flags & _WHOLE_BLOCKS != 0 and packed[3] != 0)
    if flags & _FILTERS or flags >> 5 != _LZ4 or packed[1] != _LZ4 or not is_whole:
        return False
    return _lz4_blocks(c, packed, size, target, wanted, total)


@numba.njit(nogil=True, cache=True)
def _zstd(c: Functions, packed: NDArray[np.uint8], size: int, target: int, total: int) -> bool:
    """Decode a whole zstd frame."""
    source = packed.ctypes.data
    if c.zstd_content_size(source, size) != total:
        return False
    return c.zstd_decompress(c.zstd_context, target, total, source, size) == total


@numba.njit(nogil=True, cache=True)
def _decode(
    c: Functions, kind: int, buffers: Buffers, size: int, target: int, wanted: int, total: int
) -> bool:
    """Decode the first `wanted` of a chunk's `total` bytes."""
    packed = buffers.packed
    if kind == BLOSC:
        return _blosc(c, packed, size, target, wanted, total)
    if kind == RAW:
        if size == total:
            c.memcpy(target, packed.ctypes.data, wanted)
        return size == total
    if wanted == total:
        return _zstd(c, packed, size, target, total)
    aside = np.int64(buffers.aside.ctypes.data)
    if not _zstd(c, packed, size, aside, total):
        return False
    if target != aside:
        c.memcpy(target, aside, wanted)
    return True


@numba.njit(nogil=True, cache=True)
def _run_end(chunks: Chunks, start: int, stop: int) -> int:
    """Return the end of the run of frames from `start` that is contiguous in chunk and batch."""
    end = start + 1
    while (
        end < stop
        and chunks.inside[end] == chunks.inside[end - 1] + 1
        and chunks.place[end] == chunks.place[end - 1] + 1
    ):
        end += 1
    return end


@numba.njit(nogil=True, cache=True)
def _put(c: Functions, chunks: Chunks, g: int, buffers: Buffers, frame: int, out: int) -> bool:
    """Read, verify and decode one chunk, and copy its frames into place."""
    size = _read(c, chunks, g, buffers.packed)
    total = chunks.decoded[g]
    if size < 0 or total > len(buffers.aside):
        return False
    start, stop = chunks.first[g], chunks.first[g + 1]
    wanted = (chunks.inside[start:stop].max() + 1) * frame
    kind = chunks.kind[g]
    if chunks.inside[start] == 0 and _run_end(chunks, start, stop) == stop:
        return _decode(c, kind, buffers, size, out + chunks.place[start] * frame, wanted, total)
    aside = np.int64(buffers.aside.ctypes.data)
    if not _decode(c, kind, buffers, size, aside, wanted, total):
        return False
    while start < stop:
        end = _run_end(chunks, start, stop)
        target, source = out + chunks.place[start] * frame, aside + chunks.inside[start] * frame
        c.memcpy(target, source, (end - start) * frame)
        start = end
    return True


@numba.njit(nogil=True, cache=True)
def decode_chunks(
    c: Functions,
    chunks: Chunks,
    buffers: Buffers,
    low: int,
    high: int,
    frame_bytes: int,
    out: NDArray[np.uint8],
    is_done: NDArray[np.bool_],
) -> None:
    """Decode chunks ``low:high`` into the frames `out`, and set `is_done`, bool (G,), for each."""
    base = np.int64(out.ctypes.data)
    for g in range(low, high):
        is_done[g] = _put(c, chunks, g, buffers, frame_bytes, base)
