"""States of the world: what was written is read, exactly; what contradicts itself is refused."""

import dataclasses
import json
from typing import Any

import hypothesis
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from avtd3.store import world_record
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import SegmentCorruptError, SpecError
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.manifest import Limits
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel
from avtd3.store.replaced import episode_digests
from avtd3.store.world_record import (
    MAX_SETUP_BYTES,
    WorldRecord,
    map_path,
    read_map,
    record_columns,
)
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.maintenance.datasets import SPEC, fill, identity
from avtd3.tests.store.segments import feed, make_episode, make_record

TEXT = "<OpenDRIVE/>"
INT64 = st.integers(-(2**63), 2**63 - 1)


def equal(one, other):
    return (
        one.setup == other.setup
        and one.ego.tobytes() == other.ego.tobytes()
        and np.array_equal(one.actors, other.actors)
    )


def found(path):
    """What the audit says of states, maps and arrays."""
    checks = ("state-bounds", "map-text", "array-metadata")
    return [finding for finding in audit([path]).findings if finding.check in checks]


def written(path, records, lengths):
    """A dataset of one segment of episodes with these records."""
    dataset = Dataset.create(path, SPEC)
    with SegmentWriter(dataset) as writer:
        for n, (record, length) in enumerate(zip(records, lengths, strict=True)):
            feed(writer, make_episode(SPEC, length, seed=n), record)
    return dataset


def test_records_are_read_as_they_were_written(tmp_path):
    lengths = [5, 1, 70, 3]
    records = [make_record(5, 1), None, make_record(70, 2, actors=7), make_record(3, 3, actors=0)]
    dataset = written(tmp_path / "data", records, lengths)
    read = [episode.world_record for episode in dataset.episodes()]
    assert read[1] is None
    assert all(equal(read[n], records[n]) for n in (0, 2, 3))
    # Anything that reads Zarr can read the arrays, and check them as docs/format.md says.
    (segment,) = dataset.snapshot().segments
    group: Any = zarr.open_group(segment.path, mode="r")
    assert json.loads(bytes(group["state_setup"][:]))[2] == records[2].setup
    first = group["state_ego"][: 3 * 6].reshape(3, 6).cumsum(axis=1).cumsum(axis=1)
    assert np.array_equal(first.view(np.float64).T, records[0].ego)
    assert np.array_equal(
        group["state_actor"][: 6 * 6].reshape(2, 3, 6).cumsum(axis=2).cumsum(axis=2),
        records[0].actors.transpose(1, 2, 0),
    )


@hypothesis.given(
    arrays.arrays(np.float64, (4, 3), elements=st.floats(allow_nan=False, allow_infinity=False)),
    arrays.arrays(np.int64, (4, 2, 3), elements=INT64),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_every_number_survives_the_differences(ego, actors):
    record = WorldRecord(setup={"actors": [1, 2]}, ego=ego, actors=actors).first(4)
    columns = record_columns([record])
    series = columns["state_ego"].reshape(1, 3, 4).cumsum(axis=2).cumsum(axis=2)
    assert series[0].T.copy().view(np.float64).tobytes() == ego.tobytes()
    series = columns["state_actor"].reshape(2, 3, 4).cumsum(axis=2).cumsum(axis=2)
    assert np.array_equal(series.transpose(2, 0, 1), actors)


def test_a_record_is_cut_to_its_episode(tmp_path):
    dataset = written(tmp_path / "data", [make_record(9)], [4])
    (episode,) = dataset.episodes()
    assert np.array_equal(episode.world_record.actors, make_record(9).actors[:5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ego": np.zeros((3, 3))}, "ego float64"),
        ({"ego": np.full((5, 3), np.inf)}, "not finite"),
        ({"actors": np.zeros((5, 2, 3))}, "expected float64"),
        ({"actors": np.zeros((5, 1, 3), np.int64)}, "expected float64"),
        ({"setup": {"actors": [1, 2], "x": np.nan}}, "not JSON"),
        ({"setup": {}}, "actors None, expected a list"),
        ({"setup": {"actors": 2}}, "actors 2, expected a list"),
        ({"setup": {"actors": [1, 2], "x": "y" * 300_000}}, "bytes"),
    ],
)
def test_a_record_that_cannot_be_stored_is_refused(tmp_path, changes, message):
    record = dataclasses.replace(make_record(4), **changes)
    with pytest.raises(SpecError, match=message):
        written(tmp_path / "data", [record], [4])


def test_a_record_as_large_as_allowed_is_read(tmp_path):
    record = make_record(4)
    rest = MAX_SETUP_BYTES - len(canonical_json({**record.setup, "x": ""}))
    record = dataclasses.replace(record, setup={**record.setup, "x": "y" * rest})
    (episode,) = written(tmp_path / "data", [record], [4]).episodes()
    assert equal(episode.world_record, record)


def test_a_segment_without_records_has_no_new_arrays(tmp_path):
    dataset = written(tmp_path / "data", [None], [4])
    (segment,) = dataset.snapshot().segments
    assert not [name for name in segment.files if name.startswith("state_")]
    assert segment.world_records() is None
    assert segment.map_digests() == frozenset()
    assert not (dataset.path / "maps").exists()


def test_the_state_is_part_of_what_an_episode_is(tmp_path):
    digests: list[str] = []
    for n, record in enumerate((None, make_record(4), make_record(4, seed=1))):
        dataset = written(tmp_path / f"{n}", [record], [4])
        without = ("episode_wall_time",)
        (segment,) = dataset.snapshot().segments
        digests += episode_digests(segment, without=without)
    assert len(set(digests)) == 3


def test_maintenance_keeps_states_and_maps(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[3, 2], [4], [2]], map_text=TEXT)
    before = [episode.world_record for episode in dataset.episodes()]
    known = identity(dataset)
    relabel(dataset.path, tmp_path / "new", {"r0": 2.0})
    compact(dataset.path, target_steps=100)
    assert len(dataset.segment_ids()) == 1
    assert identity(dataset) == known
    for path in (dataset.path, tmp_path / "new"):
        after = [episode.world_record for episode in Dataset.open(path).episodes()]
        assert all(map(equal, before, after))
        assert read_map(path, sha256(TEXT.encode())) == TEXT
        assert not found(path)


def test_the_audit_finds_a_missing_map_and_a_damaged_one(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[3]], map_text=TEXT)
    path = map_path(dataset.path, sha256(TEXT.encode()))
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-9]), path.unlink):
        damage()
        (finding,) = found(dataset.path)
        assert (finding.check, finding.severity) == ("map-text", "warning")
        assert path.name in finding.message


@pytest.mark.parametrize("name", ["state_setup", "state_ego", "state_actor"])
def test_a_flipped_bit_is_found(tmp_path, name):
    dataset = written(tmp_path / "data", [make_record(4)], [4])
    for file in sorted((dataset.snapshot().segments[0].path / name).rglob("*")):
        data = file.read_bytes() if file.is_file() else b""
        for place in range(0, len(data), 1 + len(data) // 8):
            file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            with pytest.raises(SegmentCorruptError) as error:
                dataset.snapshot().segments[0].world_records()
            assert str(error.value).count("copy it again from its source") == 1
        if data:
            file.write_bytes(data)
    assert dataset.snapshot().segments[0].world_records() is not None


def test_what_a_segment_claims_of_its_states_is_limited(tmp_path):
    dataset = written(tmp_path / "data", [make_record(4)], [4])
    (segment,) = dataset.snapshot().segments
    limits = Limits(max_raw_bytes=segment.raw_bytes)
    segment = dataset.open_segment(segment.id, limits=limits)
    segment.check_files()
    object.__setattr__(limits, "max_raw_bytes", 10)
    for read in (segment.world_records, segment.map_digests):
        with pytest.raises(SegmentCorruptError, match="bytes in memory, expected at most 10"):
            read()


def test_a_setup_that_is_no_json_is_refused(tmp_path, monkeypatch):
    record = dataclasses.replace(make_record(4), setup={**make_record(4).setup, "x": np.nan})
    with monkeypatch.context() as patch:
        patch.setattr(world_record, "canonical_json", lambda value: json.dumps(value).encode())
        dataset = written(tmp_path / "data", [record], [4])
    (segment,) = dataset.snapshot().segments
    with pytest.raises(SegmentCorruptError, match="not JSON compliant"):
        list(episode_digests(segment))


def test_states_that_do_not_fit_their_episodes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(WorldRecord, "first", lambda self, observations: self)
    dataset = written(tmp_path / "data", [make_record(2)], [4])
    (segment,) = dataset.snapshot().segments
    with pytest.raises(SegmentCorruptError, match="state_ego has 9 values, expected 15"):
        segment.world_records()
    assert [finding.check for finding in found(dataset.path)] == ["state-bounds"]
