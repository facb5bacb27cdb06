"""Compress and decompress one chunk of frames, with its checksum.

The last four bytes of a chunk are the crc32c of the others. It is verified before decoding: blosc
may read past the end of a damaged buffer, and a flipped bit in a blosc, zstd or raw chunk decodes
to wrong values without an error in more than half of the cases.
"""

import dataclasses
import struct
from typing import Any, Literal

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError, SpecError, abbreviate

# A chunk has 28 kB: threads in blosc cost more than they save, and its global thread pool does not
# survive a fork.
numcodecs.blosc.use_threads = False

MAX_CHUNK_FRAMES = 64
CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16
ZSTD_HEADER_BYTES = 6
ZSTD_MAGIC = bytes.fromhex("28b52ffd")
ChainKind = Literal["blosc", "zstd", "raw"]

_BYTES_CODEC = {"name": "bytes"}
_CRC_CODEC = {"name": "crc32c"}
# The crc32c of any bytes followed by their crc32c: verifies them in one pass without a copy.
SEALED = 0x48674BC7


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameCodec:
    """How frames are compressed.

    On clean and noisy 84x84 frames (`bench/store_bench.py`), lz4hc 5 decodes 347 000 frames/s and
    encodes 16 300; zstd 1 encodes 50 000 and makes noisy frames a fifth smaller, but decodes
    95 000; raw is for cameras whose frames do not compress.

    Example:
        >>> FrameCodec(name="zstd", level=1).chunk_frames
        4
    """

    name: str = "lz4hc"
    """``lz4hc`` (in blosc, without shuffle), ``zstd`` or ``raw``; ``auto`` selects the first that
    saves a fifth of the bytes of a writer's first frames (`choose_codec`)."""
    level: int = 5
    """1 (fast) to 9 (small); ignored by ``raw``."""
    chunk_frames: int = 4
    """Frames per chunk, the unit of random access; 1 to 64. More compress better; with ``raw``, 1
    lets direct replay read only the frames that it needs."""

    def __post_init__(self) -> None:
        if self.name not in ("lz4hc", "zstd", "raw", "auto"):
            raise ConfigError(
                f"codec.name is {abbreviate(self.name)}, expected lz4hc, zstd, raw or auto"
            )
        for name, most in (("level", 9), ("chunk_frames", MAX_CHUNK_FRAMES)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(
                    f"codec.{name} is {abbreviate(value)}, expected a whole number 1..{most}"
                )

    def chain(self) -> list[dict[str, Any]]:
        """Return the codecs of a chunk, as in ``zarr.json``."""
        assert self.name != "auto", "auto is replaced before the first chunk"
        compressors: list[dict[str, Any]] = []
        if self.name == "zstd":
            settings = {"level": self.level, "checksum": False}
            compressors = [{"name": "zstd", "configuration": settings}]
        elif self.name == "lz4hc":
            compressors = [_blosc(1, "lz4hc", self.level, "noshuffle")]
        return [_BYTES_CODEC, *compressors, _CRC_CODEC]

    def encode(self, frames: NDArray[np.uint8]) -> bytes:
        """Encode one chunk.

        Args:
            frames: uint8 (chunk_frames, C, H, W), contiguous.

        Returns:
            The chunk's bytes, with its crc32c at the end.
        """
        assert self.name != "auto", "auto is replaced before the first chunk"
        if self.name == "raw":
            payload = frames.tobytes()
        elif self.name == "zstd":
            payload = numcodecs.zstd.compress(frames, self.level)
        else:
            shuffle = numcodecs.blosc.NOSHUFFLE
            payload = numcodecs.blosc.compress(frames, b"lz4hc", self.level, shuffle, 0)
        return seal(payload)


_PACK_LEVEL = 3
_MOST_PACKED = numcodecs.blosc.MAX_BUFFERSIZE


def pack_codec(itemsize: int) -> dict[str, Any]:
    """Return the compressor of `pack`, as in ``zarr.json``."""
    return _blosc(itemsize, "zstd", _PACK_LEVEL, "noshuffle" if itemsize == 1 else "bitshuffle")


def _blosc(typesize: int, cname: str, clevel: int, shuffle: str) -> dict[str, Any]:
    settings = {"typesize": typesize, "cname": cname, "clevel": clevel, "shuffle": shuffle}
    return {"name": "blosc", "configuration": {**settings, "blocksize": 0}}


def pack(values: NDArray[Any]) -> bytes:
    """Compress the values of a whole array, for arrays of small differences and for text."""
    if values.nbytes > _MOST_PACKED:
        raise SpecError(
            f"an array has {values.nbytes} bytes, expected at most {_MOST_PACKED}; write smaller "
            "segments"
        )
    shuffle = numcodecs.blosc.NOSHUFFLE if values.itemsize == 1 else numcodecs.blosc.BITSHUFFLE
    packed: bytes = numcodecs.blosc.compress(values, b"zstd", _PACK_LEVEL, shuffle, 0)
    return packed


def crc32c(data: bytes) -> bytes:
    """Return the crc32c of bytes as four bytes, little-endian."""
    return struct.pack("<I", google_crc32c.value(data))


def seal(payload: bytes) -> bytes:
    """Return bytes with their crc32c appended."""
    return payload + crc32c(payload)


def unseal(data: bytes) -> bytes:
    """Verify the crc32c at the end, and return the bytes before it."""
    check_seal(data)
    return data[:-CRC_BYTES]


def check_seal(data: bytes) -> None:
    """Verify the crc32c at the end."""
    if len(data) < CRC_BYTES:
        raise ValueError(f"{len(data)} bytes, expected at least the {CRC_BYTES} of a crc32c")
    if google_crc32c.value(data) != SEALED:
        raise ValueError("crc32c differs: the bytes have changed since they were written")


def chain_kind(codecs: Any) -> ChainKind:  # noqa: ANN401 - any JSON value
    """Return which decoder reads a chunk."""
    is_chain = isinstance(codecs, list) and all(isinstance(codec, dict) for codec in codecs)
    names = [codec.get("name") for codec in codecs] if is_chain else None
    if names == ["bytes", "crc32c"]:
        return "raw"
    if names == ["bytes", "zstd", "crc32c"]:
        return "zstd"
    # Shuffle, level and inner compressor are in each blosc buffer's own header.
    if names == ["bytes", "blosc", "crc32c"]:
        return "blosc"
    raise ValueError(
        f"the codecs of a chunk are {abbreviate(names or codecs, 200)}, format 1 allows bytes, "
        "then blosc, zstd or nothing, then crc32c"
    )


def decode_into(kind: ChainKind, data: bytes, out: memoryview) -> None:
    """Verify one chunk, with its crc32c at the end, and decode it into memory of its size."""
    _check(kind, data, len(out))
    if kind == "raw":
        out[:] = memoryview(data)[:-CRC_BYTES]
    else:
        _decompress(kind, data, out)


def decode(kind: ChainKind, data: bytes, size: int) -> bytes:
    """Verify one chunk and return its ``size`` decoded bytes; see `decode_into`.

    It is faster for a part of a chunk: numcodecs takes 5 us to examine an output buffer, copying a
    part takes 2 us.
    """
    _check(kind, data, size)
    if kind == "raw":
        return data[:-CRC_BYTES]
    decoded = _decompress(kind, data)
    if len(decoded) != size:
        raise ValueError(f"chunk decodes to {len(decoded)} bytes, expected {size}")
    return decoded


def _check(kind: ChainKind, data: bytes, size: int) -> None:
    """Raise if a chunk's crc32c or a length is wrong."""
    check_seal(data)
    if kind == "blosc":
        check_blosc_header(data, len(data) - CRC_BYTES, size)
    elif kind == "zstd":
        # Checked first, because numcodecs does not fill a larger buffer.
        if (claimed := _zstd_content_size(data[:-CRC_BYTES])) != size:
            raise ValueError(f"zstd header claims {claimed} bytes, expected {size}")
    elif len(data) - CRC_BYTES != size:
        raise ValueError(f"chunk has {len(data) - CRC_BYTES} bytes, expected {size}")


def _decompress(kind: ChainKind, data: bytes, out: memoryview | None = None) -> bytes:
    try:
        if kind == "blosc":
            # It reads as many bytes as its verified header says: no need to cut off the crc.
            decoded: bytes = numcodecs.blosc.decompress(data, out)
        else:
            decoded = numcodecs.zstd.decompress(data[:-CRC_BYTES], out)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{kind} cannot decode the chunk: {error}") from error
    return decoded


def _zstd_content_size(payload: bytes) -> int | None:
    """Return the size in a zstd frame's header (RFC 8878, 3.1.1.1), or None without one."""
    if len(payload) < ZSTD_HEADER_BYTES or payload[:4] != ZSTD_MAGIC:
        return None
    descriptor = payload[4]
    is_single, size_flag, dictionary_flag = descriptor >> 5 & 1, descriptor >> 6, descriptor & 3
    begin = 5 + (1 - is_single) + (0, 1, 2, 4)[dictionary_flag]
    length = (is_single, 2, 4, 8)[size_flag]
    if length == 0:
        return None
    value = int.from_bytes(payload[begin : begin + length], "little")
    return value + 256 if length == 2 else value


def check_blosc_header(data: bytes, encoded: int, expected_bytes: int) -> None:
    """Raise if the header of a buffer of ``encoded`` bytes, at the start of data, is wrong."""
    # Blosc trusts its header: with a wrong length it reads or writes past the buffers.
    if encoded < BLOSC_HEADER_BYTES:
        raise ValueError(f"{encoded} bytes, expected at least a blosc header")
    decoded_bytes, _, encoded_bytes = struct.unpack_from("<III", data, 4)
    if decoded_bytes != expected_bytes or encoded_bytes != encoded:
        raise ValueError(
            f"blosc header claims {encoded_bytes} bytes that decode to {decoded_bytes}, "
            f"expected {encoded} and {expected_bytes}"
        )


MEASURED_FRAMES = 256
"""Frames that are kept uncompressed until a codec is chosen: 2 MB of 84x84 grey."""
LEAST_SAVING = 0.2
"""Share of the raw bytes that a codec must save."""
_MOST_CHUNKS = 16


def choose_codec(settings: FrameCodec, frames: NDArray[np.uint8]) -> FrameCodec:
    """Choose the codec for a camera: lz4hc, zstd 1 or raw, the first that saves enough.

    It takes about 10 ms, once per writer. ``frames`` are the first of the camera, uint8
    (N, C, H, W), at least one. Raw frames get a chunk each: larger ones would save nothing.
    """
    size = settings.chunk_frames
    count = max(1, len(frames) // size)
    numbers = np.linspace(0, count - 1, min(count, _MOST_CHUNKS)).astype(int).tolist()
    chunks = [np.ascontiguousarray(frames[n * size : (n + 1) * size]) for n in numbers]
    most = (1.0 - LEAST_SAVING) * sum(chunk.nbytes for chunk in chunks)
    for codec in (
        dataclasses.replace(settings, name="lz4hc"),
        dataclasses.replace(settings, name="zstd", level=1),
    ):
        if sum(len(codec.encode(chunk)) for chunk in chunks) <= most:
            return codec
    return dataclasses.replace(settings, name="raw", chunk_frames=1)
