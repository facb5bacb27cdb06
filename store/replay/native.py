"""`NativeDecoder`: the optional compiled decoder of direct replay, which releases the GIL.

It needs only wheels, no compiler: numba compiles the loop over the chunks of a batch, libblosc2 (in
the wheel of ``blosc2``) decodes LZ4 and zstd, and google-crc32c computes checksums in hardware. If
one of them is missing, direct replay works without it, at about half the speed.

Importing numba takes half a second, and compiling the loop two more. So the functions in `_KERNEL`
are compiled when a decoder is first opened, and C functions are passed to them as arguments.

Chunks that the loop does not support, or finds damaged, are left undone. The caller decodes them
one at a time, and reports errors. So the loop needs no error messages, and trusts no input: every
length is checked before it is used.
"""

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.codec import BLOSC_HEADER_BYTES, CRC_BYTES
from avtd3.store.format.shard import SLACK_BYTES
from avtd3.store.replay.chunks import ChunkPlan, DecodePool

CFunction = Callable[..., int]
Int: TypeAlias = int | np.int64
_Bytes: TypeAlias = NDArray[np.uint8]

# Signed, like every number in the kernel: numba adds signed and unsigned numbers as floats.
_ADDRESS = _SIZE = ctypes.c_ssize_t
_INT = ctypes.c_int
_LIBC = {
    "pread": (_SIZE, _INT, _ADDRESS, _SIZE, ctypes.c_int64),
    "memcpy": (_ADDRESS, _ADDRESS, _ADDRESS, _SIZE),
}
_CRC32C = {"crc32c_value": (ctypes.c_uint32, _ADDRESS, _SIZE)}
_BLOSC2 = {
    "LZ4_decompress_safe_partial": (_INT, _ADDRESS, _ADDRESS, _INT, _INT, _INT),
    "ZSTD_createDCtx": (_ADDRESS,),
    "ZSTD_freeDCtx": (_SIZE, _ADDRESS),
    "ZSTD_getFrameContentSize": (ctypes.c_int64, _ADDRESS, _SIZE),
    "ZSTD_decompressDCtx": (_SIZE, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _SIZE),
}


def native_problem() -> str:
    """Return why the native decoder is not available; empty if it is."""
    try:
        _functions()
        _compile()
    except (ImportError, OSError, AttributeError) as error:
        return str(error)
    except RuntimeError as error:  # numba has no directory that it may write its cache to
        return f"numba: {error}"
    return ""


def open_decoder(frame_bytes: int, threads: int | None = None) -> "NativeDecoder | None":
    """Return a native decoder, or None if its packages are not installed."""
    return None if native_problem() else NativeDecoder(frame_bytes, threads)


class NativeDecoder:
    """A `ChunkDecoder` that decodes the chunks of a batch in several threads."""

    def __init__(self, frame_bytes: int, threads: int | None = None) -> None:
        self._frame_bytes = frame_bytes
        self._decode_pool = DecodePool(threads)
        self._functions = [_thread_functions() for _ in range(self._decode_pool.threads)]
        self.bind(())

    def bind(self, shards: Sequence[FrameShard]) -> None:
        """Decode chunks of these shards from now on."""
        kinds = [_KINDS[shard.kind] for shard in shards]
        decoded = [shard.chunk_frames * self._frame_bytes for shard in shards]
        self._kinds, self._decoded = np.array(kinds, np.int64), np.array(decoded, np.int64)
        most = max(decoded, default=0)
        self._buffers = [
            _Buffers(packed=np.empty(most + SLACK_BYTES, np.uint8), aside=np.empty(most, np.uint8))
            for _ in self._functions
        ]

    def decode(
        self, plan: ChunkPlan, descriptors: NDArray[np.int32], out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Decode verified chunks into place; see `ChunkDecoder.decode`."""
        chunks = _Chunks(
            descriptor=descriptors,
            begin=plan.begin,
            size=plan.size,
            kind=self._kinds.take(plan.shard),
            decoded=self._decoded.take(plan.shard),
            first=plan.first,
            inside=plan.inside,
            place=plan.place,
        )
        is_done = np.zeros(len(plan.chunk), np.bool_)
        frame_bytes = self._frame_bytes

        def work(thread: int, low: int, high: int) -> None:
            c, buffers = self._functions[thread], self._buffers[thread]
            _decode_chunks(c, chunks, buffers, low, high, frame_bytes, out, is_done)

        self._decode_pool.share(len(plan.chunk), work)
        return np.flatnonzero(~is_done)

    def close(self) -> None:
        """Stop the threads and free the contexts; safe to call twice."""
        self._decode_pool.close()
        for functions in self._functions:
            _functions()["ZSTD_freeDCtx"](functions.zstd_context)
        self._functions = []


def _thread_functions() -> "_Functions":
    """Return the functions of the kernel, with contexts for one more thread."""
    c = _functions()
    context = int(c["ZSTD_createDCtx"]())
    if not context:
        raise MemoryError("zstd cannot allocate a context")
    return _Functions(
        pread=c["pread"],
        memcpy=c["memcpy"],
        crc32c=c["crc32c_value"],
        lz4_decompress=c["LZ4_decompress_safe_partial"],
        zstd_content_size=c["ZSTD_getFrameContentSize"],
        zstd_decompress=c["ZSTD_decompressDCtx"],
        zstd_context=context,
    )


@functools.cache
def _functions() -> dict[str, CFunction]:
    """Return the C functions by name; raise an error if a library or a function is missing."""
    found: dict[str, CFunction] = {}
    # A library also exports the functions of its dependencies: here, libcrc32c.
    crc32c = importlib.import_module("google_crc32c._crc32c").__file__
    for library, signatures in ((None, _LIBC), (crc32c, _CRC32C), (_libblosc2(), _BLOSC2)):
        loaded = ctypes.CDLL(library)
        for name, (result, *arguments) in signatures.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
            found[name] = function
    return found


def _libblosc2() -> str:
    """Return the path of the library, without importing blosc2, which takes half a second."""
    spec = importlib.util.find_spec("blosc2")
    if spec is None or spec.origin is None:
        raise ImportError("blosc2 is not installed")
    directory = Path(spec.origin).parent / "lib"
    found = sorted((*directory.glob("libblosc2.so*"), *directory.glob("libblosc2*.dylib")))
    if not found:
        raise ImportError(f"{directory} has no libblosc2")
    return str(found[0])


_KINDS = {"raw": 0, "zstd": 1, "blosc": 2}
_RAW, _BLOSC = _KINDS["raw"], _KINDS["blosc"]
_BLOSC_VERSION = 2
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


class _Functions(NamedTuple):
    """C functions, and the contexts of one thread."""

    pread: CFunction
    memcpy: CFunction
    crc32c: CFunction
    lz4_decompress: CFunction
    """``LZ4_decompress_safe_partial``: writes no byte after the wanted ones."""
    zstd_content_size: CFunction
    zstd_decompress: CFunction
    zstd_context: int


class _Chunks(NamedTuple):
    """What to decode; see `ChunkPlan`."""

    descriptor: NDArray[np.int32]
    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    kind: NDArray[np.int64]
    decoded: NDArray[np.int64]
    """Size in bytes of each decoded chunk."""
    first: NDArray[np.int64]
    inside: NDArray[np.int64]
    place: NDArray[np.int64]


class _Buffers(NamedTuple):
    """Memory of one thread."""

    packed: _Bytes
    """Memory for an encoded chunk."""
    aside: _Bytes
    """Memory for a decoded chunk."""


def _number(data: _Bytes, at: Int) -> np.int64:
    """Read four bytes, little-endian."""
    low = np.int64(data[at]) | np.int64(data[at + 1]) << 8
    return low | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24


def _read(c: _Functions, chunks: _Chunks, g: int, packed: _Bytes) -> Int:
    """Read a chunk and check its crc32c; return its size without the crc32c, or -1."""
    size = chunks.size[g]
    if size > len(packed) or size < CRC_BYTES:
        return -1
    if c.pread(chunks.descriptor[g], packed.ctypes.data, size, chunks.begin[g]) != size:
        return -1
    payload: Int = size - CRC_BYTES
    if c.crc32c(packed.ctypes.data, payload) != _number(packed, payload):
        return -1
    return payload


def _lz4_block(
    c: _Functions, packed: _Bytes, size: Int, at: Int, target: Int, wanted: Int, full: Int
) -> bool:
    """Decode the first bytes of the block at offset `at` of a Blosc buffer."""
    if at < BLOSC_HEADER_BYTES or at + 4 > size:
        return False
    length = _number(packed, at)
    if length < 1 or length > size - at - 4:
        return False
    source = np.int64(packed.ctypes.data) + at + 4
    if length == full:  # an uncompressed block
        c.memcpy(target, source, wanted)
        return True
    return c.lz4_decompress(source, target, length, wanted, wanted) == wanted


def _lz4_blocks(
    c: _Functions, packed: _Bytes, size: Int, target: Int, wanted: Int, total: Int
) -> bool:
    """Decode only the first `wanted` bytes of a Blosc buffer of LZ4 blocks.

    A window of five frames needs, on average, 6.5 of the 8 frames in its two chunks.
    """
    block = _number(packed, 8)
    if not 1 <= block <= total or (total + block - 1) // block > (size - BLOSC_HEADER_BYTES) // 4:
        return False
    for number in range((wanted + block - 1) // block):
        done = number * block
        at = _number(packed, BLOSC_HEADER_BYTES + 4 * number)
        full = min(block, total - done)
        part = min(full, wanted - done)
        if not _lz4_block(c, packed, size, at, target + done, part, full):
            return False
    return True


def _blosc(c: _Functions, packed: _Bytes, size: Int, target: Int, wanted: Int, total: Int) -> bool:
    """Decode the first bytes of a Blosc-1 buffer, if it is LZ4 or a copy without filters."""
    if size < BLOSC_HEADER_BYTES or packed[0] != _BLOSC_VERSION:
        return False
    if _number(packed, 4) != total or _number(packed, 12) != size:
        return False
    flags = packed[2]
    if flags & _COPY:
        if size != total + BLOSC_HEADER_BYTES:
            return False
        c.memcpy(target, np.int64(packed.ctypes.data) + BLOSC_HEADER_BYTES, wanted)
        return True
    is_whole = packed[3] == 1 or (flags & _WHOLE_BLOCKS != 0 and packed[3] != 0)
    if flags & _FILTERS or flags >> 5 != _LZ4 or packed[1] != _LZ4 or not is_whole:
        return False
    return _lz4_blocks(c, packed, size, target, wanted, total)


def _zstd(c: _Functions, packed: _Bytes, size: Int, target: Int, total: Int) -> bool:
    """Decode a whole zstd frame."""
    source = packed.ctypes.data
    if c.zstd_content_size(source, size) != total:
        return False
    return c.zstd_decompress(c.zstd_context, target, total, source, size) == total


def _decode(
    c: _Functions, kind: int, buffers: _Buffers, size: Int, target: Int, wanted: Int, total: Int
) -> bool:
    """Decode the first `wanted` of a chunk's `total` bytes."""
    packed = buffers.packed
    if kind == _BLOSC:
        return _blosc(c, packed, size, target, wanted, total)
    if kind == _RAW:
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


def _run_end(chunks: _Chunks, start: int, stop: int) -> Int:
    """Return the end of the run of frames from `start` that is contiguous in chunk and batch."""
    end = start + 1
    while (
        end < stop
        and chunks.inside[end] == chunks.inside[end - 1] + 1
        and chunks.place[end] == chunks.place[end - 1] + 1
    ):
        end += 1
    return end


def _put(c: _Functions, chunks: _Chunks, g: int, buffers: _Buffers, frame: int, out: Int) -> bool:
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


def _decode_chunks(
    c: _Functions,
    chunks: _Chunks,
    buffers: _Buffers,
    low: int,
    high: int,
    frame_bytes: int,
    out: _Bytes,
    is_done: NDArray[np.bool_],
) -> None:
    """Decode chunks ``low:high`` into the frames `out`, and set `is_done`, bool (G,), for each."""
    base = np.int64(out.ctypes.data)
    for g in range(low, high):
        is_done[g] = _put(c, chunks, g, buffers, frame_bytes, base)


_KERNEL = (
    _number,
    _read,
    _lz4_block,
    _lz4_blocks,
    _blosc,
    _zstd,
    _decode,
    _run_end,
    _put,
    _decode_chunks,
)


@functools.cache
def _compile() -> None:
    """Replace the functions in `_KERNEL` by compiled ones, which call each other by name."""
    numba = importlib.import_module("numba")
    for function in _KERNEL:
        is_inline = function is _number
        options = {"inline": "always"} if is_inline else {"cache": True}
        globals()[function.__name__] = numba.njit(nogil=True, **options)(function)
