import contextlib
import math
import os
import struct

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c
from tensorboard.util.tensor_util import make_tensor_proto

from avtd3.learn.analysis import event_log
from avtd3.learn.analysis.event_log import find_event_files, read_log
from avtd3.learn.analysis.metric_names import nearest
from avtd3.store.errors import ConfigError


def points(log, tag):
    curve = log.curves[tag]
    return list(zip(curve.updates.tolist(), curve.values.tolist(), strict=True))


def by_tensorboard(directory, tag):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(point.step, point.value) for point in accumulator.Scalars(tag)]


def test_a_run_is_read_whole(tmp_path, write_run):
    run = write_run(
        tmp_path, {"critic/loss": [(100, 2.0), (200, 1.0)], "actor/loss": [(200, -1.0)]}
    )
    log = read_log(run)
    assert points(log, "critic/loss") == [(100, 2.0), (200, 1.0)]
    assert points(log, "actor/loss") == [(200, -1.0)]
    assert log.tags == ("actor/loss", "critic/loss")
    assert log.last_step == 200
    assert not log.notices
    assert not log.damaged


def test_only_what_is_wanted_is_kept(tmp_path, write_run):
    run = write_run(tmp_path, {"critic/loss": [(1, 2.0)], "actor/loss": [(7, -1.0)]})
    log = read_log(run, {"critic/loss"})
    assert set(log.curves) == {"critic/loss"}
    assert log.tags == ("actor/loss", "critic/loss")
    assert log.last_step == 7


def test_a_resumed_run_has_each_step_once(tmp_path, write_run):
    write_run(tmp_path, {"critic/loss": [(s, 1.0) for s in range(1, 11)]})
    write_run(tmp_path, {"critic/loss": [(s, 2.0) for s in range(6, 13)]}, first_step=6)
    log = read_log(tmp_path)
    assert points(log, "critic/loss") == [(s, 1.0 if s < 6 else 2.0) for s in range(1, 13)]
    assert points(log, "critic/loss") == by_tensorboard(tmp_path / "events", "critic/loss")
    assert "5 points were dropped" in log.notices[0]
    assert len(log.files) == 2


def test_a_run_cut_back_ends_where_it_was_cut(tmp_path, write_run):
    write_run(tmp_path, {"critic/loss": [(s, 1.0) for s in range(1, 11)]})
    write_run(tmp_path, {}, first_step=4)
    log = read_log(tmp_path)
    assert log.last_step == 3
    assert [step for step, _ in points(log, "critic/loss")] == [1, 2, 3]


def test_files_are_taken_in_the_order_of_their_names(tmp_path, write_foreign):
    write_foreign(tmp_path, {"a": [(5, 2.0)]}, name="events.out.tfevents.2", restart=3)
    write_foreign(tmp_path, {"a": [(s, 1.0) for s in range(1, 6)]}, name="events.out.tfevents.1")
    assert points(read_log(tmp_path), "a") == [(1, 1.0), (2, 1.0), (5, 2.0)]


@pytest.mark.parametrize("version", [None, "brain.Event:1"])
def test_files_without_a_version_are_cut_where_steps_go_back(tmp_path, write_foreign, version):
    series = {"a": [(1, 1.0), (2, 1.0), (3, 1.0), (2, 5.0), (3, 5.0)]}
    write_foreign(tmp_path, series, version=version)
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.0), (2, 5.0), (3, 5.0)]
    if version is None:
        assert points(log, "a") == by_tensorboard(tmp_path, "a")


def test_steps_that_go_back_without_a_mark_are_kept_and_reported(tmp_path, write_foreign):
    write_foreign(tmp_path, {"a": [(1, 1.0), (3, 3.0), (2, 2.0)]})
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert "go back" in log.notices[0]


def test_values_that_are_not_finite_are_read(tmp_path, write_foreign):
    write_foreign(tmp_path, {"a": [(1, math.nan), (2, math.inf), (3, -math.inf)]})
    values = read_log(tmp_path).curves["a"].values
    np.testing.assert_array_equal(values, [math.nan, math.inf, -math.inf])


def test_scalars_of_the_new_kind_are_read_and_other_tensors_are_not(tmp_path):
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    first = Summary.Value(tag="a", tensor=make_tensor_proto(1.5), metadata=plugin)
    values = [
        (1, first),
        (2, Summary.Value(tag="a", tensor=make_tensor_proto(2.5))),  # says no plugin again
        (3, Summary.Value(tag="text", tensor=make_tensor_proto(["words"]))),
        (4, Summary.Value(tag="a", tensor=make_tensor_proto([1.0, 2.0]))),
    ]
    records = RecordWriter((tmp_path / "events.out.tfevents.1").open("wb"))
    for step, value in values:
        records.write(Event(step=step, summary=Summary(value=[value])).SerializeToString())
    records.close()
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.5), (2, 2.5)]
    assert log.tags == ("a",)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_truncated_end_is_skipped_and_reported(tmp_path, write_foreign, cut):
    path = write_foreign(tmp_path, {"a": [(1, 1.0), (2, 2.0), (3, 3.0)]})
    path.write_bytes(path.read_bytes()[:-cut])
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.0), (2, 2.0)]
    assert "ends inside a record" in log.notices[0]
    assert path.name in log.notices[0]
    assert not log.damaged


def test_a_truncated_file_hides_nothing_of_the_next(tmp_path, write_foreign):
    path = write_foreign(tmp_path, {"a": [(1, 1.0), (2, 2.0)]}, name="events.out.tfevents.1")
    path.write_bytes(path.read_bytes()[:-3])
    write_foreign(tmp_path, {"a": [(2, 9.0)]}, name="events.out.tfevents.2", restart=2)
    assert points(read_log(tmp_path), "a") == [(1, 1.0), (2, 9.0)]


def test_every_flipped_bit_is_reported(tmp_path, write_foreign):
    path = write_foreign(tmp_path, {"a": [(1, 1.0), (2, 2.0)]})
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 0x10
        path.write_bytes(data)
        log = read_log(tmp_path)
        assert len(log.damaged) == 1, place
        assert "checksum" in log.damaged[0]
        assert f"{path.name} fails" in log.damaged[0]


def test_a_record_that_is_not_an_event_is_reported(tmp_path, write_foreign):
    path = write_foreign(tmp_path, {"a": [(1, 1.0)]})
    with path.open("ab") as file:
        RecordWriter(file).write(b"\xff\xff\xff")
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.0)]
    assert "holds no event" in log.damaged[0]


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "events.out.tfevents.1").touch()
    log = read_log(tmp_path)
    assert log.last_step is None
    assert not log.curves


def test_a_run_may_be_named_in_three_ways(tmp_path, write_run):
    run = write_run(tmp_path / "run", {"critic/loss": [(1, 1.0)]})
    (file,) = find_event_files(run)
    assert find_event_files(run / "events") == [file]
    assert find_event_files(file) == [file]


def test_directories_below_are_suggested(tmp_path, write_run):
    for name in ("one", "two"):
        write_run(tmp_path / name, {"critic/loss": [(1, 1.0)]})
    with pytest.raises(ConfigError, match=r"2 directories below.*one/events, .*two/events"):
        read_log(tmp_path)


@pytest.mark.parametrize("name", ["missing", "empty", "file.txt"])
def test_what_is_not_a_run_is_one_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(ConfigError, match=name):
        read_log(tmp_path / name)


def test_memory_is_bounded(tmp_path, write_foreign, monkeypatch):
    monkeypatch.setattr(event_log, "MAX_POINTS", 3)
    write_foreign(tmp_path, {"a": [(1, 1.0), (2, 1.0)], "b": [(1, 1.0), (2, 1.0)]})
    assert points(read_log(tmp_path, {"a"}), "a") == [(1, 1.0), (2, 1.0)]
    with pytest.raises(ConfigError, match="more than 3 points"):
        read_log(tmp_path)


def test_tags_files_and_bytes_are_bounded(tmp_path, write_foreign, monkeypatch):
    first = write_foreign(tmp_path, {"a": [(1, 1.0)], "b": [(1, 1.0)]}, name="tfevents.1")
    write_foreign(tmp_path, {"c": [(1, 1.0)]}, name="tfevents.2")
    with monkeypatch.context() as patch:
        patch.setattr(event_log, "MAX_TAGS", 2)
        with pytest.raises(ConfigError, match="more than 2 different"):
            read_log(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(event_log, "MAX_FILES", 1)
        with pytest.raises(ConfigError, match="2 event files"):
            read_log(tmp_path)
    size = first.stat().st_size
    monkeypatch.setattr(event_log, "MAX_BYTES", size)
    assert read_log(first).last_step == 1
    with pytest.raises(ConfigError, match=f"at most .* and {size:,} bytes"):
        read_log(tmp_path)


def append_record(path, data):
    with path.open("ab") as file:
        RecordWriter(file).write(data)


def test_a_record_that_is_too_large_is_skipped(tmp_path, write_foreign, monkeypatch):
    monkeypatch.setattr(event_log, "MAX_RECORD_BYTES", 100)
    path = write_foreign(tmp_path, {"a": [(1, 1.0)]})
    append_record(path, b"x" * 101)
    scalar = Summary(value=[Summary.Value(tag="a", simple_value=2.0)])
    append_record(path, Event(step=2, summary=scalar).SerializeToString())
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.0), (2, 2.0)]
    assert "1 records too large" in log.notices[0]
    assert not log.damaged


def test_a_length_beyond_the_file_takes_no_memory(tmp_path, write_foreign):
    path = write_foreign(tmp_path, {"a": [(1, 1.0)]})
    append_record(path, b"")
    head = struct.pack("<Q", 1 << 62)
    path.write_bytes(
        path.read_bytes()[:-16] + head + struct.pack("<I", masked_crc32c(head)) + b"...."
    )
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.0)]
    assert "ends inside a record" in log.notices[0]


def test_a_tensor_that_claims_a_huge_shape_is_no_scalar(tmp_path):
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    huge = make_tensor_proto(1.5)
    huge.tensor_shape.dim.add(size=1 << 50)
    text, short = make_tensor_proto(["words"]), make_tensor_proto(2.5)
    short.tensor_content = b"\0\0"
    values = [
        Summary.Value(tag=f"{i}", tensor=t, metadata=plugin)
        for i, t in enumerate((huge, text, short))
    ]
    path = tmp_path / "events.out.tfevents.1"
    path.touch()
    append_record(path, Event(step=1, summary=Summary(value=values)).SerializeToString())
    assert read_log(tmp_path).tags == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_scalars_of_each_type_are_read(tmp_path, dtype):
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    plain = make_tensor_proto(dtype(3))
    packed = make_tensor_proto(0, dtype=np.dtype(dtype))
    packed.Clear()
    packed.MergeFrom(type(packed)(dtype=plain.dtype, tensor_content=np.array(4, dtype).tobytes()))
    path = tmp_path / "events.out.tfevents.1"
    path.touch()
    for step, tensor in enumerate((plain, packed)):
        value = Summary.Value(tag="a", tensor=tensor, metadata=plugin)
        append_record(path, Event(step=step, summary=Summary(value=[value])).SerializeToString())
    assert points(read_log(tmp_path), "a") == [(0, 3.0), (1, 4.0)]


def naive(events, *, versioned):
    """Apply the rules for restarts to (step, tag, value) and ("start", step), point by point."""
    kept: dict[str, list[tuple[int, float]]] = {}
    most_recent = -1
    for event in events:
        if event[0] == "start":
            if versioned:
                for series in kept.values():
                    series[:] = [p for p in series if p[0] < event[1]]
            continue
        step, tag, value = event
        series = kept.setdefault(tag, [])
        if not versioned and step < most_recent:
            series[:] = [p for p in series if p[0] < step]
        else:
            most_recent = step
        series.append((step, value))
    return {tag: sorted(series, key=lambda point: point[0]) for tag, series in kept.items()}


def write_events(path, events, *, versioned=True):
    with contextlib.closing(RecordWriter(path.open("wb"))) as records:
        if versioned:
            records.write(Event(file_version="brain.Event:2").SerializeToString())
        for event in events:
            if event[0] == "start":
                log = SessionLog(status=SessionLog.START)
                record = Event(step=event[1], session_log=log)
            else:
                scalar = Summary.Value(tag=event[1], simple_value=event[2])
                record = Event(step=event[0], summary=Summary(value=[scalar]))
            records.write(record.SerializeToString())


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_restarts_drop_what_a_slow_reader_drops(tmp_path, seed, versioned):
    rng = np.random.default_rng(seed)
    events = [
        ("start", int(rng.integers(-2, 12)))
        if rng.random() < 0.2
        else (int(rng.integers(-2, 12)), "abc"[rng.integers(3)], float(number))
        for number in range(60)
    ]
    write_events(tmp_path / "events.out.tfevents.1", events, versioned=versioned)
    log = read_log(tmp_path)
    expected = naive(events, versioned=versioned)
    assert {tag: points(log, tag) for tag in log.curves} == expected
    read = sum(event[0] != "start" for event in events)
    dropped = read - sum(map(len, expected.values()))
    assert any(f"{dropped:,} points were dropped" in notice for notice in log.notices) == (
        dropped > 0
    )


COUNT = 15_000
BACKWARD = [(step, "a", 0.0) for step in range(COUNT, 0, -1)]
HOSTILE = {
    "steps that go back": (BACKWARD, False),
    "steps that go back before many that stay": (
        [(step, "a", 0.0) for step in range(COUNT)] + BACKWARD,
        False,
    ),
    "restarts": ([("start", 5), (9, "a", 0.0)] * COUNT, True),
    "restarts of unsorted points": (
        [(step, "a", 0.0) for step in range(COUNT, 0, -1)] + [("start", COUNT), (COUNT, "a", 0.0)],
        True,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_order_of_steps_takes_time_in_proportion(tmp_path, name, monkeypatch):
    """The points are looked at once for each tag, however often its steps go back."""
    kept = event_log._Series.kept
    looks: list[object] = []

    def look(series):
        looks.append(series)
        return kept(series)

    monkeypatch.setattr(event_log._Series, "kept", look)
    events, versioned = HOSTILE[name]
    write_events(tmp_path / "events.out.tfevents.1", events, versioned=versioned)
    assert points(read_log(tmp_path), "a")
    assert len(looks) == 1


@pytest.mark.parametrize(
    "step", [-(2**63), -(2**63) + 1, -(2**53) - 1, 2**53 + 1, 2**63 - 1], ids=str
)
def test_a_step_that_no_float_represents_is_skipped(tmp_path, step):
    events = [(1, "a", 1.0), (step, "a", 2.0), ("start", step if step > 0 else 3), (3, "a", 3.0)]
    write_events(tmp_path / "events.out.tfevents.1", events)
    log = read_log(tmp_path)
    assert points(log, "a") == [(1, 1.0), (3, 3.0)]
    assert any("1 scalars skipped" in notice for notice in log.notices)
    assert log.last_step == 3


def test_a_value_whose_square_overflows_counts_as_infinite(tmp_path):
    with contextlib.closing(RecordWriter((tmp_path / "tfevents").open("wb"))) as records:
        for step, value in enumerate((1e308, -1e71, 3e38, 1e-300)):
            tensor = make_tensor_proto(value, dtype=np.float64)
            metadata = SummaryMetadata()
            metadata.plugin_data.plugin_name = "scalars"
            scalar = Summary.Value(tag="a", tensor=tensor, metadata=metadata)
            records.write(Event(step=step, summary=Summary(value=[scalar])).SerializeToString())
    values = read_log(tmp_path).curves["a"].values.tolist()
    assert values == [math.inf, -math.inf, 3e38, 1e-300]


def test_a_huge_tag_is_skipped_and_never_suggested(tmp_path, write_foreign):
    huge = "loss " * 1_000_000
    write_foreign(tmp_path, {huge: [(1, 1.0)], "x" * 1000: [(1, 1.0)], "critic/los": [(1, 1.0)]})
    log = read_log(tmp_path)
    assert log.tags == ("critic/los", "x" * 1000)
    assert any("1 scalars skipped" in notice for notice in log.notices)
    assert nearest("critic/loss", log.tags) == "critic/los"


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_an_event_file_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "events.out.tfevents.1"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for run in (tmp_path, path):
        with pytest.raises(ConfigError):
            read_log(run)
