"""Heartbeats, and how old an observer takes them to be."""

import contextlib
import dataclasses
import json
import os
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.store import status
from avtd3.store.remote.client import LocalPlace, RemotePlace
from avtd3.store.render.status_view import StatusReport
from avtd3.store.status import (
    CLEARED_S,
    DEAD_S,
    LATE_S,
    MAX_BYTES,
    Beat,
    Heartbeat,
    LearnerWatch,
    Observer,
    Seen,
    collector_of,
)


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now_s = 1_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def place(tmp_path):
    return LocalPlace(tmp_path)


def beat_of(name="car", role="collector", **fields):
    return Beat(role=role, name=name, id=f"{role}-{name}-1", **fields)


def write(place, beat):
    place.write(beat.key, beat.to_bytes())


def wait_for(condition):
    end_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_process_writes_heartbeats_and_a_last_one(place):
    observer = Observer([place])
    with Heartbeat([place], "learner", "run 1/é", interval_s=0.01) as heart:
        assert observer.look() == []  # nothing happens before the first progress
        heart.update(updates=5, waiting="waiting for data")
        wait_for(lambda: [seen.beat.sequence > 2 for seen in observer.look()] == [True])
        (seen,) = observer.look()
        assert seen.state == "running"
        assert (seen.beat.updates, seen.beat.waiting, seen.beat.pid) == (
            *(5, "waiting for data"),
            os.getpid(),
        )
    (seen,) = observer.look()
    assert (seen.state, seen.beat.name) == ("ended", "run 1/é")
    assert observer.problems == ()


def test_an_error_that_ends_a_process_is_in_its_last_heartbeat(place):
    def work():
        with Heartbeat([place], "collector", "car", interval_s=0.01) as heart:
            heart.update(steps=1)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        work()
    (seen,) = Observer([place]).look()
    assert seen.beat.is_ended
    assert seen.beat.alerts == ("ended by an error: boom",)


def test_a_read_only_place_does_not_disturb_the_work(tmp_path, place):
    tmp_path.joinpath("status").write_text("a file where the directory should be")
    with Heartbeat([place], "collector", "car", interval_s=0.01) as heart:
        for steps in range(20):
            heart.update(steps=steps)
            time.sleep(0.002)


def test_heartbeats_go_into_a_dataset_only_once_it_exists(tmp_path, place):
    dataset = LocalPlace(tmp_path / "data")
    with Heartbeat([place], "learner", "run", datasets=[dataset], interval_s=0.01) as heart:
        heart.update(updates=0)
        wait_for(lambda: Observer([place]).look())
        assert not dataset.path.exists()
        dataset.write("zarr.json", b"{}")
        wait_for(lambda: Observer([dataset]).look())


def test_the_observer_measures_the_age(place, clock):
    beat = beat_of(sequence=1)
    write(place, beat)
    observer = Observer([place], clock=clock)
    assert observer.look()[0].state == "running"
    states = {}
    for after_s in (LATE_S - 5.0, LATE_S + 1.0, DEAD_S + 1.0):
        clock.now_s = 1_000.0 + after_s
        states[after_s] = observer.look()[0].state
    assert list(states.values()) == ["running", "late", "dead"]
    write(place, dataclasses.replace(beat, sequence=2))
    assert observer.look()[0].state == "running"
    clock.now_s += CLEARED_S + 1.0
    assert observer.look() == []


@pytest.mark.parametrize("skew_s", [-1e6, -3600.0, 3600.0, 1e6])
def test_clocks_of_other_hosts_do_not_matter(place, clock, skew_s):
    path = place.path / beat_of().key
    write(place, beat_of(sequence=1, started="19700101T000000Z"))
    os.utime(path, (time.time() + skew_s, time.time() + skew_s))  # as rsync -t copies it
    observer = Observer([place], clock=clock)
    assert observer.look()[0].state == "running"


def test_a_sequence_that_goes_back_is_no_sign_of_life(place, clock):
    observer = Observer([place], clock=clock)
    write(place, beat_of(sequence=7))
    observer.look()
    clock.now_s += DEAD_S + 1.0
    write(place, beat_of(sequence=6))  # a late copy
    assert observer.look()[0].state == "dead"


def test_the_newest_copy_of_a_heartbeat_counts(tmp_path):
    old, new = LocalPlace(tmp_path / "a"), LocalPlace(tmp_path / "b")
    write(new, beat_of(sequence=5, steps=50))
    write(old, beat_of(sequence=4, steps=40))
    for places in ([old, new], [new, old]):
        (seen,) = Observer(places).look()
        assert (seen.beat.steps, seen.place) == (50, new.text)


BAD = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "deep": b"[" * 30_000,
    "no role": b'{"name": "car"}',
    "another role": b'{"role": "cook", "name": "car"}',
    "text for a number": b'{"role": "collector", "name": "car", "steps": "5"}',
    "not a number": b'{"role": "collector", "name": "car", "rate": NaN}',
    "huge number": b'{"role": "collector", "name": "car", "rate": 1' + b"0" * 400 + b"}",
    "negative": b'{"role": "collector", "name": "car", "steps": -5}',
    "nested acknowledgement": b'{"role": "learner", "name": "a", "acknowledged": {"a": {}}}',
    "no number of the heartbeat": b'{"role": "collector", "name": "car", "sequence": null}',
    "no process id": b'{"role": "collector", "name": "car", "pid": null}',
    "no time": b'{"role": "collector", "name": "car", "quiet_s": null}',
    "the id of another": b'{"role": "collector", "name": "car", "id": "collector-other"}',
    "too large": b" " * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_file_that_is_no_heartbeat_is_named_and_the_others_are_read(place, content):
    write(place, beat_of())
    place.write("status/bad.json", content)
    observer = Observer([place])
    assert [seen.beat.name for seen in observer.look()] == ["car"]
    (problem,) = observer.problems
    assert "bad.json is not a heartbeat" in problem
    assert len(problem) < 400
    assert not StatusReport([place.text], observer.look(), observer.problems).is_well


def test_a_pipe_among_the_heartbeats_does_not_block(place):
    place.path.joinpath("status").mkdir()
    os.mkfifo(place.path / "status" / "pipe.json")
    assert Observer([place]).look() == []


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(Beat)]), inner
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_bytes_raise_anything_but_value_error(data):
    with contextlib.suppress(ValueError):
        Beat.from_bytes(data)


def test_old_heartbeats_are_deleted_by_the_next_process(place, monkeypatch):
    write(place, beat_of("old"))
    monkeypatch.setattr(time, "time", lambda now_s=time.time: now_s() + CLEARED_S + 60.0)
    with Heartbeat([place], "collector", "car", interval_s=60.0) as heart:
        heart.update(steps=1)
        wait_for(lambda: not place.path.joinpath(beat_of("old").key).exists())


def test_old_heartbeats_in_a_bucket_are_deleted_in_the_time_of_the_bucket(tmp_path, monkeypatch):
    bucket, real = RemotePlace(f"memory://{tmp_path.name}"), RemotePlace.times
    old, young = beat_of("old"), beat_of("young")

    def times(place, prefix):
        ages_s = {old.key: CLEARED_S + 60.0, young.key: CLEARED_S - 60.0}
        return {key: at_s - ages_s.get(key, 0.0) for key, at_s in real(place, prefix).items()}

    for beat in (old, young):
        write(bucket, beat)
    monkeypatch.setattr(RemotePlace, "times", times)
    monkeypatch.setattr(time, "time", lambda now_s=time.time: now_s() + 10 * CLEARED_S)
    with Heartbeat([bucket], "collector", "car", interval_s=60.0) as heart:
        heart.update(steps=1)
        wait_for(lambda: old.key not in bucket.sizes(f"{status.STATUS}/"))
    assert young.key in bucket.sizes(f"{status.STATUS}/")
    assert len(bucket.sizes(f"{status.STATUS}/")) == 2


@pytest.mark.parametrize(
    ("name", "collector"),
    [
        ("20261130T081500.000000Z-car-000001-0f3a2b1c", "car"),
        ("20261130T081500.000000Z-my-car-7-000001-0f3a2b1c", "my-car-7"),
        ("golden", ""),
        ("", ""),
    ],
)
def test_the_collector_of_a_segment(name, collector):
    assert collector_of(name) == collector


def learner(sequence, seen, **fields):
    return beat_of("run", "learner", sequence=sequence, acknowledged={"car": seen}, **fields)


def test_a_collector_waits_only_for_a_learner_with_a_fresh_heartbeat(place, clock):
    watch = LearnerWatch([place], "car", clock=clock)
    assert watch.unseen(10_000) == 0  # there is no learner
    clock.now_s += 5.0
    write(place, learner(1, 400))
    assert watch.unseen(10_000) == 0  # what was published before does not count
    assert watch.unseen(10_700) == 700
    write(place, learner(2, 900))
    assert watch.unseen(10_700) == 700  # it looks every few seconds
    clock.now_s += 5.0
    assert watch.unseen(10_700) == 200
    write(place, learner(3, 900, waiting="waiting for more steps"))
    clock.now_s += 5.0
    assert watch.unseen(10_700) == 0
    write(place, learner(4, 900))
    clock.now_s += 5.0
    assert watch.unseen(10_700) == 200
    clock.now_s += LATE_S + 1.0
    assert watch.unseen(10_700) == 0  # a learner that was killed
    write(place, learner(5, 900, is_ended=True))
    clock.now_s += 5.0
    assert watch.unseen(10_700) == 0


def test_a_process_in_a_bucket_that_never_changes_is_late_and_dead(place, clock):
    answers = threading.Event()
    answers.set()
    bucket: Any = Stuck(place, answers)
    observer = Observer([bucket], clock=clock)
    write(place, beat_of(sequence=5))
    states = []
    for wait_s in (0.0, LATE_S - 1.0, 2.0, DEAD_S - LATE_S):
        clock.now_s += wait_s
        states += [seen.state for seen in observer.look()]
    assert states == ["unknown", "unknown", "late", "dead"]
    write(place, beat_of(sequence=6))
    assert [seen.state for seen in observer.look()] == ["running"]


class Stuck:
    """A bucket behind a cut link: answers come when the test allows it."""

    def __init__(self, place, answers):
        self.text, self.read, self._place, self._answers = "s3://b", place.read, place, answers

    def sizes(self, prefix):
        self._answers.wait()
        return self._place.sizes(prefix)


def test_a_collector_continues_while_a_look_at_the_learner_hangs(place, clock, monkeypatch):
    monkeypatch.setattr(status, "_LOOK_S", 0.01)
    answers = threading.Event()
    write(place, learner(1, 0))
    bucket: Any = Stuck(place, answers)
    watch = LearnerWatch([bucket], "car", clock=clock)
    assert [watch.unseen(100) for _ in range(3)] == [0, 0, 0]
    answers.set()
    while watch.unseen(100 + clock.now_s) == 0:
        clock.now_s += 5.0
        write(place, learner(int(clock.now_s), 0))


def test_the_report_knows_lag_and_alerts(place, clock):
    write(place, beat_of("run", "learner", sequence=1, policy_version=9, updates=50, target=100))
    write(place, beat_of("fast", sequence=1, policy_version=9, steps=5_000, rate=20.0))
    write(place, beat_of("slow", sequence=1, policy_version=4, steps=3_000, rate=10.0))
    write(place, beat_of("stuck", sequence=1, quiet_s=500.0, disk_free_bytes=10**8))
    observer = Observer([place], clock=clock)
    report = StatusReport([place.text], observer.look(), observer.problems)
    assert report.is_well
    assert report.lags == [0, 5]
    document = report.document()
    assert document["lag"] == {"min": 0, "mean": 2.5, "max": 5}
    assert [alert["process"] for alert in document["alerts"]] == ["stuck", "stuck"]
    assert "policy lag 0 / 2.5 / 5" in report.summary
    assert "30 steps/s" in report.summary
    json.dumps(document, allow_nan=False)
    clock.now_s += DEAD_S + 1.0
    report = StatusReport([place.text], observer.look(), observer.problems)
    assert not report.is_well
    assert report.lags == []


def test_hostile_text_is_escaped_on_the_page(place):
    hostile = beat_of("car", host="<script>alert(1)</script>\x1b[2J", alerts=("<img src=x>",))
    write(place, dataclasses.replace(hostile, name="\ud800<b>"))
    observer = Observer([place])
    page = StatusReport([place.text], observer.look(), observer.problems).page()
    assert "<script>" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "<b>" not in page
    page.encode("utf-8")


def test_the_page_and_the_summary_show_the_same_rate():
    beats = {"fast": 0.0, "slow": LATE_S + 1.0}
    seen = [Seen(beat_of(name, rate=15.0), "data", age_s) for name, age_s in beats.items()]
    report = StatusReport(["data"], seen, ())
    assert "30 steps/s" in report.summary
    assert "<dd>30/s</dd>" in report.page()
