import struct
from unittest import mock

import google_crc32c
import numcodecs.blosc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.errors import ConfigError
from avtd3.store.format import shard
from avtd3.store.format.codec import FrameCodec, chain_kind, crc32c, decode_into, seal, unseal
from avtd3.store.format.shard import ENTRY_BYTES, build_shard, parse_index, read_chunks, read_index

CODECS = [FrameCodec(), FrameCodec(name="zstd", level=1), FrameCodec(name="raw", chunk_frames=3)]


def kind_of(codec):
    return chain_kind(codec.chain())


def frames_of(codec, chunks=1, seed=0, side=8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (codec.chunk_frames * chunks, 1, side, side), dtype=np.uint8)


def write_shard(path, codec, frames):
    size = codec.chunk_frames
    chunks = [codec.encode(frames[n : n + size]) for n in range(0, len(frames), size)]
    path.write_bytes(build_shard(chunks))
    return len(chunks)


def test_crc32c_is_the_castagnoli_one():
    assert crc32c(b"123456789") == bytes.fromhex("839206e3")  # check value 0xe3069283


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip(codec):
    frames = frames_of(codec)
    out = bytearray(frames.nbytes)
    decode_into(kind_of(codec), codec.encode(frames), memoryview(out))
    assert out == frames.tobytes()


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_a_flipped_bit_is_always_found(codec, data):
    encoded = bytearray(codec.encode(frames_of(codec)))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="crc32c"):
        decode_into(kind_of(codec), bytes(encoded), memoryview(bytearray(256)))


@pytest.mark.parametrize("codec", CODECS)
@given(cut=st.integers(0, 60))
def test_a_truncated_chunk_is_an_error(codec, cut):
    encoded = codec.encode(frames_of(codec))
    with pytest.raises(ValueError, match="crc32c"):
        decode_into(kind_of(codec), encoded[:cut], memoryview(bytearray(256)))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("expected", [0, 1, 63, 257, 100_000])
def test_a_chunk_of_another_size_is_an_error(codec, expected):
    encoded = codec.encode(frames_of(codec))
    with pytest.raises(ValueError, match=r"expected|decode"):
        decode_into(kind_of(codec), encoded, memoryview(bytearray(expected)))


@given(header=st.binary(min_size=0, max_size=64))
def test_lying_blosc_headers_never_reach_blosc(header):
    with pytest.raises(ValueError, match="blosc"):
        decode_into("blosc", seal(header), memoryview(bytearray(77)))


def test_a_blosc_buffer_cut_behind_a_right_checksum_is_an_error():
    whole = numcodecs.blosc.compress(bytes(1000), b"lz4hc", 5, 0)
    with pytest.raises(ValueError, match="blosc header"):
        decode_into("blosc", seal(whole[:-1]), memoryview(bytearray(1000)))


def test_garbage_behind_a_right_blosc_header_is_an_error():
    head = struct.pack("<BBBBIII", 2, 1, 0x21, 1, 1000, 1000, 216)
    with pytest.raises(ValueError, match="blosc"):
        decode_into("blosc", seal(head + b"\xff" * 200), memoryview(bytearray(1000)))


def test_garbage_for_zstd_is_an_error():
    with pytest.raises(ValueError, match="zstd"):
        decode_into("zstd", seal(b"garbage" * 9), memoryview(bytearray(1000)))


def test_threads_inside_blosc_stay_off():
    assert numcodecs.blosc.use_threads is False


@pytest.mark.parametrize(
    ("codecs", "kind"),
    [
        (FrameCodec().chain(), "blosc"),
        (FrameCodec(name="zstd").chain(), "zstd"),
        (FrameCodec(name="raw").chain(), "raw"),
    ],
)
def test_chain_kinds(codecs, kind):
    assert chain_kind(codecs) == kind


@pytest.mark.parametrize(
    "codecs",
    [
        FrameCodec().chain()[:-1],  # without a checksum
        [{"name": "bytes"}, {"name": "gzip"}, {"name": "crc32c"}],
        [{"name": "transpose"}, *FrameCodec().chain()],
        ["bytes", "crc32c"],
        None,
    ],
)
def test_chains_that_format_1_does_not_have_are_refused(codecs):
    with pytest.raises(ValueError, match="format 1 allows bytes, then blosc, zstd or nothing"):
        chain_kind(codecs)


@pytest.mark.parametrize(
    "setting",
    [{"name": "lz5"}, {"level": 0}, {"level": 10}, {"chunk_frames": 0}, {"chunk_frames": True}],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        FrameCodec(**setting)


def test_shard_bytes():
    data = build_shard([b"aaa", b"bb"])
    index = struct.pack("<QQQQ", 0, 3, 3, 2)
    assert data == b"aaabb" + index + struct.pack("<I", google_crc32c.value(index))


LOTS = st.sampled_from([1, 600, 2**20])


@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None)  # a loaded machine may take long
@given(start=st.integers(0, 28), count=st.integers(1, 28), lot=LOTS)
def test_any_run_of_frames_can_be_read(codec, tmp_path_factory, start, count, lot):
    frames = frames_of(codec, chunks=7)
    start = min(start, len(frames) - 1)
    count = min(count, len(frames) - start)
    path = tmp_path_factory.mktemp("shard") / "s"
    chunks = write_shard(path, codec, frames)
    out = np.empty((count, *frames.shape[1:]), np.uint8)
    size = codec.chunk_frames
    spans = read_index(path, chunks)
    with mock.patch.object(shard, "_GROUP_BYTES", lot):
        checksums = read_chunks(path, spans, kind_of(codec), out, chunk_frames=size, start=start)
    np.testing.assert_array_equal(out, frames[start : start + count])
    touched = spans[start // size : -(-(start + count) // size), 1].tolist()
    data = path.read_bytes()
    assert checksums == b"".join(data[end - 4 : end] for end in touched)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", range(7))
def test_a_damaged_chunk_is_named_and_those_before_it_are_not(codec, tmp_path, bad):
    frames = frames_of(codec, chunks=7)
    chunks = write_shard(tmp_path / "s", codec, frames)
    spans = read_index(tmp_path / "s", chunks)
    data = bytearray((tmp_path / "s").read_bytes())
    data[spans[bad].sum() // 2] ^= 16
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(ValueError, match=f"chunk {bad}: crc32c"):
        read_chunks(
            tmp_path / "s",
            spans,
            kind_of(codec),
            np.empty_like(frames),
            chunk_frames=codec.chunk_frames,
            start=0,
        )


def sealed_index(*entries):
    index = struct.pack(f"<{len(entries)}Q", *entries)
    return index + crc32c(index)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((2**64 - 1, 2**64 - 1), "missing"),
        ((0, 101), "outside"),
        ((101, 0), "outside"),
        ((60, 60), "outside"),
        ((2**63, 2**63), "outside"),  # the sum wraps to 0
        ((2**64 - 2, 3), "outside"),
    ],
)
def test_an_index_that_points_outside_is_an_error(entries, message):
    with pytest.raises(ValueError, match=message):
        parse_index(sealed_index(*entries), 1, 100 + ENTRY_BYTES + 4)


@pytest.mark.parametrize("size", [0, 3, 19])
def test_a_file_shorter_than_its_index_is_an_error(tmp_path, size):
    (tmp_path / "s").write_bytes(bytes(size))
    with pytest.raises(ValueError, match="expected at least"):
        read_index(tmp_path / "s", 1)


def test_unseal_takes_off_what_seal_put_on():
    assert unseal(seal(b"abc")) == b"abc"
    assert unseal(seal(b"")) == b""
