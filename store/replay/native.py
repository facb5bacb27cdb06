"""`NativeDecoder`: the optional compiled decoder of direct replay, which releases the GIL.

It needs only wheels, no compiler: numba compiles the loop, libblosc2 (in the wheel of ``blosc2``)
decodes LZ4 and zstd, and google-crc32c computes checksums in hardware. If one of them is missing,
direct replay works without it, at about half the speed.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.batch_decode import SLACK_BYTES
from avtd3.store.replay.direct import ChunkPlan, DecodePool

if TYPE_CHECKING:
    from avtd3.store.replay.native_kernel import Functions

_KINDS = {"raw": 0, "zstd": 1, "blosc": 2}
"""Number of each kind of codec chain in the kernel."""

# Signed, like every number in the kernel: numba adds signed and unsigned numbers as floats.
_ADDRESS = ctypes.c_ssize_t
_SIZE = ctypes.c_ssize_t
_LIBC = {
    "pread": (_SIZE, ctypes.c_int, _ADDRESS, _SIZE, ctypes.c_int64),
    "memcpy": (_ADDRESS, _ADDRESS, _ADDRESS, _SIZE),
}
_CRC32C = {"crc32c_value": (ctypes.c_uint32, _ADDRESS, _SIZE)}
_BLOSC2 = {
    "LZ4_decompress_safe_partial": (
        ctypes.c_int,
        _ADDRESS,
        _ADDRESS,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
    ),
    "ZSTD_createDCtx": (_ADDRESS,),
    "ZSTD_freeDCtx": (_SIZE, _ADDRESS),
    "ZSTD_getFrameContentSize": (ctypes.c_int64, _ADDRESS, _SIZE),
    "ZSTD_decompressDCtx": (_SIZE, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _SIZE),
}


def native_problem() -> str:
    """Return why the native decoder is not available; empty if it is."""
    try:
        _functions()
        _kernel()
    except (ImportError, OSError, AttributeError) as error:
        return str(error)
    return ""


def open_decoder(frame_bytes: int, threads: int | None = None) -> "NativeDecoder | None":
    """Return a native decoder, or None if its packages are not installed."""
    return None if native_problem() else NativeDecoder(frame_bytes, threads)


class NativeDecoder:
    """A `ChunkDecoder` that decodes the chunks of a batch in several threads."""

    def __init__(self, frame_bytes: int, threads: int | None = None) -> None:
        self._frame_bytes = frame_bytes
        self._decode_pool = DecodePool(threads)
        self._kernel = _kernel()
        self._functions = [_thread_functions() for _ in range(self._decode_pool.threads)]
        self.bind(())

    def bind(self, shards: Sequence[FrameShard]) -> None:
        """Decode chunks of these shards from now on."""
        kinds = [_KINDS[shard.kind] for shard in shards]
        decoded = [shard.chunk_frames * self._frame_bytes for shard in shards]
        self._kinds, self._decoded = np.array(kinds, np.int64), np.array(decoded, np.int64)
        most = max(decoded, default=0)
        self._buffers = [
            self._kernel.Buffers(
                packed=np.empty(most + SLACK_BYTES, np.uint8), aside=np.empty(most, np.uint8)
            )
            for _ in self._functions
        ]

    def decode(
        self, plan: ChunkPlan, descriptors: NDArray[np.int32], out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Decode verified chunks into place; see `ChunkDecoder.decode`."""
        chunks = self._kernel.Chunks(
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

        def work(thread: int, low: int, high: int) -> None:
            self._kernel.decode_chunks(
                self._functions[thread],
                chunks,
                self._buffers[thread],
                low,
                high,
                self._frame_bytes,
                out,
                is_done,
            )

        self._decode_pool.share(len(plan.chunk), work)
        return np.flatnonzero(~is_done)

    def close(self) -> None:
        """Stop the threads and free the contexts; safe to call twice."""
        self._decode_pool.close()
        for functions in self._functions:
            _functions()["ZSTD_freeDCtx"](functions.zstd_context)
        self._functions = []


def _thread_functions() -> "Functions":
    """Return the functions of the kernel, with contexts for one more thread."""
    c = _functions()
    context = int(c["ZSTD_createDCtx"]())
    if not context:
        raise MemoryError("zstd cannot allocate a context")
    functions: Functions = _kernel().Functions(
        pread=c["pread"],
        memcpy=c["memcpy"],
        crc32c=c["crc32c_value"],
        lz4_decompress=c["LZ4_decompress_safe_partial"],
        zstd_content_size=c["ZSTD_getFrameContentSize"],
        zstd_decompress=c["ZSTD_decompressDCtx"],
        zstd_context=context,
    )
    return functions


@functools.cache
def _functions() -> dict[str, Callable[..., int]]:
    """Return the C functions by name; raise an error if a library or a function is missing."""
    found: dict[str, Callable[..., int]] = {}
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


@functools.cache
def _kernel() -> Any:  # noqa: ANN401 - mypy knows this module by another name
    return importlib.import_module("avtd3.store.replay.native_kernel")
