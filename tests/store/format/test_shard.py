"""Chunks decoded together are as each of them decoded by itself, whatever they hold."""

import os
import threading

import numcodecs.blosc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.codec import CRC_BYTES, ChainKind, FrameCodec, decode, seal
from avtd3.store.format.shard import (
    PackedChunks,
    decode_blocks,
    extents,
    find_blocks,
    room_bytes,
)
from avtd3.store.replay.chunks import MOST_THREADS, ChunkTable, DecodePool
from avtd3.store.replay.direct import JoinedDecoder

FRAME = 24 * 20
GUARD = 64
KINDS: dict[str, ChainKind] = {"lz4hc": "blosc", "raw": "raw", "zstd": "zstd"}


def make_frame(seed, noise):
    """A frame that compresses well, badly, or not at all."""
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 3, FRAME // 8).repeat(8)
    return (flat + rng.integers(0, noise + 1, FRAME)).astype(np.uint8)


def encode(name, frame):
    return FrameCodec(name=name, chunk_frames=1).encode(frame.reshape(1, 1, 24, 20))


class Files:
    """Files that chunks are written to, open."""

    def __init__(self, tmp_path, chunks, per_file=3, gap=0):
        self.descriptors: list[int] = []
        places: list[tuple[int, int, int]] = []
        for first in range(0, len(chunks), per_file):
            path = tmp_path / f"{first}"
            lot = chunks[first : first + per_file]
            path.write_bytes(b"".join(chunk + bytes(gap) for chunk in lot))
            self.descriptors.append(os.open(path, os.O_RDONLY))
            at = 0
            for chunk in lot:
                places.append((self.descriptors[-1], at, len(chunk)))
                at += len(chunk) + gap
        columns = np.array(places, np.int64).T
        self.file, self.offset, self.size = columns[0].astype(np.int32), columns[1], columns[2]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for descriptor in self.descriptors:
            os.close(descriptor)

    def read(self, room, memory=None):
        return (memory or PackedChunks()).read(self.file, self.offset, self.size, room)


def decode_in_order(packed, starts, order):
    """Blocks in some order, and a guard on both sides."""
    memory = np.full(len(order) * FRAME + 2 * GUARD, 255, np.uint8)
    decode_blocks(packed, starts[order], FRAME, memory[GUARD:-GUARD])
    assert (memory[:GUARD] == 255).all()
    assert (memory[-GUARD:] == 255).all()
    return memory[GUARD:-GUARD].reshape(-1, FRAME)


@settings(deadline=None)
@given(
    chunks=st.lists(
        st.tuples(
            st.sampled_from(["lz4hc", "raw"]), st.integers(0, 99), st.sampled_from([0, 2, 255])
        ),
        min_size=1,
        max_size=12,
    ),
    per_file=st.integers(1, 5),
    gap=st.integers(0, 9),
    data=st.data(),
)
def test_blocks_in_any_order_are_the_frames_of_their_chunks(
    tmp_path_factory, chunks, per_file, gap, data
):
    frames = [make_frame(seed, noise) for _, seed, noise in chunks]
    coded = [encode(name, frame) for (name, _, _), frame in zip(chunks, frames, strict=True)]
    order = data.draw(st.lists(st.integers(0, len(chunks) - 1), min_size=1, max_size=30))
    with Files(tmp_path_factory.mktemp("f"), coded, per_file, gap) as files:
        packed, begin = files.read(room_bytes(len(order)))
    assert begin.all()
    is_raw = np.array([name == "raw" for name, _, _ in chunks])
    starts = np.zeros(len(chunks), np.int64)
    starts[is_raw] = find_blocks("raw", packed, begin[is_raw], files.size[is_raw], FRAME)
    starts[~is_raw] = find_blocks("blosc", packed, begin[~is_raw], files.size[~is_raw], FRAME)
    # Blosc copies what would not compress, in another form than a block: that is left.
    is_copied = np.array(
        [
            name == "lz4hc" and chunk[2] & 2
            for (name, _, _), chunk in zip(chunks, coded, strict=True)
        ]
    ).astype(bool)
    assert ((starts == 0) == is_copied).all()
    order = [number for number in order if not is_copied[number]]
    if order:
        out = decode_in_order(packed, starts, order)
        assert (out == [frames[number] for number in order]).all()


@pytest.mark.parametrize("name", ["lz4hc", "raw"])
def test_a_chunk_with_any_bit_flipped_is_not_sound_and_its_neighbours_are(tmp_path, name):
    frames = [make_frame(seed, 5) for seed in range(3)]
    coded = [encode(name, frame) for frame in frames]
    rng = np.random.default_rng(0)
    for at in rng.choice(8 * len(coded[1]), 60, replace=False).tolist():
        bad = bytearray(coded[1])
        bad[at // 8] ^= 1 << at % 8
        with Files(tmp_path, [coded[0], bytes(bad), coded[2]]) as files:
            packed, begin = files.read(room_bytes(2))
        assert (begin > 0).tolist() == [True, False, True]
        starts = find_blocks(KINDS[name], packed, begin, files.size, FRAME)
        assert (starts > 0).tolist() == [True, False, True]
        assert (decode_in_order(packed, starts, [2, 0]) == [frames[2], frames[0]]).all()


def test_what_a_file_lacks_is_not_taken_from_the_batch_before(tmp_path):
    coded = [encode("raw", make_frame(seed, 5)) for seed in range(3)]
    memory = PackedChunks()
    with Files(tmp_path, coded) as files:
        assert files.read(room_bytes(3), memory)[1].all()
        os.truncate(tmp_path / "0", 2 * len(coded[0]) + 100)
        assert (files.read(room_bytes(3), memory)[1] > 0).tolist() == [True, True, False]
        closed = files.file.copy()
        closed[:] = 10**6
        files.file = closed
        assert not files.read(room_bytes(3), memory)[1].any()


def lie(chunk, seed):
    """A chunk with other bytes and a right checksum."""
    rng = np.random.default_rng(seed)
    good = chunk[:-CRC_BYTES]
    bad = bytearray(good[: rng.integers(1, len(good) + 1)] if seed % 4 == 0 else good)
    for _ in range(int(rng.integers(1, 4))):
        bad[rng.integers(min(len(bad), 40) if seed % 2 else len(bad))] = rng.integers(256)
    return seal(bytes(bad))


def test_chunks_that_lie_decode_to_what_they_do_by_themselves_or_not_at_all(tmp_path):
    good = encode("lz4hc", make_frame(0, 3))
    seen = {"left": 0, "refused": 0, "decoded": 0}
    for seed in range(600):
        bad = lie(good, seed)
        with Files(tmp_path, [good, bad, good]) as files:
            packed, begin = files.read(room_bytes(1))
        assert begin.all()
        starts = find_blocks("blosc", packed, begin, files.size, FRAME)
        assert starts[0]
        assert starts[2]
        if not starts[1]:
            seen["left"] += 1
            continue
        try:
            out = decode_in_order(packed, starts, [1])
        except ValueError:
            seen["refused"] += 1
            with pytest.raises(ValueError, match="blosc"):
                decode("blosc", bad, FRAME)
        else:
            seen["decoded"] += 1
            assert out.tobytes() == decode("blosc", bad, FRAME)
    assert min(seen.values()) > 20, seen


def test_chunks_of_other_sorts_are_left(tmp_path):
    frame = make_frame(0, 3)
    coded = [
        seal(numcodecs.blosc.compress(frame, b"zstd", 5, 0)),
        seal(numcodecs.blosc.compress(frame, b"lz4", 5, 2)),
        seal(numcodecs.blosc.compress(frame[:-1], b"lz4", 5, 0)),
        seal(b""),
    ]
    with Files(tmp_path, coded) as files:
        packed, begin = files.read(room_bytes(1))
        assert begin.all()
        for kind in ("blosc", "raw", "zstd"):
            assert not find_blocks(kind, packed, begin, files.size, FRAME).any()


def test_a_chunk_of_many_blocks_is_left(tmp_path):
    values = np.zeros(2**20, np.uint8)
    chunk = seal(numcodecs.blosc.compress(values, b"lz4hc", 5, 0))
    assert int.from_bytes(chunk[8:12], "little") < len(values)  # the size of a block
    with Files(tmp_path, [chunk]) as files:
        packed, begin = files.read(room_bytes(1))
    assert begin.all()
    assert not find_blocks("blosc", packed, begin, files.size, len(values)).any()


def write_shard(path, name, chunk_frames, frames):
    codec = FrameCodec(name=name, chunk_frames=chunk_frames)
    shaped = frames.reshape(-1, 1, 24, 20)
    coded = [
        codec.encode(np.ascontiguousarray(shaped[at : at + chunk_frames]))
        for at in range(0, len(frames), chunk_frames)
    ]
    path.write_bytes(b"".join(coded))
    sizes = np.array([len(chunk) for chunk in coded])
    spans = np.stack([sizes.cumsum() - sizes, sizes.cumsum()], axis=1)
    kind = KINDS[name]
    return FrameShard(path=path, name="f", kind=kind, chunk_frames=chunk_frames, spans=spans)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_decoder_takes_chunks_of_one_frame_and_leaves_the_others(tmp_path, threads):
    sorts = [("lz4hc", 1), ("raw", 1), ("zstd", 1), ("lz4hc", 4), ("raw", 2)]
    frames = np.stack([make_frame(seed, 5) for seed in range(8 * len(sorts))])
    shards = [
        write_shard(tmp_path / f"{n}", name, chunk_frames, frames[8 * n : 8 * n + 8])
        for n, (name, chunk_frames) in enumerate(sorts)
    ]
    table = ChunkTable.of([(8 * n, shard) for n, shard in enumerate(shards)])
    decoder = JoinedDecoder(FRAME, threads)
    decoder.bind(shards)
    descriptors = np.array([os.open(shard.path, os.O_RDONLY) for shard in shards], np.int32)
    rng = np.random.default_rng(0)
    try:
        # all kinds; only those that it takes, in numbers down to one; only those that it leaves
        for rows in (
            rng.integers(0, 40, 50),
            rng.integers(0, 16, 33),
            np.array([9]),
            np.arange(16, 40),
        ):
            plan = table.plan(rows)
            out = np.full((len(rows), FRAME), 77, np.uint8)
            left = decoder.decode(plan, descriptors[plan.shard], out)
            assert (plan.shard[left] >= 2).all()
            assert (np.delete(plan.shard, left) < 2).all()
            assert (out[rows < 16] == frames[rows[rows < 16]]).all()
            assert (out[rows >= 16] == 77).all()
    finally:
        decoder.close()
        decoder.close()
        for descriptor in descriptors.tolist():
            os.close(descriptor)


def test_a_block_that_does_not_decode_leaves_all_to_the_other_way(tmp_path):
    good = encode("lz4hc", make_frame(0, 3))
    bad = next(
        chunk
        for chunk in (lie(good, seed) for seed in range(2, 600, 4))
        if chunk[:24] == good[:24] and fails(chunk)
    )
    (tmp_path / "s").write_bytes(good + bad)
    spans = np.array([[0, len(good)], [len(good), len(good) + len(bad)]])
    shard = FrameShard(path=tmp_path / "s", name="f", kind="blosc", chunk_frames=1, spans=spans)
    decoder = JoinedDecoder(FRAME)
    decoder.bind([shard])
    descriptor = os.open(shard.path, os.O_RDONLY)
    try:
        plan = ChunkTable.of([(0, shard)]).plan(np.array([0, 1]))
        files = np.full(2, descriptor, np.int32)
        assert decoder.decode(plan, files, np.empty((2, FRAME), np.uint8)).tolist() == [0, 1]
        shard.spans[1, 1] = shard.spans[1, 0] + 10**9
        plan = ChunkTable.of([(0, shard)]).plan(np.array([0, 1]))
        assert decoder.decode(plan, files, np.empty((2, FRAME), np.uint8)).tolist() == [1]
    finally:
        os.close(descriptor)
        decoder.close()


def fails(chunk):
    try:
        decode("blosc", chunk, FRAME)
    except ValueError:
        return True
    return False


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12
    )
)
def test_extents_cover_the_chunks_and_break_where_something_is_between(steps):
    file = np.array([step[0] for step in steps]).cumsum()
    size = np.array([step[2] for step in steps])
    begin = np.array([gap for _, gap, _ in steps]).cumsum() + size.cumsum() - size
    leads, lengths = extents(file, begin, size)
    covered = []
    for lead, length in zip(leads.tolist(), lengths.tolist(), strict=True):
        covered += [(int(file[lead]), int(begin[lead]) + n) for n in range(length)]
    wanted = [
        (int(f), int(b) + n)
        for f, b, s in zip(file, begin, size, strict=True)
        for n in range(int(s))
    ]
    assert covered == wanted
    breaks = [
        n
        for n in range(len(steps))
        if n == 0 or file[n] != file[n - 1] or begin[n] != begin[n - 1] + size[n - 1]
    ]
    assert leads.tolist() == breaks


def test_a_decode_pool_has_a_thread_per_core_but_at_most_four(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert DecodePool().threads == MOST_THREADS
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert DecodePool().threads == 1


def test_a_decode_pool_does_everything_once_and_reports_errors():
    crew, done = DecodePool(3), list[tuple[int, int]]()
    crew.share(8, lambda thread, low, high: done.extend((n, thread) for n in range(low, high)))
    assert sorted(n for n, _ in done) == list(range(8))
    assert {thread for _, thread in done} == {0, 1, 2}
    for bad in range(3):
        with pytest.raises(ZeroDivisionError):
            crew.share(3, lambda thread, *_, bad=bad: 1 // (thread - bad))
    crew.close()
    crew.close()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_decode_pool_waits_for_all_threads_before_it_reports_an_error(bad):
    pool, done, may_end = DecodePool(3), [], threading.Event()

    def work(thread, low, high):
        if thread == bad:
            threading.Timer(0.05, may_end.set).start()
            raise ValueError("damaged")
        if thread == 2:
            may_end.wait(60.0)
            done.append(thread)

    with pytest.raises(ValueError, match="damaged"):
        pool.share(3, work)
    assert done == [2]
    pool.close()
