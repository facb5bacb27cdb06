"""The log: what is published is found, at a cost of what is new."""

import gzip
import json
import math
import time
from typing import Any

import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.remote import log
from avtd3.store.remote.client import LocalPlace, open_place
from avtd3.store.remote.commit import Unit
from avtd3.store.remote.log import LogEntry, LogReader, add_entry, summarise_days
from avtd3.store.remote.transfer import SegmentCopier, create_dataset, transfer
from avtd3.tests.store.remote.datasets import copy, make

DAY_S = 86_400.0
NOON_S = 1_700_000_000.0 // DAY_S * DAY_S + DAY_S / 2


def entry(name, time_s, steps=10, **more):
    return LogEntry(
        segment=name, time_s=time_s, steps=steps, episodes=1, size_bytes=100, manifest_digest="d",
        **more,
    )  # fmt: skip


class Counting:
    """A place that counts requests."""

    def __init__(self, place):
        self._place, self.text, self.calls = place, place.text, []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self._place, name)


@pytest.fixture
def place(tmp_path):
    pytest.importorskip("obstore")
    return open_place(f"memory://{tmp_path.name}")


def names(entries):
    return [each.segment for each in entries]


def test_an_entry_survives_its_object():
    made = entry("s", 5.0, plan="p", unit=3, indices=(0, 1), lengths=(4, 6), replaces=("a",))
    document = json.loads(made.to_bytes())
    assert LogEntry.from_json(document | {"later": 1}) == made
    with pytest.raises(ValueError, match="out of range"):
        LogEntry.from_json(document | {"segment": "../x"})


@pytest.mark.parametrize(
    "content",
    [
        b"[]", b"[" * 100_000, b'{"segment": "s"}', b"\xff", b"1e999",
        *(
            json.dumps(json.loads(entry("s", 5.0).to_bytes()) | {name: value}).encode()
            for name, value in [
                ("steps", "9"), ("steps", True), ("segment", ["s"]), ("time_s", math.inf),
                ("time_s", math.nan), ("time_s", 1e300), ("time_s", "5"), ("size_bytes", -1),
            ]
        ),
    ],
)  # fmt: skip
def test_what_is_no_entry_is_ignored(place, content):
    add_entry(place, entry("good", NOON_S))
    place.write("log/20231114T120000.000000Z-s~10.json", content)
    place.write("log/20231399T120000.000000Z-s~10.json", b"no such day")
    day = "log-day/20231113-000000000009.jsonl.gz"
    for damaged in (b"", b"no gzip", gzip.compress(b"{}\n" * 9)[:-3], gzip.compress(content)):
        place.write(day, damaged)
        reader = LogReader(place)
        assert names(reader.open()) == ["good"]
        assert reader.refresh() == []
    summarise_days(place, NOON_S + 9 * DAY_S)


def test_a_wrong_clock_summarises_no_day_that_has_not_ended(place):
    now = time.time()
    for age_s in (5 * DAY_S, 0.0):
        add_entry(place, entry(f"age-{age_s:g}", now - age_s))
    (done,) = summarise_days(place, now + 9 * DAY_S)
    assert done == time.strftime("%Y%m%d", time.gmtime(now - 5 * DAY_S))
    add_entry(place, entry("later", now))
    assert len(LogReader(place).open()) == 3


def test_a_refresh_lists_once_and_reads_what_is_new(place, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOON_S + 100.0)
    for number in range(50):
        add_entry(place, entry(f"s{number}", NOON_S + number))
    counting: Any = Counting(place)
    reader = LogReader(counting)
    assert names(reader.open()) == [f"s{number}" for number in range(50)]
    counting.calls.clear()
    assert reader.refresh() == []
    assert counting.calls == ["sizes"]
    counting.calls.clear()
    for number in (50, 51):
        add_entry(place, entry(f"s{number}", NOON_S + number))
    assert names(reader.refresh()) == ["s50", "s51"]
    assert counting.calls == ["sizes", "read", "read"]


@pytest.mark.parametrize(("overlap_s", "is_found"), [(900.0, True), (0.0, False)])
def test_late_and_skewed_entries_are_found_within_the_overlap(
    place, monkeypatch, overlap_s, is_found
):
    monkeypatch.setattr(log, "OVERLAP_S", overlap_s)
    now = [NOON_S]
    monkeypatch.setattr(time, "time", lambda: now[0])
    reader = LogReader(place)
    add_entry(place, entry("a", NOON_S - 1.0))
    reader.open()
    # A writer whose clock is 2 s behind stalled for 3 s; another one's clock is ahead by a day.
    add_entry(place, entry("ahead", NOON_S + DAY_S))
    now[0] += 10.0
    assert "ahead" in names(reader.refresh())
    add_entry(place, entry("late", NOON_S - 5.0))
    assert ("late" in names(reader.refresh())) == is_found
    now[0] += 10.0
    add_entry(place, entry("next", now[0] + 1.0))
    assert names(reader.refresh()) == ["next"], "the clock that is ahead hides nothing"


def test_an_entry_that_a_listing_lacks_stays(place, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOON_S)
    add_entry(place, entry("a", NOON_S))
    reader = LogReader(place)
    reader.open()
    place.delete(place.sizes("log/"))
    assert reader.refresh() == []
    assert names(reader.segments.values()) == ["a"]


def test_days_are_summarised_once_and_opening_reads_only_those_that_it_needs(place, monkeypatch):
    now = NOON_S + 10 * DAY_S
    monkeypatch.setattr(time, "time", lambda: now)
    for day in range(11):
        for number in range(4):
            add_entry(place, entry(f"d{day:02}-{number}", NOON_S + day * DAY_S + number))
    days = summarise_days(place, now)
    assert len(days) == 9, "today and yesterday are not over for all clocks"
    assert summarise_days(place, now) == []
    counting: Any = Counting(place)
    reader = LogReader(counting)
    found = names(reader.open(steps=100))
    assert reader.older_steps == 8 * 40, "known from the names of the summaries"
    # 8 entries of two days without summary, and as many days of 40 steps as are missing.
    assert found == [f"d{day:02}-{number}" for day in range(8, 11) for number in range(4)]
    assert counting.calls.count("read") == 8 + 1
    counting.calls.clear()
    assert reader.refresh() == []
    assert counting.calls == ["sizes"]
    assert len(LogReader(place).open(math.inf)) == 44


def test_repeats_of_a_unit_are_dropped_by_readers(place, monkeypatch):
    """A store that ignores conditions may keep two segments of one unit."""
    monkeypatch.setattr(time, "time", lambda: NOON_S)
    add_entry(place, entry("a", NOON_S, plan="p", unit=0))
    add_entry(place, entry("b", NOON_S + 1, plan="p", unit=0))
    add_entry(place, entry("c", NOON_S + 2, plan="p", unit=1))
    add_entry(place, entry("d", NOON_S + 3, plan="p"))
    add_entry(place, entry("e", NOON_S + 4, plan="p"))
    assert names(LogReader(place).open()) == ["a", "c", "d", "e"]


def test_a_repeat_of_a_unit_stays_dropped_by_the_listing_of_all_and_by_copies(
    place, tmp_path, monkeypatch
):
    place.__dict__["honours_conditions"] = False
    data, unit = make(tmp_path / "data", [(2,), (3,)]), Unit(plan="p", number=0)
    first, second = data.segment_ids()
    create_dataset(LocalPlace(data.path), place, (data.path / "zarr.json").read_bytes())
    with SegmentCopier(LocalPlace(data.path), place) as copier:
        copy(copier, first, unit=unit)
        place.delete([unit.key])  # what the other process saw when it looked
        copy(copier, second, unit=unit)
    monkeypatch.setattr(log, "BACKSTOP_S", 0.0)
    reader = LogReader(place)
    assert names(reader.open()) == [first]
    assert reader.refresh() == []
    assert transfer(place.text, tmp_path / "back").copied == 1
    assert Dataset.open(tmp_path / "back").segment_ids() == [first]


def test_segments_without_an_entry_are_found_by_the_listing_of_all(place, tmp_path, monkeypatch):
    data = make(tmp_path / "data")
    local = LocalPlace(data.path)
    create_dataset(local, place, local.read("zarr.json"))
    with SegmentCopier(local, place) as copier:
        for name in data.segment_ids():
            copy(copier, name)
    place.delete(place.sizes("log/"))
    reader = LogReader(place)
    assert names(reader.open()) == data.segment_ids(), "such as one that rclone copied"
    monkeypatch.setattr(log, "BACKSTOP_S", 0.0)
    reader = LogReader(place)
    add_entry(place, entry(data.segment_ids()[0], NOON_S))
    reader.open()
    assert set(names(reader.refresh())) >= set(data.segment_ids()[1:])


def test_a_damaged_entry_is_ignored(place):
    place.write(f"log/{log.stamp(NOON_S)}-x.json", b"{")
    place.write(f"log/{log.stamp(NOON_S)}-y.json", b'{"segment": 3}')
    place.write("log/other", b"")
    add_entry(place, entry("a", NOON_S + 1))
    assert names(LogReader(place).open()) == ["a"]


def dated(time_s, name="x"):
    return f"{log.stamp(time_s)}-{name}"


def test_opening_reads_no_more_entries_of_today_than_it_needs(place, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOON_S + 5000.0)
    monkeypatch.setattr(log, "_AT_ONCE", 10)
    for number in range(100):
        at_s = NOON_S + number
        add_entry(place, entry(dated(at_s), at_s + 0.5))
    counting: Any = Counting(place)
    reader = LogReader(counting)
    found = names(reader.open(steps=150))
    assert found == [dated(NOON_S + number) for number in range(80, 100)]
    assert counting.calls.count("read") == 20
    assert reader.older_steps == 800
    counting.calls.clear()
    assert reader.refresh() == []
    assert counting.calls == ["sizes"], "the others are known, and not read later"


def test_entries_of_earlier_versions_whose_keys_lack_the_steps_are_read(place, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOON_S)
    monkeypatch.setattr(log, "_AT_ONCE", 2)
    for number in range(6):
        made = entry(dated(NOON_S + number), NOON_S + number)
        place.write(made.key.replace("~10", ""), made.to_bytes())
    assert len(LogReader(place).open(steps=10)) == 6
    assert log.logged_segments(place) == ({dated(NOON_S + n) for n in range(6)}, set())


def test_a_merged_segment_that_was_published_late_is_not_taken_for_new_steps(place, monkeypatch):
    """Today, all of the first day was merged: the newest steps are still those of the last days."""
    now = NOON_S + 10 * DAY_S
    monkeypatch.setattr(time, "time", lambda: now)
    for day in range(8):
        for number in range(4):
            at_s = NOON_S + day * DAY_S + number
            add_entry(place, entry(dated(at_s), at_s))
    old = [dated(NOON_S + number) for number in range(4)]
    add_entry(place, entry(dated(NOON_S, "merged"), now - 2.0, steps=40, replaces=tuple(old)))
    for number, name in enumerate(old):
        gone = {"removed": True, "replaced_by": dated(NOON_S, "merged")}
        add_entry(place, entry(name, now - 1.0 + number / 10.0, **gone))
    summarise_days(place, now)
    reader = LogReader(place)
    found = names(reader.open(steps=40))
    assert sorted(found)[-4:] == [dated(NOON_S + 7 * DAY_S + number) for number in range(4)]
    assert reader.older_steps == 7 * 40, "of days that were not read"
    assert set(reader.removed) == set(old)
    assert set(names(LogReader(place).open())).isdisjoint(old)
    summarise_days(place, now + 5 * DAY_S)
    assert [key[8:] for key in place.sizes("log-day/")][-1].endswith("-000000000000.jsonl.gz")
    assert set(LogReader(place).open()) == set(LogReader(place).open(10**6))
    later = LogReader(place)
    assert set(names(later.open())).isdisjoint(old)
    assert set(later.removed) == set(old)
