"""Faults planted in the store, each of which the machine of `test_machine.py` must find."""

import contextlib
import os
import shutil
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from avtd3.store import staging, writer
from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.errors import Avtd3Error, SegmentNotFoundError, StorageError
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.seal import FrameBuffer, SegmentNamer, StepColumns
from avtd3.store.segment import Segment
from avtd3.tests.store.test_machine import StoreMachine


def publish_in_place(patch):
    """Straight into ``segments/``, where a crash leaves a truncated segment."""

    def publish(_, target, files, check=None):
        for name in (MANIFEST_FILE, *files):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(target / name, os.O_WRONLY | os.O_CREAT))
            (target / name).write_bytes(files[name])

    patch.setattr(writer, "publish", publish)


def swallow_a_full_disk(patch):
    def publish(*args, check=None):
        with contextlib.suppress(StorageError):
            staging.publish(*args, check=check)

    patch.setattr(writer, "publish", publish)


def publish_twice(patch):
    """What is visible although the last fsync failed is kept, as if it were not."""
    drop = writer.PendingSegment.drop_whole

    def drop_unless_failing(self):
        if sys.exc_info()[0] is None:
            drop(self)

    patch.setattr(writer.PendingSegment, "drop_whole", drop_unless_failing)


def leave_staging_behind(patch):
    patch.setattr(staging, "remove_tree", lambda path: None)
    patch.setattr(staging, "remove", lambda path: None)


def clean_nothing(patch):
    patch.setattr(Dataset, "clean_staging", lambda self, older_than_s: [])


def name_by_wall_time(patch):
    real = SegmentNamer.next

    def next_name(self, now_s):
        self._last_us = 0
        return real(self, now_s)

    patch.setattr(SegmentNamer, "next", next_name)


def lose_the_running_steps(patch):
    patch.setattr(StepColumns, "drop", lambda self, observations, steps: None)


def lose_the_running_frames(patch):
    patch.setattr(FrameBuffer, "drop", lambda self, count: None)


def quarantine_a_copy(patch):
    def quarantine(self, name):
        shutil.copytree(self.segments_path / name, self.quarantine_path / name)

    patch.setattr(Dataset, "quarantine", quarantine)


def refresh_keeps_what_is_gone(patch):
    real = Dataset.refresh

    def refresh(self, snapshot, **options):
        found = real(self, Snapshot(segments=()), **options)
        known = {segment.id for segment in snapshot.segments}
        new = tuple(segment for segment in found.segments if segment.id not in known)
        return Snapshot(segments=(*snapshot.segments, *new), refused=found.refused)

    patch.setattr(Dataset, "refresh", refresh)


def refresh_misses_the_newest(patch):
    real = Dataset._directories
    patch.setattr(Dataset, "_directories", lambda self: real(self)[:2])


def read_what_is_gone_as_zeros(patch):
    """As Zarr does."""
    real = Segment.read_frames

    def read_frames(self, *args, **options):
        try:
            return real(self, *args, **options)
        except SegmentNotFoundError:
            image = self.spec.image_of(options.get("stream"))
            return np.zeros((self.observations, *image.frame_shape), np.uint8)

    patch.setattr(Segment, "read_frames", read_frames)


FAULTS = (
    publish_in_place,
    swallow_a_full_disk,
    publish_twice,
    leave_staging_behind,
    clean_nothing,
    name_by_wall_time,
    lose_the_running_steps,
    lose_the_running_frames,
    quarantine_a_copy,
    refresh_keeps_what_is_gone,
    refresh_misses_the_newest,
    read_what_is_gone_as_zeros,
)
FAST = (publish_in_place, lose_the_running_frames)
SEARCH = settings(
    max_examples=400,
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.generate,),  # found is enough: no smallest example
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(plant, id=plant.__name__, marks=() if plant in FAST else pytest.mark.slow)
        for plant in FAULTS
    ],
)
def test_the_machine_finds_a_planted_fault(plant, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, Avtd3Error, OSError)):
        run_state_machine_as_test(StoreMachine, settings=SEARCH)
