from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.shard import extents
from avtd3.store.replay.chunks import ChunkTable

SHARDS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 3)), min_size=1)


def lay_out(shapes):
    """Shards of (frames per chunk, chunks) with gaps between them, each span all its own."""
    placed, start, offset = [], 0, 0
    for chunk_frames, chunks, gap in shapes:
        ends = offset + 10 * np.arange(1, chunks + 1)
        spans = np.stack([ends - 10, ends - 1], axis=1)
        shard = FrameShard(
            path=Path(), name="frames", kind="raw", chunk_frames=chunk_frames, spans=spans
        )
        placed.append((start + gap, shard))
        start += gap + chunk_frames * chunks
        offset += 1000
    return placed


@settings(deadline=None)
@given(SHARDS, st.data())
def test_each_frame_comes_from_its_chunk_and_each_chunk_once(shapes, data):
    placed = lay_out(shapes)
    rows = np.concatenate(
        [np.arange(start, start + s.chunk_frames * len(s.spans)) for start, s in placed]
    )
    wanted = np.array(data.draw(st.lists(st.sampled_from(rows.tolist()), min_size=1, max_size=30)))
    plan = ChunkTable.of(placed).plan(wanted)
    pairs = list(zip(plan.shard.tolist(), plan.chunk.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert pairs == sorted(pairs)
    found = np.full(len(wanted), -1)
    for g, (number, chunk) in enumerate(pairs):
        start, shard = placed[number]
        low, high = shard.spans[chunk]
        assert (plan.begin[g], plan.size[g]) == (low, high - low)
        frames = slice(plan.first[g], plan.first[g + 1])
        assert (np.diff(plan.place[frames]) > 0).all()
        found[plan.place[frames]] = start + chunk * shard.chunk_frames + plan.inside[frames]
        steps = list(zip(np.diff(plan.inside[frames]), np.diff(plan.place[frames]), strict=True))
        assert plan.is_run()[g] == all(step == (1, 1) for step in steps)
    assert found.tolist() == wanted.tolist()
    leads, lengths = extents(plan.shard, plan.begin, plan.size)
    stretches = zip(leads.tolist(), plan.begin[leads].tolist(), lengths.tolist(), strict=True)
    bytes_wanted = {
        (shard, byte)
        for shard, begin, size in zip(plan.shard, plan.begin, plan.size, strict=True)
        for byte in range(begin, begin + size)
    }
    covered = [
        (plan.shard[g], byte) for g, begin, size in stretches for byte in range(begin, begin + size)
    ]
    assert len(covered) == len(set(covered))
    assert set(covered) == bytes_wanted


@settings(deadline=None)
@given(SHARDS, st.integers(1, 4), st.data())
def test_parts_have_few_shards_and_are_the_plan(shapes, most, data):
    placed = lay_out(shapes)
    starts = [start for start, _ in placed]
    wanted = np.array(data.draw(st.lists(st.sampled_from(starts), min_size=1, max_size=30)))
    plan = ChunkTable.of(placed).plan(wanted)
    parts = list(plan.parts(most))
    assert all(len(set(part.shard.tolist())) <= most for part in parts)
    assert all(part.first[0] == 0 and part.first[-1] == len(part.place) for part in parts)
    for name in ("shard", "chunk", "begin", "size", "inside", "place"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tolist() == getattr(plan, name).tolist()
    assert np.concatenate([np.diff(part.first) for part in parts]).sum() == len(wanted)
