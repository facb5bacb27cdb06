import errno
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError, StorageError
from avtd3.store.replay.cache import ReplayCache
from avtd3.store.replay.scratch import ACTION, ALIVE, REWARD, RowRanges, RowType, ScratchArrays
from avtd3.tests.store.memory import Episode, MemorySegment, make_spec


def segment_of(name, lengths, number=0, spec=None):
    spec = spec or make_spec()
    return MemorySegment(name, [Episode(spec, number, n, terminated=True) for n in lengths])


def wanted(*segments):
    return {(0, segment.id): segment for segment in segments}


@pytest.fixture
def cache(tmp_path):
    cache = ReplayCache(make_spec(), tmp_path)
    yield cache
    cache.close()


def check_held(cache, *segments):
    """The cache holds these segments and nothing else, byte for byte."""
    assert sorted(cache.segments) == sorted((0, segment.id) for segment in segments)
    for segment in segments:
        rows = slice(cache.start((0, segment.id)), None)
        frames, numbers = cache.arrays()["frames"][rows], cache.arrays()["numbers"][rows]
        observations = segment.observations
        np.testing.assert_array_equal(frames[:observations], segment.frames)
        np.testing.assert_array_equal(numbers[:observations, 4:], segment.arrays["vector"])
        lengths = segment.arrays["episode_length"]
        is_step = np.repeat(True, observations)
        is_step[np.cumsum(lengths + 1) - 1] = False
        steps = numbers[:observations][is_step]
        np.testing.assert_array_equal(steps[:, REWARD], segment.arrays["reward"])
        np.testing.assert_array_equal(steps[:, ALIVE], 1.0 - segment.arrays["terminated"])
        np.testing.assert_array_equal(steps[:, ACTION:4], segment.arrays["action"])
        assert (numbers[:observations, :4][~is_step] == 0.0).all()


def test_first_rows_count_one_observation_more_than_steps(cache):
    cache.follow(wanted(segment_of("a", [2, 1, 3])))
    assert cache.segments[0, "a"].first_rows.tolist() == [0, 3, 5]


@pytest.mark.parametrize("shared", [False, True])
def test_frames_reach_their_rows_however_little_is_written_at_once(tmp_path, monkeypatch, shared):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:7], at))
    cache = ReplayCache(make_spec(), tmp_path, shared=shared)
    first, second = segment_of("a", [3], 1), segment_of("b", [4, 2], 2)
    cache.follow(wanted(first, second))
    check_held(cache, first, second)
    cache.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_disk_that_fills_up_while_frames_are_written_is_an_error(tmp_path, monkeypatch, shared):
    cache = ReplayCache(make_spec(), tmp_path, shared=shared)
    first = segment_of("a", [3], 1)
    cache.follow(wanted(first))

    def full(*_):
        raise OSError(errno.ENOSPC, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="the disk is full") as raised:
            cache.follow(wanted(first, segment_of("b", [4], 2)))
    assert str(tmp_path) in str(raised.value)
    check_held(cache, first)
    cache.follow(wanted(first, segment_of("b", [4], 2)))
    check_held(cache, first, segment_of("b", [4], 2))
    cache.close()


def test_each_frame_is_decoded_once(cache):
    first, second = segment_of("a", [3], 1), segment_of("b", [4, 2], 2)
    changes = cache.follow(wanted(first))
    assert list(changes.added) == [(0, "a")]
    changes = cache.follow(wanted(first, second))
    assert list(changes.added) == [(0, "b")]
    assert changes.added[0, "b"].episodes.lengths.tolist() == [4, 2]
    assert (first.reads, second.reads) == (1, 1)
    check_held(cache, first, second)


def test_unwanted_segments_leave_and_their_rows_are_used_again(cache):
    segments = [segment_of(f"{i:02}", [5], i) for i in range(20)]
    for i in range(18):
        changes = cache.follow(wanted(*segments[i : i + 3]))
        assert changes.removed == (1 if i else 0)
        check_held(cache, *segments[i : i + 3])
    assert cache.rows <= 6 * 6


def test_segments_that_stay_are_moved_together_when_room_is_in_pieces(tmp_path):
    cache = ReplayCache(make_spec(), tmp_path, shared=False)
    small = [segment_of(f"{i:02}", [2], i) for i in range(20)]
    cache.follow(wanted(*small))
    rows, start = cache.rows, cache.start((0, "18"))
    large = segment_of("large", [20, 5], 99)
    cache.follow(wanted(*small[::2], large))
    assert cache.start((0, "18")) < start
    assert cache.rows == rows
    check_held(cache, *small[::2], large)
    assert sum(segment.reads for segment in small) == 20
    cache.close()


def test_progress_counts_frames(cache):
    seen = []
    segments = wanted(segment_of("a", [3]), segment_of("b", [4, 2]))
    cache.follow(segments, lambda done, total: seen.append((done, total)))
    assert len(seen) == 2
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize(
    "fault", [SegmentCorruptError("crc32c"), SegmentNotFoundError("gone"), OSError(5, "I/O error")]
)
def test_segment_that_fails_while_decoding_is_refused_whole(cache, fault):
    bad, good = segment_of("a", [3], 1), segment_of("b", [4], 2)
    bad.fault = fault
    changes = cache.follow(wanted(bad, good))
    assert changes.refused == {(0, "a"): fault}
    check_held(cache, good)


@pytest.mark.parametrize("name", ["vector", "action", "reward", "episode_return"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(cache, name, value):
    segment = segment_of("a", [3, 2])
    segment.arrays[name][1] = value
    changes = cache.follow(wanted(segment))
    assert f"'{name}' row 1 is not finite" in str(changes.refused[0, "a"])
    assert "replay-inspect" in str(changes.refused[0, "a"])
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
    segment = segment_of("a", [3, 2])
    segment.arrays[name] = np.array(values, segment.arrays[name].dtype)
    assert reason in str(cache.follow(wanted(segment)).refused[0, "a"])


def test_vector_only_spec_has_no_frames(tmp_path):
    spec = make_spec(image=False)
    cache = ReplayCache(spec, tmp_path)
    segment = segment_of("a", [3], 1, spec)
    cache.follow(wanted(segment))
    assert set(cache.arrays()) == {"numbers"}
    assert segment.reads == 0
    cache.close()


def test_image_only_spec_has_no_vector(tmp_path):
    spec = make_spec(vector=0)
    cache = ReplayCache(spec, tmp_path)
    cache.follow(wanted(segment_of("a", [3], 1, spec)))
    assert cache.arrays()["numbers"].shape[1:] == (4,)
    cache.close()


def test_empty_cache_has_no_columns(cache):
    assert cache.follow({}).added == {}
    assert cache.arrays() == {}


def test_too_small_a_disk_is_named_before_anything_is_read(cache, monkeypatch):
    good = segment_of("a", [3], 1)
    cache.follow(wanted(good))

    class FullDisk:
        f_bavail, f_frsize = 1, 16

    monkeypatch.setattr(os, "statvfs", lambda path: FullDisk)
    late = segment_of("b", [4], 2)
    with pytest.raises(StorageError, match=r"0\.00 GiB more .*capacity.*learn\.replay\.scratch"):
        cache.follow(wanted(good, late))
    assert late.reads == 0
    monkeypatch.undo()
    check_held(cache, good)
    cache.follow(wanted(good, late))
    check_held(cache, good, late)


def test_disk_that_fills_meanwhile_is_an_error_not_a_signal(cache, monkeypatch):
    def refuse(*_):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match="the disk is full"):
        cache.follow(wanted(segment_of("a", [3])))
    assert not cache.segments


def test_file_system_without_reservation_is_served(cache, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    segment = segment_of("a", [3], 7)
    cache.follow(wanted(segment))
    check_held(cache, segment)


def test_interrupted_filling_leaves_only_whole_segments(cache):
    def interrupt(done, total):
        raise KeyboardInterrupt

    segments = wanted(segment_of("a", [3], 1), segment_of("b", [4], 2))
    with pytest.raises(KeyboardInterrupt):
        cache.follow(segments, interrupt)
    assert not cache.segments
    cache.follow(segments)
    check_held(cache, *segments.values())


def test_scratch_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*learn\.replay\.scratch"):
        ReplayCache(make_spec(), tmp_path / "file" / "scratch")


def test_scratch_space_is_nameless_and_survives_a_kill(tmp_path):
    code = f"""
        import os, signal
        from pathlib import Path
        from avtd3.store.replay.scratch import RowType, ScratchArrays
        columns = ScratchArrays(Path({str(tmp_path)!r}), {{"x": RowType(dtype="u1", shape=(99,))}})
        columns.reserve(1000)
        columns["x"][:1000] = 7
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -9
    assert not list(tmp_path.iterdir())


def test_columns_keep_their_rows_while_they_grow(tmp_path):
    columns = ScratchArrays(tmp_path, {"x": RowType(dtype=np.int64, shape=(3,))})
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


@settings(deadline=None)
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
