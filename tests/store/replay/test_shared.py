import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.errors import StorageError
from avtd3.store.replay.cache import ReplayCache
from avtd3.store.replay.shared import SharedIndex, directory_name
from avtd3.tests.store.memory import Episode, MemorySegment, make_spec

SPEC = make_spec()


def segment_of(number, lengths=(4, 2)):
    episodes = [Episode(SPEC, number, n, terminated=True) for n in lengths]
    return MemorySegment(f"{number:02}", episodes)


def wanted(*segments):
    return {(0, segment.id): segment for segment in segments}


def check(cache, *segments):
    frames = cache.arrays()["frames"]
    for segment in segments:
        start = cache.start((0, segment.id))
        np.testing.assert_array_equal(frames[start : start + segment.observations], segment.frames)


def start_process(directory, body):
    """A process that holds segments 1 and 2, then does ``body``; it says what, and waits."""
    code = """
        import os, sys
        from pathlib import Path
        from avtd3.tests.store.replay.test_shared import *
        cache = ReplayCache(SPEC, Path(sys.argv[1]))
        first, second = segment_of(1), segment_of(2)
    """
    text = textwrap.dedent(code) + textwrap.dedent(body)
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def stop(process, how=signal.SIGKILL):
    process.send_signal(how)
    process.communicate()


HOLD = """
    cache.follow(wanted(first, second))
    check(cache, first, second)
    print(first.reads, second.reads, flush=True)
    sys.stdin.read()
    cache.close()
"""
STUCK = """
    def stuck(*_, **__):
        print("decoding", flush=True)
        sys.stdin.read()
    first.frame_parts = stuck
    cache.follow(wanted(first))
"""


def test_a_second_process_decodes_nothing_and_outlives_the_first(tmp_path):
    process, line = start_process(tmp_path, HOLD)
    assert line == "1 1"
    cache, first, third = ReplayCache(SPEC, tmp_path), segment_of(1), segment_of(3)
    assert cache.notice == ""
    cache.follow(wanted(first))
    assert first.reads == 0
    stop(process)
    check(cache, first)
    cache.follow(wanted(first, third))  # takes the room of what only the dead process listed
    assert cache.rows == 2 * first.observations
    check(cache, first, third)
    cache.close()
    assert not list(tmp_path.iterdir())


def test_rows_that_another_process_lists_are_left_alone(tmp_path):
    cache, first, second = ReplayCache(SPEC, tmp_path), segment_of(1), segment_of(2)
    cache.follow(wanted(first, second))
    process, line = start_process(tmp_path, HOLD)
    assert line == "0 0"
    third = segment_of(3)
    cache.follow(wanted(third))
    check(cache, third)
    again = segment_of(1)
    cache.follow(wanted(third, again))
    assert again.reads == 0
    check(cache, third, again)
    process.communicate("")
    assert process.returncode == 0
    cache.close()
    assert not list(tmp_path.iterdir())


def test_two_that_want_the_same_segments_divide_the_decoding(tmp_path):
    caches = [ReplayCache(SPEC, tmp_path) for _ in range(2)]
    segments = [[segment_of(number) for number in range(1, 25)] for _ in caches]
    both = threading.Barrier(2, timeout=60)  # neither continues until the other decodes, too
    for own in segments:
        turns = itertools.count()
        for segment in own:

            def read(stream, turns=turns, whole=segment.frame_parts):
                if next(turns) == 0:
                    both.wait()
                return whole(stream)

            segment.frame_parts = read
    with ThreadPoolExecutor(2) as pool:
        changes = list(
            pool.map(
                lambda pair: pair[0].follow(wanted(*pair[1])), zip(caches, segments, strict=True)
            )
        )
    for cache, own, change in zip(caches, segments, changes, strict=True):
        assert (len(change.added), change.refused) == (24, {})
        check(cache, *own)
    reads = [[segment.reads for segment in own] for own in segments]
    assert (np.sum(reads, axis=0) == 1).all()
    assert all(sum(own) > 0 for own in reads)
    for cache in caches:
        cache.close()
    assert not list(tmp_path.iterdir())


def test_each_of_two_may_have_a_damaged_copy_of_what_the_other_wants(tmp_path):
    left, right = ReplayCache(SPEC, tmp_path), ReplayCache(SPEC, tmp_path)
    ours, theirs = ([segment_of(number) for number in range(1, 9)] for _ in range(2))
    ours[0].fault = theirs[7].fault = OSError(5, "I/O error")
    failed = threading.Barrier(2, timeout=60)
    for own, bad in ((ours, 0), (theirs, 7)):
        whole = own[bad].frame_parts

        def read(stream, whole=whole):
            failed.wait()
            return whole(stream)

        own[bad].frame_parts = read
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(left.follow, wanted(*ours))
        other = pool.submit(right.follow, wanted(*reversed(theirs)))
        refused = [list(job.result(timeout=60).refused) for job in (one, other)]
    assert refused == [[(0, "01")], [(0, "08")]]
    check(left, *ours[1:])
    check(right, *theirs[:-1])
    left.close()
    right.close()


def test_what_a_killed_process_was_decoding_is_taken_over(tmp_path):
    process, line = start_process(tmp_path, STUCK)
    assert line == "decoding"
    cache, first = ReplayCache(SPEC, tmp_path), segment_of(1)
    seen = []

    # Called for the segment that no other process decodes; from then on it waits for the first.
    def kill(done, total):
        seen.append((done, total))
        stop(process)

    other = segment_of(2)
    cache.follow(wanted(first, other), kill)
    assert (first.reads, other.reads) == (1, 1)
    assert seen[-1] == (16, 16)
    check(cache, first, other)
    cache.close()
    assert not list(tmp_path.iterdir())


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    process, _ = start_process(tmp_path, HOLD)
    stop(process)
    assert len(list(tmp_path.iterdir())) == 1
    other = make_spec(vector=1)
    cache = ReplayCache(other, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [directory_name(other.digest)]
    cache.close()
    assert not list(tmp_path.iterdir())


def test_nothing_is_trusted_that_only_killed_processes_had(tmp_path):
    process, _ = start_process(tmp_path, HOLD)
    stop(process)
    cache, first = ReplayCache(SPEC, tmp_path), segment_of(1)
    cache.follow(wanted(first))
    assert first.reads == 1
    cache.close()


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_what_is_not_ours_is_refused_and_frames_are_private(tmp_path, kind):
    path = tmp_path / "scratch" / directory_name(SPEC.digest)
    path.parent.mkdir()
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    if kind == "link":
        path.symlink_to(target)
    elif kind == "open":
        path.mkdir()
        path.chmod(0o777)
    else:
        path.write_text("")
    cache, first = ReplayCache(SPEC, path.parent), segment_of(1)
    cache.follow(wanted(first))
    check(cache, first)
    assert "frames are not shared with other runs" in cache.notice
    assert str(path) in cache.notice
    assert not list(target.iterdir())
    cache.close()


def test_another_owners_directory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / directory_name(SPEC.digest)
    path.mkdir(mode=0o700)
    name = path.name
    monkeypatch.setattr("avtd3.store.replay.shared.directory_name", lambda _: name)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    cache = ReplayCache(SPEC, tmp_path)
    assert "belongs to another user" in cache.notice
    cache.close()


def test_a_damaged_copy_is_decoded_from_the_other(tmp_path):
    left, right = ReplayCache(SPEC, tmp_path), ReplayCache(SPEC, tmp_path)
    bad, good = segment_of(1), segment_of(1)
    bad.fault = OSError(5, "I/O error")
    assert list(left.follow(wanted(bad)).refused) == [(0, "01")]
    right.follow(wanted(good))
    check(right, good)
    left.close()
    check(right, good)
    right.close()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["claim", "release", "finish", "die"]),
            st.sampled_from("abc"),
            st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True),
        ),
        max_size=40,
    )
)
def test_listed_rows_stay_where_they_are_and_hold_what_they_held(actions):  # noqa: C901
    index, memory = SharedIndex(), np.full(2000, -1)
    model: dict[str, dict[str, tuple[int, int]]] = {lease: {} for lease in "abc"}
    for action, lease, numbers in actions:
        index = SharedIndex.from_document(index.to_document())
        sizes = {str(n): 1 + n % 5 for n in numbers}
        if action == "claim":
            index.claim(lease, sizes)
            for content in sizes:
                at = index[content]
                model[lease][content] = (at.start, at.stop)
                assert at.stop - at.start == sizes[content]
                if index.take_over(lease, content):
                    memory[at.start : at.stop] = int(content)
        elif action == "finish":
            index.finish(c for c in model[lease] if index[c].decoder == lease)
        elif action == "release":
            index.release(lease, sizes)
            for content in sizes:
                model[lease].pop(content, None)
        else:
            model[lease] = {}
            index.keep(set("abc") - {lease})
        for listed in model.values():
            for content, (start, stop) in listed.items():
                assert (index[content].start, index[content].stop) == (start, stop)
                if index[content].is_ready or index[content].decoder:
                    assert (memory[start:stop] == int(content)).all()
        assert index.rows <= 2000


def test_an_index_that_cannot_be_read_is_one_clear_error(tmp_path):
    first = ReplayCache(make_spec(), tmp_path)
    (home,) = tmp_path.glob("avtd3-replay-*")
    (home / "index.json").write_text("{", "utf-8")
    words = r"the index in .* cannot be read .* remove the directory"
    with pytest.raises(StorageError, match=words):
        ReplayCache(make_spec(), tmp_path)
    first.close()
    ReplayCache(make_spec(), tmp_path).close()
