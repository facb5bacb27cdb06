"""What a chunk of a foreign encoding decodes to, found out before zarr-python allocates it.

A kilobyte of gzip may hold a megabyte, and a zstd or blosc header may claim any size: zarr-python
believes both. Here each chunk is held against the size that its grid gives it, in memory bounded by
that size. It costs a second decoding of gzip and zstd, paid only by segments in foreign encodings.
"""

import dataclasses
import gzip
import io
import zlib
from collections.abc import Iterator

import numcodecs.zstd

from avtd3.store.format.codec import CRC_BYTES, check_blosc_header
from avtd3.store.format.metadata import lookup

_COMPRESSORS = ("gzip", "zstd", "blosc")
_CHECKSUM = "crc32c"
_PIECE_BYTES = 64 * 1024
_SLACK_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSizes:
    """The sizes that a chunk of a foreign encoding must have; made by `chunk_sizes`."""

    compressor: str | None
    """``gzip``, ``zstd``, ``blosc`` or None."""
    decoded_bytes: int
    """What the compressor's payload decodes to."""
    trailer_bytes: int
    """Checksums behind the payload."""

    @property
    def max_bytes(self) -> int:
        """Most bytes of the chunk as it is stored; no compressor doubles what it is given."""
        return 2 * self.decoded_bytes + self.trailer_bytes + _SLACK_BYTES

    def check(self, data: bytes) -> None:
        """Refuse a chunk that does not decode to its size.

        Args:
            data: The chunk as it is stored.

        Raises:
            ValueError: It decodes to another size, or not at all.
        """
        if len(data) > self.max_bytes:
            raise ValueError(f"has {len(data)} bytes, expected at most {self.max_bytes}")
        payload = memoryview(data)[: max(0, len(data) - self.trailer_bytes)]
        if self.compressor == "blosc":
            check_blosc_header(data, len(payload), self.decoded_bytes)
            return
        if self.compressor == "zstd":
            _check_zstd(payload, self.decoded_bytes)
            return
        pieces = _gzip_pieces(payload) if self.compressor == "gzip" else iter((len(payload),))
        found = 0
        for size in pieces:
            found += size
            if found > self.decoded_bytes:
                raise ValueError(f"decodes to more than the {self.decoded_bytes} bytes expected")
        if found != self.decoded_bytes:
            raise ValueError(f"decodes to {found} bytes, expected {self.decoded_bytes}")


def chunk_sizes(codecs: object, chunk_bytes: int) -> ChunkSizes:
    """The sizes of a chunk, from the chain of its codecs.

    Args:
        codecs: As in ``zarr.json``: those of an array without shards, or the inner ones of a shard.
        chunk_bytes: Bytes of the chunk's values by the grid.

    Raises:
        ValueError: A codec whose decoded size cannot be told, or more than one compressor.
    """
    names = [lookup(codec, "name") for codec in codecs] if isinstance(codecs, list) else []
    chain = [name for name in names if name != "transpose"]
    compressors = [name for name in chain if name in _COMPRESSORS]
    if chain[:1] != ["bytes"] or len(compressors) > 1:
        raise ValueError(f"codecs {names!r}, expected bytes and at most one compressor")
    if unknown := [name for name in chain[1:] if name not in (*_COMPRESSORS, _CHECKSUM)]:
        raise ValueError(
            f"codec {unknown[0]!r} may decode to any size, expected one of "
            f"{', '.join(_COMPRESSORS)}, {_CHECKSUM}: encode the array again with one of them"
        )
    place = chain.index(compressors[0]) if compressors else 1
    before, behind = chain[1:place].count(_CHECKSUM), chain[place:].count(_CHECKSUM)
    return ChunkSizes(
        compressor=compressors[0] if compressors else None,
        decoded_bytes=chunk_bytes + before * CRC_BYTES,
        trailer_bytes=behind * CRC_BYTES,
    )


def _check_zstd(payload: memoryview, size: int) -> None:
    # Given a buffer, numcodecs allocates nothing, whatever the headers claim, and stops at its end.
    # A frame that fills less of it fails later: zarr-python cannot give it the chunk's shape.
    try:
        numcodecs.zstd.decompress(payload, bytearray(size))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"zstd does not decode to {size} bytes: {error}") from error


def _gzip_pieces(payload: memoryview) -> Iterator[int]:
    """Sizes of what a gzip file of one or more members decodes to, piece by piece."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(payload)) as file:
            while piece := file.read(_PIECE_BYTES):
                yield len(piece)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"gzip cannot decode it: {error}") from error
