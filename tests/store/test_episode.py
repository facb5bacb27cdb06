"""`Dataset.episodes` and `Dataset.episode_table`: what was written is read, lazily, by filter."""

import shutil
from typing import Any
from unittest import mock

import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    ConfigError,
    MissingPackageError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SpecError,
)
from avtd3.store.filters import EpisodeFilter
from avtd3.store.format.manifest import Limits
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel
from avtd3.store.segment import Segment
from avtd3.store.step import FrameStack
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.segments import Clock, assert_holds, make_episode, make_spec, write_dataset

SPEC = make_spec(channels=3)
EPISODES = [make_episode(SPEC, length, seed) for seed, length in enumerate((5, 3, 7, 1))]


@pytest.fixture
def dataset(tmp_path):
    """Two segments of two episodes."""
    return write_dataset(tmp_path / "d", SPEC, EPISODES, segment_steps=8)


def test_every_array_is_what_was_written(dataset):
    assert len(dataset.segment_ids()) == 2
    found = list(dataset.episodes())
    assert len(found) == len(EPISODES)
    for episode, want in zip(found, EPISODES, strict=True):
        assert (episode.length, episode.seed) == (want.length, want.info["seed"])
        assert episode.end_reason == want.reason
        assert episode.attributes == {k: v for k, v in want.info.items() if k != "seed"}
        assert episode.episode_return == want.reward.sum(dtype=np.float64)
        np.testing.assert_array_equal(episode.frames, want.frames)
        np.testing.assert_array_equal(episode.vectors, want.vector)
        np.testing.assert_array_equal(episode.actions, want.action)
        np.testing.assert_array_equal(episode.rewards, want.reward)
        np.testing.assert_array_equal(episode.reward_terms, want.terms)
        last = [False] * (want.length - 1) + [True]
        assert episode.terminated.tolist() == [x and want.terminated for x in last]
        assert episode.truncated.tolist() == [x and not want.terminated for x in last]
        assert episode.frame_ids.tolist() == list(range(100, 101 + want.length))
        np.testing.assert_allclose(episode.sim_times_s, 1.0 + 0.05 * np.arange(want.length + 1))
        assert episode.events == ()


def test_a_copy_through_a_writer_is_the_same(dataset, tmp_path):
    copy = Dataset.create(tmp_path / "copy", SPEC)
    with SegmentWriter(copy) as writer:
        for episode in dataset.episodes():
            writer.begin(episode.observation(0), seed=episode.seed, **episode.attributes)
            for step in episode.steps():
                writer.add(step)
    assert_holds(copy, EPISODES)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 7), (5, 4)])
def test_frames_outside_an_episode_are_not_those_of_its_neighbours(dataset, start, stop):
    episode = next(dataset.episodes())  # of 6 observations
    with pytest.raises(SpecError, match=rf"frames {start}:{stop} are outside 0:6"):
        episode.read_frames(start, stop)


@pytest.mark.parametrize("stack", [1, 2, 6])
def test_stacks_are_those_of_a_frame_stack(dataset, stack):
    episode = next(dataset.episodes())
    live, want = FrameStack(stack), []
    live.reset(episode.frames[0])
    want.append(live.stacked())
    for frame in episode.frames[1:]:
        live.push(frame)
        want.append(live.stacked())
    np.testing.assert_array_equal(episode.observations(stack), want)
    assert episode.observations().shape[1] == SPEC.image.observation_shape[0]
    with pytest.raises(SpecError, match="stack is 0"):
        episode.observations(0)


def test_filters_are_texts_or_records_and_all_must_hold(dataset):
    def seeds(*filters):
        return [episode.seed for episode in dataset.episodes(*filters)]

    assert seeds("end=collision") == [1, 3]
    assert seeds("end=collision", "town=town-0") == [3]
    assert seeds("town=town-0,town-2", EpisodeFilter(end_reasons=("time*",))) == [0, 2]
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        dataset.episodes("collision")  # at once, not when iterated
    assert dataset.episode_table("end=collision").seed.tolist() == [1, 3]


def test_arrays_are_read_when_they_are_used_and_belong_to_the_caller(dataset):
    with (
        mock.patch.object(Segment, "read", autospec=True, side_effect=Segment.read) as read,
        mock.patch.object(
            Segment, "read_frames", autospec=True, side_effect=Segment.read_frames
        ) as read_frames,
    ):
        first, second = list(dataset.episodes())[:2]
        assert not read_frames.called
        first.actions[:] = 9.0
        np.testing.assert_array_equal(second.actions, EPISODES[1].action)
        assert [call.args[1] for call in read.call_args_list].count("action") == 1
        assert second.frames is second.frames
        assert [call.args[1:] for call in read_frames.call_args_list] == [(6, 10)]  # its own, once


def test_what_the_spec_does_not_have_is_an_error_that_says_so(tmp_path):
    spec = make_spec(image=False, terms=0)
    dataset = write_dataset(tmp_path / "d", spec, [make_episode(spec, 2)])
    (episode,) = dataset.episodes()
    with pytest.raises(SpecError, match="no stream was named"):
        _ = episode.frames
    with pytest.raises(SpecError, match="no array 'reward_terms'"):
        _ = episode.reward_terms
    assert episode.observation(0).image is None
    assert [step.reward for step in episode.steps()] == episode.rewards.tolist()


def test_a_damaged_segment_is_an_error_unless_it_is_to_be_skipped(dataset):
    first, second = dataset.segment_ids()
    (dataset.segments_path / first / "action" / "c" / "0" / "0").unlink()
    with pytest.raises(SegmentCorruptError, match="action"):
        list(dataset.episodes())
    with pytest.raises(SegmentCorruptError, match="action"):
        dataset.episode_table()
    assert {e.segment.id for e in dataset.episodes(skip_damaged=True)} == {second}
    assert set(dataset.episode_table(skip_damaged=True).segment) == {second}


def test_a_segment_that_is_removed_meanwhile_is_named(dataset):
    episode = next(dataset.episodes())
    shutil.rmtree(episode.segment.path)
    with pytest.raises(SegmentNotFoundError, match="refresh the snapshot"):
        _ = episode.frames


def test_limits_hold(dataset):
    with pytest.raises(SegmentCorruptError, match="steps"):
        list(dataset.episodes(limits=Limits(max_steps=3)))


def test_the_table_of_a_dataset_joins_those_of_its_segments(dataset):
    table = dataset.episode_table()
    assert len(table) == 4
    assert table.segment == [id_ for id_ in dataset.segment_ids() for _ in range(2)]
    assert table.number.tolist() == [0, 1, 0, 1]
    assert table.seed.tolist() == [0, 1, 2, 3]
    assert table.texts("town") == ["town-0", "town-1", "town-2", "town-0"]
    for episode, row in zip(dataset.episodes(), range(4), strict=True):
        assert table.row(row)["episode_return"] == episode.episode_return


def test_attributes_that_a_segment_lacks_are_not_given_there(tmp_path):
    spec = make_spec(image=False)
    dataset = Dataset.create(tmp_path / "d", spec)
    given: list[dict[str, Any]] = [{"lap": 1, "grip": "low"}, {}, {"lap": 2, "grip": 0.5}]
    for n, attributes in enumerate(given):
        episode = make_episode(spec, 2, **attributes)
        write_dataset(dataset.path, spec, [episode], clock=Clock(1e9 + n))
    table = dataset.episode_table()
    assert table.texts("lap") == ["1", "", "2"]
    assert table.texts("grip") == ["low", "", "0.5"]
    np.testing.assert_array_equal(table.numbers("lap"), [1.0, np.nan, 2.0])
    assert [e.attributes.get("lap") for e in dataset.episodes()] == [1, None, 2]
    assert [e.attributes["lap"] for e in dataset.episodes("attribute.lap=2,3")] == [2]


def test_the_table_as_pandas_and_xarray(dataset):
    frame = dataset.episode_table().to_pandas()
    assert frame.loc[frame["town"] == "town-0", "length"].tolist() == [5, 1]
    assert frame.groupby("end_reason")["seed"].sum().to_dict() == {"collision": 4, "time_limit": 2}
    data = dataset.episode_table().to_xarray()
    assert data.sizes == {"episode": 4}
    assert data["episode_return"].values.tolist() == frame["episode_return"].tolist()


def test_an_empty_dataset_has_an_empty_table(tmp_path):
    dataset = Dataset.create(tmp_path / "d", SPEC)
    table = dataset.episode_table("end=goal")
    assert len(table) == 0
    assert list(dataset.episodes()) == []
    frame = table.to_pandas()
    assert frame.empty
    assert {"segment", "number", "length", "end_reason"} <= set(frame.columns)


def test_a_missing_library_is_named_with_the_command_that_installs_it(dataset, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(MissingPackageError, match="pandas is not installed; pip install pandas"):
        dataset.episode_table().to_pandas()


def test_an_episode_says_what_it_is(dataset):
    episode = next(dataset.episodes())
    want = f"Episode('{dataset.segment_ids()[0]}:0', length=5, episode_return="
    assert repr(episode).startswith(want)
    assert repr(episode).endswith("end_reason='time_limit')")


def test_maintenance_keeps_attributes(tmp_path):
    spec = make_spec(image=False)
    dataset = Dataset.create(tmp_path / "d", spec)
    given: list[dict[str, Any]] = [{"lap": 1, "grip": "low"}, {"lap": 0.5}]
    for n, attributes in enumerate(given):
        episode = make_episode(spec, 2, **attributes)
        write_dataset(dataset.path, spec, [episode], clock=Clock(1e9 + n))
    before = [episode.attributes for episode in dataset.episodes()]
    relabel(dataset.path, tmp_path / "relabelled", {"r0": 2.0})
    relabelled = Dataset.open(tmp_path / "relabelled")
    assert [episode.attributes for episode in relabelled.episodes()] == before
    assert compact(dataset.path).merged_segments == 2
    assert [episode.attributes for episode in dataset.episodes()] == before
    assert before[0]["lap"] == 1
    assert before[1]["lap"] == 0.5
