import dataclasses
import errno
import re
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avtd3.store import writer as writer_module
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import stored_attributes
from avtd3.store.errors import ConfigError, SegmentCorruptError, SpecError, StorageError
from avtd3.store.format.codec import FrameCodec
from avtd3.store.seal import FrameBuffer, StepColumns
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation, Step
from avtd3.store.writer import SegmentWriter, WriterConfig
from avtd3.tests.store.disk import failing
from avtd3.tests.store.segments import (
    Clock,
    assert_holds,
    begin,
    feed,
    make_episode,
    make_spec,
    make_writer,
    observation,
    step,
    write_dataset,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


specs = st.builds(
    make_spec,
    channels=st.sampled_from([1, 3]),
    image=st.booleans(),
    vector=st.integers(1, 3),
    terms=st.integers(0, 2),
)
codecs = st.builds(
    FrameCodec,
    name=st.sampled_from(["lz4hc", "zstd", "raw", "auto"]),
    level=st.integers(1, 9),
    chunk_frames=st.integers(1, 5),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spec=specs,
    codec=codecs,
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    segment_steps=st.integers(1, 20),
)
def test_round_trip(tmp_path_factory, spec, codec, lengths, segment_steps):
    path = tmp_path_factory.mktemp("round") / "d"
    episodes = [make_episode(spec, length, seed) for seed, length in enumerate(lengths)]
    dataset = write_dataset(path, spec, episodes, codec=codec, segment_steps=segment_steps)
    assert_holds(dataset, episodes)
    for segment in dataset.snapshot().segments:
        segment.verify()
    assert list(dataset.staging_path.iterdir()) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), codec=codecs)
def test_flushes_interruptions_and_discards_in_any_order(tmp_path_factory, data, codec):
    spec = make_spec()
    dataset = Dataset.create(tmp_path_factory.mktemp("any") / "d", spec)
    writer = make_writer(dataset, codec=codec, segment_steps=15)
    whole = []
    for seed in range(data.draw(st.integers(1, 5))):
        episode = make_episode(spec, data.draw(st.integers(1, 9)), seed)
        begin(writer, episode)
        stop = data.draw(st.integers(0, episode.length))
        for n in range(stop):
            if data.draw(st.booleans()):
                writer.flush()
            step(writer, episode, n)
        if stop == episode.length:
            writer.end(episode.reason)
        else:
            writer.truncate("collector_stop")
            episode = cut(episode, stop)
        if stop:
            whole.append(episode)
        if data.draw(st.booleans()):
            writer.flush()
    begin(writer, make_episode(spec, 3, 99))  # a running episode that close discards
    writer.close()
    assert_holds(dataset, whole)


def cut(episode, length):
    episode.frames, episode.vector = episode.frames[: length + 1], episode.vector[: length + 1]
    episode.action, episode.terms = episode.action[:length], episode.terms[:length]
    episode.reward = episode.reward[:length]
    episode.terminated, episode.reason = False, "collector_stop"
    return episode


@pytest.fixture
def dataset(tmp_path):
    return Dataset.create(tmp_path / "d", make_spec())


def test_a_segment_closes_at_the_end_of_the_episode_that_reaches_its_steps(dataset):
    writer = make_writer(dataset, segment_steps=5)
    assert feed(writer, make_episode(dataset.spec, 4)) is None
    assert writer.steps_unpublished == 4
    published = feed(writer, make_episode(dataset.spec, 3, 1))
    assert (published.episodes, published.steps, writer.steps_unpublished) == (2, 7, 0)
    assert published.path == dataset.segments_path / published.segment_id
    on_disk = sum(p.stat().st_size for p in published.path.rglob("*") if p.is_file())
    assert published.size_bytes == writer.bytes_published == on_disk


def test_a_segment_closes_when_it_is_old(dataset):
    clock = Clock()
    writer = make_writer(dataset, clock=clock, segment_seconds=30.0)
    assert feed(writer, make_episode(dataset.spec, 1)) is None
    clock.now += 29.0
    assert feed(writer, make_episode(dataset.spec, 1, 1)) is None
    clock.now += 1.0
    assert feed(writer, make_episode(dataset.spec, 1, 2)).episodes == 3
    assert feed(writer, make_episode(dataset.spec, 1, 3)) is None  # the next starts young


def test_a_clock_that_goes_back_closes_segments_by_its_new_time(dataset):
    clock = Clock()
    writer = make_writer(dataset, clock=clock, segment_seconds=30.0)
    assert feed(writer, make_episode(dataset.spec, 1)) is None
    clock.now -= 5000.0
    assert feed(writer, make_episode(dataset.spec, 1, 1)) is None
    clock.now += 30.0
    assert feed(writer, make_episode(dataset.spec, 1, 2)).episodes == 3


def test_frames_of_zeros_are_written_like_any_others(tmp_path):
    """zarr-python does not write a chunk of zeros, and so cannot detect that one is missing."""
    spec = make_spec()
    episode = make_episode(spec, 9)
    episode.frames[:] = 0
    dataset = write_dataset(tmp_path / "d", spec, [episode])
    (segment,) = dataset.snapshot().segments
    shard = segment.frame_shard()
    assert len(shard.spans) == 3
    assert (shard.spans[:, 1] > shard.spans[:, 0]).all()
    assert_holds(dataset, [episode])


def test_names_sort_by_time_and_are_plain_even_when_the_clock_goes_back(dataset):
    clock = Clock()
    writer = make_writer(dataset, clock=clock, collector="host-1_a", segment_steps=1)
    names = []
    for seed, shift in enumerate((0.0, 1.0, -5000.0, 0.0, 1e-6)):
        clock.now += shift
        names.append(feed(writer, make_episode(dataset.spec, 1, seed)).segment_id)
    assert names == sorted(names) == dataset.segment_ids()
    for number, name in enumerate(names, 1):
        pattern = rf"\d{{8}}T\d{{6}}\.\d{{6}}Z-host-1_a-{number:06d}-[0-9a-f]{{8}}"
        assert re.fullmatch(pattern, name)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b", "a" * 65, "ä", "a\n"])
def test_collector_names_that_are_no_directory_names_are_refused(dataset, name):
    with pytest.raises(ConfigError, match="collector"):
        make_writer(dataset, collector=name)


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"x", "x" * 2_000_000])
def test_provenance_that_is_no_short_json_is_refused(dataset, value):
    with pytest.raises(SpecError, match="provenance"):
        SegmentWriter(dataset, collector="a", provenance={"config": value})


@pytest.mark.parametrize(
    "setting", [{"segment_steps": 0}, {"segment_steps": 1.5}, {"segment_seconds": float("nan")}]
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        WriterConfig(**setting)


OBSERVED = ("image", "vector", "frame_id", "sim_time_s")


def good_step(spec, **changes):
    """Keywords of `SegmentWriter.step`; changes may be of its observation, too."""
    episode = make_episode(spec, 1)
    seen = observation(episode, 1)
    seen = dataclasses.replace(seen, **{k: v for k, v in changes.items() if k in OBSERVED})
    return {
        "action": episode.action[0],
        "reward": None,
        "observation": seen,
        "reward_terms": episode.terms[0],
        "terminated": True,
        **{k: v for k, v in changes.items() if k not in OBSERVED},
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", np.zeros(3, np.float32)),
        ("action", np.zeros(2, np.float64)),
        ("action", [0.0, 0.0]),
        ("action", np.array([0.0, 0.6], np.float32)),
        ("action", np.array([0.0, np.nan], np.float32)),
        ("action", None),
        ("reward", 17.0),
        ("reward", float("nan")),
        ("reward_terms", np.array([np.inf, 0.0], np.float32)),
        ("reward_terms", np.array([np.nan, 0.0], np.float32)),
        ("reward_terms", np.full(2, 3e38, np.float32)),
        ("reward_terms", None),
        ("image", np.zeros((1, 6, 5), np.int8)),
        ("image", np.zeros((6, 5), np.uint8)),
        ("image", None),
        ("vector", np.array([0.0, np.nan, 0.0], np.float32)),
        ("vector", np.zeros(3)),
        ("vector", None),
        ("observation", np.zeros((1, 6, 5), np.uint8)),
        ("end_reason", "x" * 513),
        ("terminated", 1),
        ("truncated", None),
        ("frame_id", 1.5),
        ("frame_id", 2**63),
        ("sim_time_s", float("inf")),
    ],
)
def test_a_step_that_is_not_of_the_spec_is_refused_and_leaves_nothing(dataset, field, value):
    episode = make_episode(dataset.spec, 2)
    writer = make_writer(dataset)
    begin(writer, episode)
    step(writer, episode, 0)
    with pytest.raises(SpecError, match=field.split("_")[0]):
        writer.step(**good_step(dataset.spec, **{field: value}))
    step(writer, episode, 1)
    writer.end(episode.reason)
    writer.close()
    assert_holds(dataset, [episode])


def test_the_vector_message_names_the_number(dataset):
    writer = make_writer(dataset)
    begin(writer, make_episode(dataset.spec, 1))
    bad = good_step(dataset.spec, vector=np.array([0.0, np.nan, 0.0], np.float32))
    with pytest.raises(SpecError, match="not finite at v1"):
        writer.step(**bad)


def test_what_the_spec_has_not_must_not_be_given(tmp_path):
    spec = make_spec(image=False, terms=0)
    writer = make_writer(Dataset.create(tmp_path / "d", spec))
    episode = make_episode(spec, 1)
    begin(writer, episode)
    with pytest.raises(SpecError, match="reward is None"):
        writer.step(**good_step(make_spec(), image=None, reward_terms=None))
    with pytest.raises(SpecError, match="image was given"):
        writer.step(**good_step(make_spec(), reward=1.0, reward_terms=None))


def test_a_reward_near_the_sum_of_its_terms_is_taken_as_the_sum(dataset):
    terms = np.array([1.1, -50.3], np.float32)
    writer = make_writer(dataset)
    begin(writer, make_episode(dataset.spec, 1))
    rough = float(np.float32(terms[0] + terms[1]))
    writer.step(**good_step(dataset.spec, reward=rough, reward_terms=terms))
    writer.end("collision")
    writer.close()
    (segment,) = dataset.snapshot().segments
    assert segment.read("reward")[0] == np.float32(terms.astype(np.float64).sum())


@pytest.mark.parametrize(
    "field",
    [
        {"seed": 2**63},
        {"seed": 1.5},
        {"index": True},
        {"town": None},
        {"driver": "x" * 513},
        {"exploration_noise": float("nan")},
        {"exploration_noise": 1e39},
        {"exploration_noise": 10**400},
        {"scenario": 1.5},
        {"lap": float("nan")},
        {"lap": [1]},
        {"grip": "x" * 513},
        {"length": 3},
        {"no-name": 3},
        {f"a{n}": n for n in range(65)},
    ],
)
def test_impossible_episode_values_are_refused(dataset, field):
    writer = make_writer(dataset)
    name = next(iter(field))
    with pytest.raises(SpecError, match="attributes" if name == "a0" else name):
        writer.begin(observation(make_episode(dataset.spec, 1), 0), **field)
    feed(writer, make_episode(dataset.spec, 1))


def test_calls_in_the_wrong_order_are_refused(dataset):
    episode = make_episode(dataset.spec, 2)
    writer = make_writer(dataset)
    with pytest.raises(SpecError, match="no episode is running"):
        step(writer, episode, 0)
    with pytest.raises(SpecError, match="no running episode"):
        writer.end("x")
    begin(writer, episode)
    with pytest.raises(SpecError, match="an episode is running"):
        begin(writer, episode)
    with pytest.raises(SpecError, match="at least one step"):
        writer.end("x")
    step(writer, episode, 0)
    with pytest.raises(SpecError, match="call truncate"):
        writer.end("x")
    step(writer, episode, 1)
    with pytest.raises(SpecError, match="no episode is running"):
        step(writer, episode, 1)
    writer.end("time_limit")
    assert writer.truncate("x") is None
    writer.close()
    with pytest.raises(SpecError, match="closed"):
        begin(writer, episode)


def test_nothing_is_published_without_a_whole_episode(dataset):
    writer = make_writer(dataset)
    assert writer.flush() is None
    begin(writer, make_episode(dataset.spec, 3))
    assert writer.truncate("collector_stop") is None  # no step yet: dropped
    begin(writer, make_episode(dataset.spec, 3))
    step(writer, make_episode(dataset.spec, 3), 0)
    assert writer.flush() is None
    assert writer.close() is None
    assert writer.close() is None
    assert dataset.segment_ids() == []


def test_an_exception_publishes_what_is_whole(dataset):
    first, second = make_episode(dataset.spec, 3), make_episode(dataset.spec, 4, 1)

    def drive():
        with make_writer(dataset) as writer:
            feed(writer, first)
            begin(writer, second)
            step(writer, second, 0)
            raise RuntimeError("simulator died")

    with pytest.raises(RuntimeError, match="simulator"):
        drive()
    assert_holds(dataset, [first])


def test_an_interrupt_inside_a_step_costs_only_that_step(dataset, monkeypatch):
    episode = make_episode(dataset.spec, 4)
    writer = make_writer(dataset)
    begin(writer, episode)
    for n in range(2):
        step(writer, episode, n)

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(FrameCodec, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(writer, episode, 2)
    monkeypatch.undo()
    writer.truncate("collector_stop")
    feed(writer, make_episode(dataset.spec, 3, 7))
    writer.close()
    assert_holds(dataset, [cut(episode, 2), make_episode(dataset.spec, 3, 7)])


@pytest.mark.parametrize("place", [(StepColumns, "drop"), (FrameBuffer, "drop")])
@pytest.mark.parametrize("is_running", [False, True])
def test_an_interrupt_after_publishing_publishes_nothing_twice(
    dataset, monkeypatch, place, is_running
):
    first, second, third = (make_episode(dataset.spec, 3, seed) for seed in range(3))
    writer = make_writer(dataset)
    feed(writer, first)
    if is_running:
        begin(writer, second)
        step(writer, second, 0)

    def interrupted(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
    feed(writer, third)
    writer.close()
    assert_holds(dataset, [first, third])


def test_a_segment_has_no_more_steps_than_its_readers_allow(dataset, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_STEPS", 6)
    episodes = [make_episode(dataset.spec, 4, seed) for seed in range(2)]
    with make_writer(dataset, segment_steps=6) as writer:
        for episode in episodes:
            feed(writer, episode)
    assert [segment.steps for segment in dataset.snapshot().segments] == [4, 4]
    assert_holds(dataset, episodes)
    with (
        make_writer(dataset, segment_steps=6) as writer,
        pytest.raises(SpecError, match="6 steps, the most"),
    ):
        feed(writer, make_episode(dataset.spec, 7))


@pytest.mark.parametrize("chunk_frames", [4, 64])
def test_few_large_frames_in_a_chunk_are_read(tmp_path, chunk_frames):
    spec = make_spec(height=1100, width=1100)
    episode = make_episode(spec, 1)
    codec = FrameCodec(chunk_frames=chunk_frames)
    dataset = write_dataset(tmp_path / "d", spec, [episode], codec=codec)
    assert_holds(dataset, [episode])


def test_a_text_may_differ_in_each_of_many_episodes(tmp_path):
    spec = make_spec(image=False, vector=1, terms=0)
    dataset = Dataset.create(tmp_path / "d", spec)
    writer = make_writer(dataset, segment_steps=10_000)
    at, action = Observation(vector=np.zeros(1, np.float32)), np.zeros(2, np.float32)
    for number in range(2_200):
        writer.begin(at, note=f"{number:0512}")
        writer.step(action, 1.0, at, terminated=True)
    writer.close()
    assert dataset.episode_table().texts("note")[-1] == f"{2_199:0512}"


def count_operations(dataset):
    writer = make_writer(dataset)
    feed(writer, make_episode(dataset.spec, 2, 50))
    with failing(dataset.path) as disk:
        writer.flush()
    return disk.count


def test_a_disk_that_fills_up_at_any_moment_costs_nothing(tmp_path):
    spec = make_spec()
    total = count_operations(Dataset.create(tmp_path / "count", spec))
    assert total > 100
    dataset = Dataset.create(tmp_path / "d", spec)
    writer = make_writer(dataset)
    episodes, kinds = [], set()
    # The first two make directories that are there already, which is no failure.
    for k in [*range(3, total + 1, 19), total - 1, total]:
        episodes.append(make_episode(spec, 2, k))
        feed(writer, episodes[-1])
        running = make_episode(spec, 3, 1000 + k)
        begin(writer, running)
        step(writer, running, 0)
        refusal = pytest.raises(StorageError, match="disk is full")
        with failing(dataset.path, k, errno.ENOSPC) as faulty, refusal:
            writer.flush()
        kinds.add(faulty.failed)
        assert faulty.failed == "unlink" or list(dataset.staging_path.iterdir()) == []
        step(writer, running, 1)
        writer.flush()
        step(writer, running, 2)
        writer.end(running.reason)
        episodes.append(running)
    writer.close()
    assert kinds >= {"write", "fsync", "mkdir"}
    assert_holds(dataset, episodes)  # each exactly once, in order


def test_a_full_disk_at_the_end_of_an_episode_can_be_retried(dataset):
    writer = make_writer(dataset, segment_steps=1)
    with failing(dataset.path, 5, errno.EROFS), pytest.raises(StorageError, match="read-only"):
        feed(writer, make_episode(dataset.spec, 2))
    assert writer.steps_unpublished == 2
    assert feed(writer, make_episode(dataset.spec, 2, 1)).episodes == 2


def test_two_writers_at_once(dataset):
    fed = {name: [make_episode(dataset.spec, 3, seed) for seed in range(8)] for name in "ab"}

    def run(name):
        with make_writer(dataset, collector=name, segment_steps=3) as writer:
            for episode in fed[name]:
                feed(writer, episode)

    threads = [threading.Thread(target=run, args=(name,)) for name in fed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = dataset.snapshot()
    assert (len(snapshot.segments), snapshot.refused) == (16, ())
    for name in fed:
        mine = [s for s in snapshot.segments if s.provenance["collector"] == name]
        for segment, episode in zip(mine, fed[name], strict=True):
            np.testing.assert_array_equal(segment.read_frames(), episode.frames)


VICTIM = """
    import sys
    from avtd3.store.dataset import Dataset
    from avtd3.tests.store.segments import feed, make_episode, make_writer
    dataset = Dataset.open(sys.argv[1])
    writer = make_writer(dataset, collector=sys.argv[2], segment_steps=3)
    for seed in range(10_000):
        feed(writer, make_episode(dataset.spec, 3, seed))
        print(seed, flush=True)
"""


def test_a_killed_collector_leaves_whole_segments_only(dataset):
    reported = 0
    for kill, published in enumerate((1, 2, 4)):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(VICTIM), str(dataset.path), f"c{kill}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process:
            for _ in range(published):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        assert process.returncode == -signal.SIGKILL
        reported += published + len(rest)
        snapshot = dataset.snapshot()
        assert snapshot.refused == ()
        for segment in snapshot.segments:
            segment.verify()
            seed = int(segment.episode_table().seed[0])
            want = make_episode(dataset.spec, 3, seed)
            np.testing.assert_array_equal(segment.read_frames(), want.frames)
    # What was reported is there; of what was being written, at most one segment per kill.
    assert reported <= len(dataset.segment_ids()) <= reported + 3
    dataset.clean_staging()
    assert list(dataset.staging_path.iterdir()) == []


def vector_spec(**changes):
    return EpisodeSpec(vector_names=("x_m",), action_names=("push",), **changes)


def seen(value=0.0, **about):
    return Observation(vector=np.full(1, value, np.float32), **about)


PUSH = np.zeros(1, np.float32)


def test_everything_that_a_generic_user_does_not_have_has_a_default(tmp_path):
    spec = vector_spec(control_period_s=0.5)
    Dataset.create(tmp_path / "d", spec)
    with SegmentWriter(tmp_path / "d") as writer:
        writer.begin(seen())
        writer.step(PUSH, 1.0, seen(1.0))
        writer.step(PUSH, 2.0, seen(2.0), truncated=True)
        writer.begin(seen())
        writer.add(Step(action=PUSH, reward=3.0, observation=seen(4.0), terminated=True))
        writer.begin(seen())
        writer.step(PUSH, 0.0, seen(), terminated=True, end_reason="goal")
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    table = segment.episode_table()
    assert table.end_reason == ["truncated", "terminated", "goal"]
    assert table.length.tolist() == [2, 1, 1]
    assert table.episode_return.tolist() == [3.0, 3.0, 0.0]
    assert segment.read("frame_id").tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert segment.read("sim_time").tolist() == [0.0, 0.5, 1.0, 0.0, 0.5, 0.0, 0.5]
    assert segment.read("vector")[:, 0].tolist() == [0.0, 1.0, 2.0, 0.0, 4.0, 0.0, 0.0]
    assert [table.attributes_of(n) for n in range(3)] == [{}, {}, {}]
    assert segment.provenance["collector"] == "writer"


def test_an_end_reason_belongs_to_the_last_step(tmp_path):
    writer = SegmentWriter(Dataset.create(tmp_path / "d", vector_spec()))
    writer.begin(seen())
    with pytest.raises(SpecError, match="end_reason is 'goal', but the step is not"):
        writer.step(PUSH, 0.0, seen(), end_reason="goal")


def test_attributes_are_stored_per_episode(tmp_path):
    given: list[dict[str, Any]] = [
        {"town": "Town01", "lap": 3, "grip": 0.5, "tyres": "soft"},
        {"lap": 4, "grip": 2, "scenario": 0},
        {"lap": np.int64(5), "tyres": "hard", "Driver2": "x"},
    ]
    dataset = Dataset.create(tmp_path / "d", vector_spec())
    with SegmentWriter(dataset) as writer:
        for attributes in given:
            writer.begin(seen(), **attributes)
            writer.step(PUSH, 1.0, seen(), terminated=True)
    (segment,) = dataset.snapshot().segments
    segment.verify()
    table = segment.episode_table()
    assert [table.attributes_of(n) for n in range(3)] == given
    assert table.numbers("lap").dtype == np.int64
    assert table.texts("lap") == ["3", "4", "5"]
    assert table.texts("tyres") == ["soft", "", "hard"]
    np.testing.assert_array_equal(table.numbers("grip"), [0.5, 2.0, np.nan])
    assert not [f for f in audit([dataset.path]).findings if f.severity == "error"]


def test_an_attribute_is_a_text_or_a_number_in_all_episodes(tmp_path):
    writer = SegmentWriter(Dataset.create(tmp_path / "d", vector_spec()))
    writer.begin(seen(), lap=1)
    writer.step(PUSH, 1.0, seen(), terminated=True)
    with pytest.raises(SpecError, match="lap is 'one', expected a number as in an earlier"):
        writer.begin(seen(), lap="one")
    writer.begin(seen(), lap=2.5)


def test_arrays_named_as_reserved_attributes_are_ignored():
    class Files:
        def names(self):
            return [f"attribute_{name}" for name in ("lap", "seed", "length", "town", "9")]

        def dtype(self, array, allowed):
            return "int64"

    files: Any = Files()
    assert list(stored_attributes(files, episodes=2)) == ["attribute_lap"]


def test_a_damaged_attribute_is_noticed(tmp_path):
    dataset = Dataset.create(tmp_path / "d", vector_spec())
    with SegmentWriter(dataset) as writer:
        writer.begin(seen(), lap=1)
        writer.step(PUSH, 1.0, seen(), terminated=True)
    (name,) = dataset.segment_ids()
    chunk = dataset.segments_path / name / "attribute_lap" / "c" / "0"
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(SegmentCorruptError, match="attribute_lap"):
        dataset.open_segment(name).episode_table()
