import os

import numcodecs.blosc
import numpy as np
import pytest

from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.codec import FrameCodec, decode, seal
from avtd3.store.replay import native
from avtd3.store.replay.chunks import ChunkTable
from avtd3.store.replay.native import native_problem, open_decoder

needs_native = pytest.mark.skipif(bool(native_problem()), reason="the extra native is missing")

FRAME = 24 * 20
CHUNK = 4
GUARD = 64


def make_frames(chunks, *, noise=0, seed=0):
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 3, (chunks * CHUNK, FRAME // 8)).repeat(8, axis=1)
    return (flat + rng.integers(0, noise + 1, flat.shape)).astype(np.uint8)


def write(path, kind, chunks):
    path.write_bytes(b"".join(chunks))
    ends = np.cumsum([len(chunk) for chunk in chunks])
    spans = np.stack([ends - [len(chunk) for chunk in chunks], ends], axis=1)
    return FrameShard(path=path, name="frames", kind=kind, chunk_frames=CHUNK, spans=spans)


def take(shard, rows, threads=2):
    """Return the decoded frames, which of them were decoded, and the guard after them."""
    plan = ChunkTable.of([(0, shard)]).plan(np.asarray(rows))
    decoder = open_decoder(FRAME, threads)
    assert decoder is not None
    memory = np.full((len(rows) * FRAME + 2 * GUARD,), 255, np.uint8)
    out = memory[GUARD:-GUARD].reshape(len(rows), FRAME)
    descriptor = os.open(shard.path, os.O_RDONLY)
    try:
        decoder.bind([shard])
        undone = decoder.decode(plan, np.full(len(plan.chunk), descriptor, np.int32), out)
    finally:
        os.close(descriptor)
        decoder.close()
        decoder.close()
    guards = (memory[:GUARD], memory[-GUARD:])
    assert all((guard == 255).all() for guard in guards)
    return out, plan.chunk[undone].tolist()


def blosc(frames, **settings):
    settings = {"cname": b"lz4hc", "clevel": 5, "shuffle": 0, "blocksize": 0, **settings}
    typesize = settings.pop("typesize", 1)
    values = np.ascontiguousarray(frames).view(f"u{typesize}")
    return numcodecs.blosc.compress(values, **settings)


@needs_native
@pytest.mark.parametrize("name", ["lz4hc", "zstd", "raw"])
@pytest.mark.parametrize("noise", [0, 255], ids=["smooth", "noise"])
def test_own_codecs_are_decoded_whatever_the_frames(tmp_path, name, noise):
    frames = make_frames(6, noise=noise)
    codec = FrameCodec(name=name, level=3, chunk_frames=CHUNK)
    kind = {"lz4hc": "blosc"}.get(name, name)
    chunks = [codec.encode(frames[at : at + CHUNK]) for at in range(0, len(frames), CHUNK)]
    shard = write(tmp_path / "s", kind, chunks)
    # runs from a chunk's beginning, its end, its middle; repeats; neighbours out of order
    for rows in ([0, 1, 2, 3], [0], [2, 3, 4, 5, 6], [5, 5, 5, 6, 7], [9, 8, 23, 0, 9, 10, 11]):
        out, undone = take(shard, rows)
        assert undone == []
        assert (out == frames[rows]).all()


@needs_native
@pytest.mark.parametrize(
    ("settings", "is_native"),
    [
        ({"blocksize": 512}, True),
        ({"cname": b"lz4", "blocksize": 256}, True),
        ({"shuffle": 1, "typesize": 4}, False),
        ({"shuffle": 2}, False),
        ({"cname": b"zstd"}, False),
        ({"cname": b"blosclz"}, False),
    ],
    ids=str,
)
def test_other_blosc_buffers_are_decoded_or_left(tmp_path, settings, is_native):
    frames = make_frames(3)
    chunks = [blosc(frames[at : at + CHUNK], **settings) for at in range(0, len(frames), CHUNK)]
    shard = write(tmp_path / "s", "blosc", [seal(chunk) for chunk in chunks])
    rows = [1, 2, 3, 4, 8, 9, 10, 11]
    out, undone = take(shard, rows)
    assert undone == ([] if is_native else [0, 1, 2])
    assert (out == frames[rows]).all() == is_native


@needs_native
@pytest.mark.parametrize("kind", ["blosc", "zstd", "raw"])
def test_a_damaged_chunk_is_left_and_its_neighbours_are_decoded(tmp_path, kind):
    frames = make_frames(3)
    codec = FrameCodec(name={"blosc": "lz4hc"}.get(kind, kind), level=3, chunk_frames=CHUNK)
    chunks = [codec.encode(frames[at : at + CHUNK]) for at in range(0, len(frames), CHUNK)]
    for at in (0, 7, len(chunks[1]) // 2, len(chunks[1]) - 1):
        bad = bytearray(chunks[1])
        bad[at] ^= 16
        shard = write(tmp_path / "s", kind, [chunks[0], bytes(bad), chunks[2]])
        out, undone = take(shard, range(12))
        assert undone == [1]
        assert (out[:4] == frames[:4]).all()
        assert (out[8:] == frames[8:]).all()


@needs_native
def test_a_file_that_ends_too_soon_is_left(tmp_path):
    frames = make_frames(2)
    codec = FrameCodec(chunk_frames=CHUNK)
    chunks = [codec.encode(frames[at : at + CHUNK]) for at in (0, CHUNK)]
    shard = write(tmp_path / "s", "blosc", chunks)
    os.truncate(tmp_path / "s", len(chunks[0]) + 5)
    assert take(shard, range(8))[1] == [1]
    shard.spans[1] = shard.spans[1, 0], shard.spans[1, 0] + 10**9
    assert take(shard, range(8))[1] == [1]
    shard.spans[1, 1] = shard.spans[1, 0]
    assert take(shard, range(8))[1] == [1]


def check_forged(path, kind, seeds):
    """Chunks that lie with a right checksum: as the general way decodes them, if that can.

    It cannot if LZ4 data is wrong after the last wanted byte, which is not decoded.
    """
    codec = FrameCodec(name={"blosc": "lz4hc"}.get(kind, kind), level=3, chunk_frames=CHUNK)
    good = codec.encode(make_frames(1, noise=1))[:-4]
    if kind == "blosc":
        good = blosc(make_frames(1, noise=1), blocksize=640)
    chunks = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        bad = bytearray(good[: rng.integers(1, len(good) + 1)] if seed % 4 == 0 else good)
        for _ in range(int(rng.integers(1, 4))):
            first = min(len(bad), 40) if seed % 2 else len(bad)
            bad[rng.integers(first)] = rng.integers(256)
        chunks.append(seal(bytes(bad)))
    shard = write(path, kind, chunks)
    rows = np.arange(CHUNK * len(chunks))
    out, undone = take(shard, rows, threads=1)
    for number, chunk in enumerate(chunks):
        if number in undone:
            continue
        try:
            whole = decode(kind, chunk, CHUNK * FRAME)
        except ValueError as error:
            assert "blosc cannot decode" in str(error)  # noqa: PT017 - may or may not be raised
            continue
        assert whole == out[CHUNK * number : CHUNK * (number + 1)].tobytes()
    # only the beginnings: nothing may be written after the frame
    take(shard, rows[::CHUNK], threads=1)


@needs_native
@pytest.mark.parametrize("kind", ["blosc", "zstd", "raw"])
def test_forged_chunks_harm_nothing(tmp_path, kind):
    check_forged(tmp_path / "s", kind, range(300))


@needs_native
@pytest.mark.slow
def test_thousands_of_forged_chunks_harm_nothing(tmp_path):
    for start in range(0, 20_000, 1000):
        check_forged(tmp_path / "s", "blosc", range(start, start + 1000))


def test_without_its_packages_there_is_no_decoder_and_the_reason_is_known(monkeypatch):
    def missing():
        raise ImportError("blosc2 is not installed")

    monkeypatch.setattr(native, "_functions", missing)
    assert native_problem() == "blosc2 is not installed"


def test_without_a_place_for_compiled_code_frames_are_decoded_otherwise(monkeypatch):
    def compile_nothing():
        raise RuntimeError("cannot cache function '_read': no locator available")

    monkeypatch.setattr(native, "_functions", dict)
    monkeypatch.setattr(native, "_compile", compile_nothing)
    assert "no locator" in native_problem()
    assert open_decoder(FRAME) is None
    assert open_decoder(FRAME) is None
