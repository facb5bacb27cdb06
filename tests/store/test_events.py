"""Stored events: back as they went in, merged, relabelled, audited, absent from old segments."""

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest
import zarr

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import SegmentCorruptError, SpecError
from avtd3.store.events import Event, EventTable, check_events, most_events
from avtd3.store.format.codec import seal
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel
from avtd3.store.replaced import episode_digests
from avtd3.store.writer import SegmentWriter, WriterConfig
from avtd3.tests.golden.make_events import EVENTS as GOLDEN_EVENTS
from avtd3.tests.store.audit.test_audit import reseal
from avtd3.tests.store.format.test_golden import GOLDEN
from avtd3.tests.store.segments import begin, make_episode, make_spec, step

SPEC = make_spec()
AUDIT = AuditConfig(scheduler="sync")


def event(step, kind="collision", **values):
    known = {"subject": "vehicle", "value": 1.5, "x_m": 10.0, "y_m": -3.25}
    return Event(step=step, kind=kind, **{**known, **values})


EVENTS = (
    (event(0, "route", subject="", value=200.0), event(2), event(2, "goal", subject="")),
    (),
    (event(4, "été", subject="\ud800 wall", x_m=-0.0),),
)


def write(path, *, segments=1, events=EVENTS, lengths=(3, 4, 5)):
    dataset = Dataset.create(path, SPEC)
    config = WriterConfig(segment_steps=1 if segments > 1 else 10_000)
    writer = SegmentWriter(
        dataset, collector="t", provenance={}, config=config, clock=lambda: 1.8e9
    )
    for number, (length, happened) in enumerate(zip(lengths, events, strict=True)):
        episode = make_episode(SPEC, length, number, index=number)
        begin(writer, episode)
        for n in range(length):
            step(writer, episode, n)
        writer.end(episode.reason, happened)
    writer.close()
    return dataset


def stored(dataset):
    return [
        () if (table := segment.events()) is None else table.of_episode(number)
        for segment in dataset.snapshot().segments
        for number in range(segment.episodes)
    ]


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "d")


def only(dataset):
    (segment,) = dataset.snapshot().segments
    return segment


def test_events_come_back_as_they_went_in(dataset):
    assert stored(dataset) == list(EVENTS)
    only(dataset).verify()
    assert audit([dataset.path], AUDIT).log.count("error") == 0


def test_segments_without_events_have_no_arrays_for_them(tmp_path):
    dataset = write(tmp_path / "d", events=((), (), ()))
    segment = only(dataset)
    assert segment.events() is None
    assert not any(name.startswith("event_") for name in segment.files)
    golden = Dataset.open(GOLDEN / "dataset-v1")
    assert [segment.events() for segment in golden.snapshot().segments] == [None]


def test_the_golden_events_are_read():
    """The bytes that were committed when events came."""
    segment = only(Dataset.open(GOLDEN / "events-v1"))
    segment.verify()
    table = segment.events()
    assert table is not None
    assert (table.of_episode(0), table.of_episode(1)) == ((), GOLDEN_EVENTS)


def test_what_does_not_know_events_reads_the_rest_the_same(tmp_path):
    with_events, without = (
        only(write(tmp_path / name, events=events))
        for name, events in (("a", EVENTS), ("b", ((), (), ())))
    )
    assert with_events.names == without.names
    for name in without.names:
        np.testing.assert_array_equal(with_events.read(name), without.read(name))
        shared = f"{name}/zarr.json"
        assert with_events.files[shared] == without.files[shared]


@pytest.mark.filterwarnings("ignore:Object at MANIFEST.json")
def test_plain_zarr_reads_them(dataset):
    group: Any = zarr.open_group(only(dataset).path, mode="r")
    assert group["event_step"][:].tolist() == [0, 2, 2, 4]
    assert group["event_episode"][:].tolist() == [0, 0, 0, 2]
    names = group["event_kind"].attrs["categories"]
    assert names[group["event_kind"][0]] == "route"


def test_merging_keeps_them_and_their_digests(tmp_path):
    dataset = write(tmp_path / "d", segments=3)
    before = [d for s in dataset.snapshot().segments for d in episode_digests(s)]
    assert len(dataset.snapshot().segments) == 3
    compact(dataset.path)
    after = list(episode_digests(only(Dataset.open(dataset.path))))
    assert after == before
    assert stored(Dataset.open(dataset.path)) == list(EVENTS)


def test_an_event_is_part_of_what_an_episode_is(tmp_path):
    other = ((*EVENTS[0][:2], dataclasses.replace(EVENTS[0][2], value=2.0)), *EVENTS[1:])
    first, second = (
        list(episode_digests(only(write(tmp_path / name, events=events))))
        for name, events in (("a", EVENTS), ("b", other))
    )
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True, True]


def test_relabelling_keeps_them(dataset, tmp_path):
    relabel(dataset.path, tmp_path / "new", {"r0": 2.0})
    assert stored(Dataset.open(tmp_path / "new")) == list(EVENTS)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([event(3)], "of step 3, expected 0 to 2"),
        ([event(-1)], "of step -1"),
        ([event(2), event(1)], "of step 1, expected 2 to 2"),
        ([event(0, value=float("nan"))], "not finite"),
        ([event(0, x_m=float("inf"))], "not finite"),
        ([event(0, kind="")], "kind must have 1 to 512 characters"),
        ([event(0, subject="x" * 513)], "kind must have 1 to 512 characters"),
        ([event(0)] * 33, "33 events in 3 steps"),
        ([event(0.5)], "of step 0.5, expected 0 to 2"),
        ([event("0")], "of step '0', expected 0 to 2"),
        ([event(0, x_m="10")], "not finite"),
        ([event(0, kind=5)], "kind must have 1 to 512 characters"),
        ([event(0, subject=None)], "kind must have 1 to 512 characters"),
    ],
)
def test_the_writer_refuses_events_that_no_episode_has(events, message):
    with pytest.raises(SpecError, match=message):
        check_events(events, 3)


def test_a_truncated_episode_has_events_too(tmp_path):
    dataset = Dataset.create(tmp_path / "d", SPEC)
    with SegmentWriter(dataset, collector="t", provenance={}) as writer:
        episode = make_episode(SPEC, 3)
        begin(writer, episode)
        for n in range(2):
            step(writer, episode, n, last=False)
        writer.truncate("collector_stop", [event(1)])
    assert stored(dataset) == [(event(1),)]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("event_step", [0, 2, 3, 4], r"event 2 is of step 3 of episode 0, expected 0 to 2"),
        ("event_step", [0, 2, -1, 4], "event 2 is of step -1"),
        ("event_step", [2, 0, 2, 4], "event 1 is earlier"),
        ("event_episode", [0, 0, 0, 3], "event 3 is of episode 3, expected 0 to 2"),
        ("event_episode", [0, 0, -1, 2], "event 2 is of episode -1"),
        ("event_episode", [2, 0, 0, 2], "event 1 is earlier"),
        ("event_x", [0.0, np.nan, 0.0, 0.0], "event 1 has a number that is not finite"),
    ],
)
def test_events_that_contradict_their_episodes_are_found(dataset, name, values, message):
    dtype = "float64" if name == "event_x" else "int64"
    data = {f"{name}/c/0": seal(np.array(values, dtype).tobytes())}
    reseal(only(dataset).path, data=data)
    with pytest.raises(SegmentCorruptError, match=message):
        only(Dataset.open(dataset.path)).events()
    report = audit([dataset.path], AUDIT)
    (found,) = [finding for finding in report.findings if finding.severity == "error"]
    assert found.check == "event-bounds"
    assert message.split(",")[0] in found.message


def test_an_event_array_that_is_missing_or_claims_too_much_is_corrupt(dataset):
    segment = only(dataset)
    path = segment.path / "event_episode" / "zarr.json"
    document = json.loads(path.read_text())
    for shape in ([0], [10**9], [4, 4], ["4"], None):
        document["shape"] = shape
        reseal(segment.path, data={"event_episode/zarr.json": json.dumps(document).encode()})
        with pytest.raises(SegmentCorruptError, match=r"expected 1 to \d+ rows"):
            only(Dataset.open(dataset.path)).events()
        assert "array-metadata" in audit([dataset.path], AUDIT).log.counts


def test_a_flipped_byte_is_noticed(dataset):
    path = only(dataset).path / "event_value" / "c" / "0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(SegmentCorruptError, match="event_value"):
        only(dataset).events()


def test_a_truncated_event_array_is_detected(dataset):
    shutil.rmtree(only(dataset).path / "event_kind")
    (refused,) = dataset.snapshot().refused
    assert "event_kind" in refused.reason


def test_the_most_events_a_segment_may_hold_follow_from_its_steps():
    assert most_events(steps=3, episodes=1) == 32
    assert len(EventTable.of([[event(0)] * 32])) == 32
