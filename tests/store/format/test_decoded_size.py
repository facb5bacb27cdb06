"""Decompression bombs: refused in memory bounded by the chunk's true size."""

import gzip
import struct
import tracemalloc

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import pytest

from avtd3.store.errors import SegmentCorruptError
from avtd3.store.format.decoded_size import chunk_sizes
from avtd3.tests.store.test_segment import (  # noqa: F401 - two of them are fixtures
    dataset,
    edit_json,
    only,
    pristine,
    rebuild_manifest,
    rewrite_with_zarr,
)

SIZE = 120
GOOD = bytes(range(SIZE))


def zstd_of_one_byte(size, claim=None):
    """A zstd frame of run-length blocks, which a kilobyte of makes 32 MB (RFC 8878, 3.1.1)."""
    header = b"\x00\x58" if claim is None else b"\xe0" + struct.pack("<Q", claim)
    blocks = []
    while size:
        run = min(size, 128 * 1024)
        size -= run
        blocks.append(struct.pack("<I", run << 3 | 1 << 1 | (size == 0))[:3] + b"\7")
    return bytes.fromhex("28b52ffd") + header + b"".join(blocks)


def blosc_that_claims(size):
    data = bytearray(numcodecs.blosc.compress(GOOD, b"lz4", 5, 0, 0))
    struct.pack_into("<I", data, 4, size)
    return bytes(data)


MEGABYTES = gzip.compress(bytes(16 << 20), 9)
BOMBS = {
    "gzip": ("gzip", MEGABYTES),
    "gzip of several members": ("gzip", gzip.compress(GOOD[:60]) + MEGABYTES * 3),
    "zstd that claims it": ("zstd", zstd_of_one_byte(1 << 30, claim=1 << 30)),
    "zstd that claims what it has not": ("zstd", zstd_of_one_byte(SIZE, claim=10**12)),
    "zstd that claims nothing": ("zstd", zstd_of_one_byte(1 << 30)),
    "zstd of several frames": ("zstd", numcodecs.zstd.compress(GOOD) + zstd_of_one_byte(1 << 30)),
    "blosc": ("blosc", blosc_that_claims(2_000_000_000)),
    "long": ("gzip", gzip.compress(GOOD) + bytes(1 << 20)),
}
CHAINS = {name: [{"name": "bytes"}, {"name": name}] for name in ("gzip", "zstd", "blosc")}


@pytest.fixture
def no_zarr(monkeypatch):
    """zarr-python must not be asked to decode a bomb."""

    def asked(*_args, **_options):
        raise AssertionError("zarr-python was asked")

    monkeypatch.setattr("zarr.open_array", asked)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_without_its_memory(kind):
    compressor, data = BOMBS[kind]
    sizes = chunk_sizes(CHAINS[compressor], SIZE)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="bytes"):
            sizes.check(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_in_a_segment_is_one_error_that_names_the_file(dataset, no_zarr, kind):  # noqa: F811
    compressor, data = BOMBS[kind]
    path = only(dataset).path
    file = path / "frames" / "c" / "0" / "0" / "0" / "0"
    file.write_bytes(data)
    edit_json(
        path / "frames" / "zarr.json",
        lambda document: document.update(
            codecs=CHAINS[compressor],
            chunk_grid={"name": "regular", "configuration": {"chunk_shape": [21, 1, 6, 5]}},
        ),
    )
    rebuild_manifest(path)  # by the one who planted it
    with pytest.raises(SegmentCorruptError, match=r"frames/c/0/0/0/0: .*bytes"):
        only(dataset).read_frames()


@pytest.mark.parametrize("place", [0, 3])
def test_a_bomb_in_a_shard_is_found(dataset, no_zarr, place):  # noqa: F811
    """Also in the place of a chunk that lies wholly behind the array's end."""
    from zarr.codecs import GzipCodec

    from avtd3.store.format.shard import build_shard

    segment = only(dataset)
    settings = {"chunks": (8, 1, 6, 5), "shards": (32, 1, 6, 5)}
    frames = segment.read_frames()
    rewrite_with_zarr(segment, "frames", **settings, compressors=[GzipCodec()])
    rows = np.zeros((32, 1, 6, 5), np.uint8)
    rows[:21] = frames
    chunks = [gzip.compress(rows[n : n + 8].tobytes()) for n in range(0, 32, 8)]
    file = segment.path / "frames" / "c" / "0" / "0" / "0" / "0"
    file.write_bytes(build_shard([*chunks[:place], MEGABYTES, *chunks[place + 1 :]]))
    rebuild_manifest(segment.path)
    with pytest.raises(SegmentCorruptError, match="more than the 240 bytes"):
        only(dataset).read_frames()


@pytest.mark.parametrize(
    ("chain", "data"),
    [
        (["bytes"], GOOD),
        (["bytes", "crc32c"], GOOD + bytes(4)),
        (["transpose", "bytes", "gzip"], gzip.compress(GOOD)),
        (["bytes", "gzip"], gzip.compress(GOOD[:50]) + gzip.compress(GOOD[50:])),
        (["bytes", "gzip", "crc32c"], gzip.compress(GOOD) + bytes(4)),
        (["bytes", "crc32c", "gzip", "crc32c"], gzip.compress(GOOD + bytes(4)) + bytes(4)),
        (["bytes", "zstd"], numcodecs.zstd.compress(GOOD)),
        (["bytes", "zstd"], zstd_of_one_byte(SIZE)),
        (["bytes", "blosc", "crc32c"], numcodecs.blosc.compress(GOOD, b"zstd", 5, 1) + bytes(4)),
    ],
)
def test_a_chunk_of_the_right_size_passes(chain, data):
    sizes = chunk_sizes([{"name": name} for name in chain], SIZE)
    sizes.check(data)
    with pytest.raises(ValueError, match="bytes"):
        chunk_sizes([{"name": name} for name in chain], SIZE - 1).check(data)


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "blosc", "crc32c"])
@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", bytes(40), MEGABYTES[:-9]])
def test_what_is_no_chunk_is_a_value_error(compressor, data):
    with pytest.raises(ValueError, match=r"\d|gzip|zstd"):
        chunk_sizes([{"name": "bytes"}, {"name": compressor}], SIZE).check(data)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["bytes", "numcodecs.lzma"], "'numcodecs.lzma' may decode to any size.*encode"),
        (["bytes", "sharding_indexed"], "'sharding_indexed' may decode"),
        (["bytes", "gzip", "gzip"], "at most one compressor"),
        (["gzip"], "expected bytes"),
        ([], "expected bytes"),
        (None, "expected bytes"),
    ],
)
def test_a_chain_whose_size_cannot_be_told_is_refused(chain, message):
    codecs = chain and [{"name": name} for name in chain]
    with pytest.raises(ValueError, match=message):
        chunk_sizes(codecs, SIZE)
