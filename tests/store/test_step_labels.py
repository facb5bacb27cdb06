"""Labels of steps: what was written is read; maintenance keeps it; the impossible is refused."""

from typing import Any

import hypothesis
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st

from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import SpecError
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel
from avtd3.store.replaced import episode_digests
from avtd3.store.step_labels import LABELS, StepLabels, label_columns, read_labels
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.maintenance.datasets import SPEC
from avtd3.tests.store.segments import begin, equal_labels, make_episode, step
from avtd3.tests.store.segments import make_labels as labels_of


def errors(path):
    """The errors that the audit finds."""
    return [found.check for found in audit([path]).findings if found.severity == "error"]


def written(path, labels, lengths, **config):
    dataset = Dataset.create(path, SPEC)
    with SegmentWriter(dataset, **config) as writer:
        for n, (each, length) in enumerate(zip(labels, lengths, strict=True)):
            episode = make_episode(SPEC, length, seed=n)
            begin(writer, episode)
            for number in range(length):
                step(writer, episode, number)
            writer.end(episode.reason, labels=each)
    return dataset


def test_labels_are_read_as_they_were_written(tmp_path):
    lengths = [5, 1, 70, 3]
    drove = StepLabels(expert_drove=np.array([True, False, True]))
    labels = [labels_of(SPEC, 5, 1), None, labels_of(SPEC, 70, 2), drove]
    dataset = written(tmp_path / "data", labels, lengths)
    assert all(map(equal_labels, (episode.labels for episode in dataset.episodes()), labels))
    (segment,) = dataset.snapshot().segments
    group: Any = zarr.open_group(segment.path, mode="r")  # any reader of Zarr can read them
    assert group["expert_action"].shape == (79, SPEC.action_size)
    np.testing.assert_array_equal(group["expert_action"][:5], labels[0].expert_action)
    assert group["step_driver"][-3:].tolist() == [2, 1, 2]
    assert group["camera_delay"].shape == (79 + 4,)
    assert errors(dataset.path) == []


def test_labels_are_cut_to_their_episode(tmp_path):
    dataset = written(tmp_path / "data", [labels_of(SPEC, 9)], [4])
    (episode,) = dataset.episodes()
    assert np.array_equal(episode.labels.camera_delay_s, labels_of(SPEC, 9).camera_delay_s[:5])


def test_a_segment_without_labels_has_no_new_arrays(tmp_path):
    empty = StepLabels(
        expert_action=np.full((4, SPEC.action_size), np.nan, np.float32),
        action_delay_s=np.zeros(4, np.float32),
    )
    (segment,) = written(tmp_path / "data", [empty], [4]).snapshot().segments
    assert not [name for name in segment.files if name.startswith(LABELS)]
    assert segment.labels() is None


def test_labels_are_part_of_what_an_episode_is_but_not_of_the_order(tmp_path):
    digests: list[str] = []
    contents = set()
    for n, labels in enumerate((None, labels_of(SPEC, 4), labels_of(SPEC, 4, seed=1))):
        (segment,) = written(tmp_path / f"{n}", [labels], [4]).snapshot().segments
        digests += episode_digests(segment, without=("episode_wall_time",))
        contents.add(segment.content_digest)
    assert len(set(digests)) == 3
    assert len(contents) == 1


def test_maintenance_keeps_labels(tmp_path):
    labels = [None, labels_of(SPEC, 4), labels_of(SPEC, 5, 2), None]
    dataset = Dataset.create(tmp_path / "data", SPEC)
    for n, each in enumerate(labels):  # a segment each: some with the arrays, some without
        with SegmentWriter(dataset) as writer:
            episode = make_episode(SPEC, 4 + (n == 2), seed=n)
            begin(writer, episode)
            for number in range(episode.length):
                step(writer, episode, number)
            writer.end(episode.reason, labels=each)
    relabel(dataset.path, tmp_path / "new", {})
    report = compact(dataset.path)
    assert report.merged_segments == 4
    assert not report.problems
    for path in (dataset.path, tmp_path / "new"):
        found = [episode.labels for episode in Dataset.open(path).episodes()]
        assert all(map(equal_labels, found, labels))
        assert errors(path) == []


@hypothesis.given(st.lists(st.tuples(st.integers(1, 6), st.sets(st.integers(0, 3))), min_size=1))
@hypothesis.settings(max_examples=25, deadline=None)
def test_any_mixture_of_labels_survives_the_arrays(shapes):
    lengths = [length for length, _ in shapes]
    fields = ("expert_action", "expert_drove", "camera_delay_s", "action_delay_s")
    labels = []
    for length, chosen in shapes:
        whole = labels_of(SPEC, length, seed=length)
        kept = {fields[n]: getattr(whole, fields[n]) for n in chosen}
        labels.append(StepLabels(**kept) if kept else None)
    columns = label_columns(labels, lengths, SPEC)

    class Files:
        def read(self, layout):
            return columns[layout.name][1]

    layouts: Any = {name: layout for name, (layout, _) in columns.items()}
    if layouts:
        files: Any = Files()
        assert all(map(equal_labels, read_labels(files, layouts, lengths, SPEC), labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"expert_action": np.zeros((3, SPEC.action_size), np.float32)}, "expected float32"),
        ({"expert_action": np.zeros((4, SPEC.action_size))}, "expert_action is float64"),
        ({"expert_action": np.full((4, SPEC.action_size), 9e9, np.float32)}, "outside the bounds"),
        ({"expert_drove": np.zeros(4, np.uint8)}, "expected bool"),
        ({"camera_delay_s": np.full(5, -0.1, np.float32)}, "0 or more"),
        ({"action_delay_s": np.full(4, np.nan, np.float32)}, "0 or more"),
    ],
)
def test_labels_that_cannot_be_stored_are_refused(tmp_path, labels, message):
    with pytest.raises(SpecError, match=message):
        written(tmp_path / "data", [StepLabels(**labels)], [4])


def test_impossible_stored_labels_are_found(tmp_path, monkeypatch):
    wrong = StepLabels(camera_delay_s=np.full(5, -1.0, np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(StepLabels, "first", lambda self, steps, spec: self)
        dataset = written(tmp_path / "data", [wrong], [4])
    assert errors(dataset.path) == ["label-bounds"]
