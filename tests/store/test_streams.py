"""Datasets with several named streams: what is written is read, and nothing else is touched."""

import dataclasses
import datetime
import re

import numpy as np
import pytest

from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import SpecError
from avtd3.store.format.codec import FrameCodec
from avtd3.store.maintenance.compact import compact
from avtd3.store.render.audit_view import audit_page, choose_episodes
from avtd3.store.render.episode_view import write_episode_gif, write_episode_sheet
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import FrameStack, Observation
from avtd3.tests.store.segments import (
    STREAMS,
    assert_holds,
    feed,
    make_episode,
    make_spec,
    make_writer,
    observation,
    write_dataset,
)

SPEC = make_spec(streams=tuple(STREAMS))


def make_episodes(*lengths):
    return [make_episode(SPEC, length, seed) for seed, length in enumerate(lengths)]


@pytest.fixture
def written(tmp_path):
    episodes = make_episodes(3, 1, 6)
    return write_dataset(tmp_path / "d", SPEC, episodes, segment_steps=4), episodes


def test_a_spec_with_streams_is_one_of_format_2():
    assert SPEC.format_version == 2
    assert EpisodeSpec.from_json(SPEC.to_json()) == SPEC
    assert make_spec().format_version == 1
    assert "stride" not in make_spec().to_json()["image"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": ImageSpec()}, "an image and streams"),
        ({"streams": {"Rgb": ImageSpec()}}, "a stream named 'Rgb'"),
        ({"streams": {"../x": ImageSpec()}}, "a stream named '../x'"),
        ({"streams": {f"s{n}": ImageSpec() for n in range(33)}}, "expected up to 32"),
        ({"streams": {"rgb": 3}}, "stream rgb is 3"),
        ({"streams": {}, "image": ImageSpec(stride=2)}, "a stride needs a named stream"),
    ],
)
def test_an_impossible_spec_is_refused(changes, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        dataclasses.replace(SPEC, **changes)


@pytest.mark.parametrize("streams", [None, {}, {"rgb": {"size": 3}}, {"rgb": None}])
def test_an_invalid_document_is_refused(streams):
    with pytest.raises(SpecError, match="stream"):
        EpisodeSpec.from_json({**SPEC.to_json(), "streams": streams})


def test_some_streams_can_be_selected():
    chosen = SPEC.select(["rgb"])
    assert dict(chosen.images) == {"rgb": STREAMS["rgb"]}
    assert chosen.vector_names == SPEC.vector_names
    assert SPEC.select() is SPEC
    assert make_spec().select(["image"]) == make_spec()
    with pytest.raises(SpecError, match="no stream 'left', expected one of: bev, gray, rgb"):
        SPEC.select(["left"])


def test_a_policy_needs_only_its_streams():
    assert not SPEC.lacks(SPEC.select(["rgb"]))
    assert "streams" in SPEC.lacks(make_spec())
    other = dataclasses.replace(SPEC, streams={"rgb": ImageSpec(channels=3)})
    assert "streams" in SPEC.lacks(other)
    assert "streams" in SPEC.select(["rgb"]).lacks(SPEC)


@pytest.mark.parametrize("codec", [FrameCodec(), FrameCodec(name="zstd"), FrameCodec(name="auto")])
def test_what_is_written_is_read(tmp_path, codec):
    episodes = make_episodes(3, 1, 300)
    dataset = write_dataset(tmp_path / "d", SPEC, episodes, codec=codec, segment_steps=4)
    assert_holds(Dataset.open(dataset.path), episodes)
    for segment in dataset.snapshot().segments:
        segment.verify()


def test_an_episode_has_its_streams(written):
    dataset, episodes = written
    episode, want = list(dataset.episodes())[2], episodes[2]
    assert list(episode.streams) == ["bev", "gray", "rgb"]
    for name, frames in want.streams.items():
        np.testing.assert_array_equal(episode.streams[name], frames)
    stacks = episode.observations(stream="rgb")
    assert stacks.shape == (7, 6, 7, 9)
    np.testing.assert_array_equal(stacks[5, :3], want.streams["rgb"][2])  # a stride of 3
    np.testing.assert_array_equal(stacks[2, :3], want.streams["rgb"][0])
    with pytest.raises(SpecError, match="no stream was named, expected one of: bev, gray, rgb"):
        _ = episode.frames
    with pytest.raises(SpecError, match="no stream 'left'"):
        episode.read_frames(0, 1, stream="left")


def test_an_episode_can_be_written_again(written, tmp_path):
    dataset, episodes = written
    copy = Dataset.create(tmp_path / "copy", SPEC)
    with make_writer(copy) as writer:
        for episode, given in zip(dataset.episodes(), episodes, strict=True):
            writer.begin(episode.observation(0), **given.info)
            for step in episode.steps():
                writer.add(step)
    assert_holds(copy, episodes)


def test_a_wrong_observation_is_refused_and_adds_nothing(tmp_path):
    episode = make_episodes(3)[0]
    with make_writer(Dataset.create(tmp_path / "d", SPEC)) as writer:
        good = observation(episode, 0)
        lacking = {name: frame for name, frame in good.streams.items() if name != "rgb"}
        wrong = {**good.streams, "rgb": good.streams["rgb"][:1]}
        for streams, message in (
            (None, "has the streams [], expected bev, gray, rgb"),
            (lacking, "['bev', 'gray'], expected bev, gray, rgb"),
            (wrong, "stream rgb is uint8 (1, 7, 9), expected uint8 (3, 7, 9)"),
        ):
            with pytest.raises(SpecError, match=re.escape(message)):
                writer.begin(dataclasses.replace(good, streams=streams))
        feed(writer, episode)
    assert_holds(writer._dataset, [episode])


def test_streams_are_refused_where_the_spec_has_none(tmp_path):
    spec = make_spec()
    episode = make_episode(spec, 3)
    given = dataclasses.replace(observation(episode, 0), streams={"rgb": episode.frames[0]})
    writer = make_writer(Dataset.create(tmp_path / "d", spec))
    with pytest.raises(SpecError, match=r"has the streams \['rgb'\], expected none"):
        writer.begin(given)


def test_a_strided_stack_skips_observations():
    stack = FrameStack(3, stride=2)
    stack.reset(np.zeros((1, 1, 1), np.uint8))
    for value in range(1, 6):
        stack.push(np.full((1, 1, 1), value, np.uint8))
    assert stack.stacked()[:, 0, 0].tolist() == [1, 3, 5]


def test_an_observation_names_its_streams():
    frame = np.zeros((1, 2, 2), np.uint8)
    assert list(Observation(image=frame).images) == ["image"]
    assert list(Observation(streams={"rgb": frame}).images) == ["rgb"]
    assert repr(Observation(streams={"rgb": frame})) == "Observation(rgb uint8 (1, 2, 2))"


def test_compaction_keeps_every_stream(written):
    dataset, episodes = written
    assert compact(dataset.path).merged_segments == 2
    assert len(dataset.segment_ids()) == 1
    assert_holds(dataset, episodes)


def test_compaction_does_not_merge_more_than_fits_into_memory(written, monkeypatch):
    dataset, _ = written
    most = max(segment.raw_bytes for segment in dataset.snapshot().segments)
    monkeypatch.setattr("avtd3.store.maintenance.compact.MAX_RAW_BYTES", most)
    assert compact(dataset.path).merged_segments == 0


def test_a_damaged_stream_is_found_and_the_others_stay_readable(written):
    dataset, _ = written
    (segment, *_) = dataset.snapshot().segments
    shard = segment.path / "frames_rgb/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    segment.read_frames(stream="gray")
    with pytest.raises(ValueError, match="frames_rgb"):
        segment.read_frames(stream="rgb")
    assert audit([dataset.path]).damaged


def test_audit_and_pictures_show_each_stream(written, tmp_path):
    dataset, _ = written
    report = audit([dataset.path])
    assert not [finding for finding in report.findings if finding.severity == "error"]
    made = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    page = audit_page(report, choose_episodes([dataset.path]), made=made)
    for name in STREAMS:
        assert f"mean grey of {name}" in page
        assert f"<p>{name}</p>" in page
    episode = next(dataset.episodes())
    write_episode_sheet(episode, tmp_path / "sheet.png")
    write_episode_gif(episode, tmp_path / "episode.gif")
    assert (tmp_path / "episode.gif").stat().st_size > 1000
