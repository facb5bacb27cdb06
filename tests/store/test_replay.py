import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.store import scratch
from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError, StorageError
from avtd3.store.replay import AGE, LEFT, SHIFT, ReplayCache
from avtd3.store.scratch import RowRanges, RowType, ScratchColumns
from avtd3.store.spec import EpisodeSpec, ImageSpec


def make_spec(image=True, vector=2):
    return EpisodeSpec(
        image=ImageSpec(height=3, width=2, stack=2) if image else None,
        vector_names=tuple(f"v{i}" for i in range(vector)),
        vector_scales=(1.0,) * vector,
        action_names=("a",),
        action_low=(-1.0,),
        action_high=(1.0,),
        reward_terms=(),
        control_period_s=0.05,
    )


class MemorySegment:
    """A segment whose arrays are at hand to be damaged; every number in it is `value`."""

    def __init__(self, name, lengths, value=0, spec=None):
        self.id = name
        self.path = f"/data/segments/{name}"
        self.spec = spec or make_spec()
        lengths = np.array(lengths)
        self.steps, self.episodes = int(lengths.sum()), len(lengths)
        self.observations = self.steps + self.episodes
        ends = np.zeros(self.steps, bool)
        ends[np.cumsum(lengths) - 1] = True
        self.arrays = {
            "action": np.full((self.steps, 1), value, np.float32),
            "reward": np.full(self.steps, value, np.float32),
            "terminated": ends,
            "truncated": np.zeros(self.steps, bool),
            "episode_offset": np.cumsum(lengths) - lengths,
            "episode_length": lengths,
            "episode_return": np.full(self.episodes, value, np.float64),
            "episode_policy_version": np.full(self.episodes, value),
        }
        if self.spec.vector_size:
            shape = (self.observations, self.spec.vector_size)
            self.arrays["vector"] = np.full(shape, value, np.float32)
        self.value = value
        self.reads = 0
        self.fault = None

    def read(self, name):
        return self.arrays[name]

    def read_frames(self, out):
        self.reads += 1
        assert out.flags.c_contiguous
        out[:] = self.value
        if self.fault is not None:
            raise self.fault
        return out


def wanted(*segments):
    return {(0, segment.id): segment for segment in segments}


@pytest.fixture
def cache(tmp_path):
    cache = ReplayCache(make_spec(), tmp_path)
    yield cache
    cache.close()


def held(cache):
    """Values of the frames, vectors and rewards of each held segment, which must be one value."""
    columns = cache.columns()
    found = {}
    for key, segment in cache.segments.items():
        start = cache.position(key)
        rows = segment.steps + len(segment.lengths)
        values = {
            *np.unique(columns["frames"][start : start + rows]).tolist(),
            *np.unique(columns["vector"][start : start + rows]).tolist(),
            *np.unique(columns["reward"][start : start + segment.steps]).tolist(),
            *np.unique(columns["action"][start : start + segment.steps]).tolist(),
        }
        assert len(values) == 1
        found[key[1]] = values.pop()
    return found


def test_links_lead_from_steps_to_observations(cache):
    cache.follow(wanted(MemorySegment("a", [2, 1, 3])))
    start = cache.position((0, "a"))
    links = cache.columns()["links"][start : start + 6]
    assert links[:, SHIFT].tolist() == [0, 0, 1, 2, 2, 2]
    assert links[:, AGE].tolist() == [0, 1, 0, 0, 1, 2]
    assert links[:, LEFT].tolist() == [2, 1, 1, 3, 2, 1]


def test_each_frame_is_decoded_once(cache):
    first, second = MemorySegment("a", [3], 1), MemorySegment("b", [4, 2], 2)
    changes = cache.follow(wanted(first))
    assert list(changes.added) == [(0, "a")]
    changes = cache.follow(wanted(first, second))
    assert list(changes.added) == [(0, "b")]
    assert changes.added[0, "b"].lengths.tolist() == [4, 2]
    assert (first.reads, second.reads) == (1, 1)
    assert held(cache) == {"a": 1, "b": 2}


def test_unwanted_segments_leave_and_their_rows_are_used_again(cache):
    segments = [MemorySegment(f"{i:02}", [5], i) for i in range(20)]
    for i in range(18):
        changes = cache.follow(wanted(*segments[i : i + 3]))
        assert changes.removed == (1 if i else 0)
        assert held(cache) == {s.id: s.value for s in segments[i : i + 3]}
    assert cache.rows <= 6 * 6


def test_progress_counts_frames(cache):
    seen = []
    segments = wanted(MemorySegment("a", [3]), MemorySegment("b", [4, 2]))
    cache.follow(segments, lambda done, total: seen.append((done, total)))
    assert len(seen) == 2
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize(
    "fault", [SegmentCorruptError("crc32c"), SegmentNotFoundError("gone"), OSError(5, "I/O error")]
)
def test_segment_that_fails_while_decoding_is_refused_whole(cache, fault):
    bad, good = MemorySegment("a", [3], 1), MemorySegment("b", [4], 2)
    bad.fault = fault
    changes = cache.follow(wanted(bad, good))
    assert changes.refused == {(0, "a"): str(fault)}
    assert held(cache) == {"b": 2}


@pytest.mark.parametrize("name", ["vector", "action", "reward", "episode_return"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(cache, name, value):
    segment = MemorySegment("a", [3, 2])
    segment.arrays[name][1] = value
    changes = cache.follow(wanted(segment))
    assert f"'{name}' row 1 is not finite" in changes.refused[0, "a"]
    assert "replay-inspect" in changes.refused[0, "a"]
    assert segment.reads == 0
    assert not cache.segments


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("episode_length", [3, 3], "do not add up to 5 steps"),
        ("episode_length", [5, 0], "do not add up to 5 steps"),
        ("episode_offset", [0, 2], "'episode_offset' does not match"),
        ("terminated", [0, 1, 1, 0, 1], "not the last steps"),
        ("terminated", [0, 0, 1, 0, 0], "not the last steps"),
        ("truncated", [1, 0, 0, 0, 0], "not the last steps"),
    ],
)
def test_episodes_that_contradict_each_other_are_refused(cache, name, values, reason):
    segment = MemorySegment("a", [3, 2])
    segment.arrays[name] = np.array(values, segment.arrays[name].dtype)
    assert reason in cache.follow(wanted(segment)).refused[0, "a"]


def test_vector_only_spec_has_no_frames(tmp_path):
    spec = make_spec(image=False)
    cache = ReplayCache(spec, tmp_path)
    segment = MemorySegment("a", [3], 1, spec)
    cache.follow(wanted(segment))
    assert set(cache.columns()) == {"vector", "action", "reward", "terminated", "links"}
    assert segment.reads == 0
    cache.close()


def test_image_only_spec_has_no_vector(tmp_path):
    spec = make_spec(vector=0)
    cache = ReplayCache(spec, tmp_path)
    cache.follow(wanted(MemorySegment("a", [3], 1, spec)))
    assert "vector" not in cache.columns()
    cache.close()


def test_empty_cache_has_no_columns(cache):
    assert cache.follow({}).added == {}
    assert cache.columns() == {}


def test_too_small_a_disk_is_named_before_anything_is_read(cache, monkeypatch):
    good = MemorySegment("a", [3], 1)
    cache.follow(wanted(good))

    class FullDisk:
        f_bavail, f_frsize = 1, 16

    monkeypatch.setattr(scratch.os, "statvfs", lambda path: FullDisk)
    late = MemorySegment("b", [4], 2)
    with pytest.raises(StorageError, match=r"0\.00 GiB more .*capacity.*store\.replay\.scratch"):
        cache.follow(wanted(good, late))
    assert late.reads == 0
    monkeypatch.undo()
    assert held(cache) == {"a": 1}
    cache.follow(wanted(good, late))
    assert held(cache) == {"a": 1, "b": 2}


def test_disk_that_fills_meanwhile_is_an_error_not_a_signal(cache, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch.os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        cache.follow(wanted(MemorySegment("a", [3])))
    assert not cache.segments


def test_file_system_without_reservation_is_served(cache, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(scratch.os, "posix_fallocate", refuse)
    cache.follow(wanted(MemorySegment("a", [3], 7)))
    assert held(cache) == {"a": 7}


def test_interrupted_filling_leaves_only_whole_segments(cache):
    def interrupt(done, total):
        raise KeyboardInterrupt

    segments = wanted(MemorySegment("a", [3], 1), MemorySegment("b", [4], 2))
    with pytest.raises(KeyboardInterrupt):
        cache.follow(segments, interrupt)
    assert not cache.segments
    cache.follow(segments)
    assert held(cache) == {"a": 1, "b": 2}


def test_scratch_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*store\.replay\.scratch"):
        ReplayCache(make_spec(), tmp_path / "file" / "scratch")


def test_scratch_space_is_nameless_and_survives_a_kill(tmp_path):
    code = f"""
        import os, signal
        from pathlib import Path
        from avtd3.store.scratch import RowType, ScratchColumns
        columns = ScratchColumns(Path({str(tmp_path)!r}), {{"x": RowType(dtype="u1", shape=(99,))}})
        columns.reserve(1000)
        columns["x"][:1000] = 7
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -9
    assert not list(tmp_path.iterdir())


def test_columns_keep_their_rows_while_they_grow(tmp_path):
    columns = ScratchColumns(tmp_path, {"x": RowType(dtype=np.int64, shape=(3,))})
    columns.reserve(2)
    columns["x"][:2] = 5
    for rows in (3, 9, 10_000):
        columns.reserve(rows)
        columns["x"][rows - 1] = rows
        assert (columns["x"][:2] == 5).all()
    columns.reserve(1)
    assert columns.rows == 10_000
    columns.close()
    columns.close()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("place"), st.integers(1, 9)),
            st.tuples(st.just("release"), st.integers(0, 99)),
        ),
        max_size=60,
    )
)
def test_ranges_stay_whole_apart_and_compact(actions):
    ranges, memory, owners = RowRanges(), np.full(1000, -1), {}
    most = 0
    for number, (action, size) in enumerate(actions):
        if action == "place":
            for source, target in ranges.place(number, size):
                memory[target] = memory[source]
            memory[ranges[number]] = number
            owners[number] = size
        elif owners:
            owner = sorted(owners)[size % len(owners)]
            ranges.release(owner)
            del owners[owner]
        most = max(most, sum(owners.values()))
        assert ranges.used == sum(owners.values())
        for owner, rows in owners.items():
            assert memory[ranges[owner]].tolist() == [owner] * rows
        assert ranges.end <= most + most // 8 + 2 * 9
