"""Writers, readers, quarantine, deletion, crashes and full disks in any order, against a model.

The model is a list of episodes per published segment. Whatever happened, a reader that looks at the
dataset gets exactly those, and one that has an older snapshot gets what it had, or an error that
says that it is gone.
"""

import contextlib
import errno
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from avtd3.store.dataset import Dataset
from avtd3.store.errors import SegmentNotFoundError, StorageError
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.staging import remove_segments
from avtd3.tests.store.disk import CrashError, failing
from avtd3.tests.store.segments import (
    Clock,
    begin,
    feed,
    make_episode,
    make_spec,
    make_writer,
    step,
)

SPECS = (make_spec(vector=1, terms=1), make_spec(vector=1, terms=1, streams=("gray", "rgb")))
"""One of each version of the format."""
WRITERS = 2


def names(directory):
    """What lies in a directory."""
    return {path.name for path in directory.iterdir()}


def frames_of(segment):
    """All frames of a segment, by stream."""
    return {name: segment.read_frames(stream=name) for name in segment.spec.images}


def count_operations():
    """How many file operations it takes to publish a segment."""
    with tempfile.TemporaryDirectory() as directory:
        writer = make_writer(Dataset.create(Path(directory) / "d", SPECS[1]))
        feed(writer, make_episode(SPECS[1], 1))
        with failing(directory) as disk:
            writer.flush()
    return disk.count


OPERATIONS = count_operations()
moments = st.integers(1, OPERATIONS) | st.integers(OPERATIONS - 7, OPERATIONS)
"""When something happens to a publication: anywhere, and often around its rename."""


class StoreMachine(RuleBasedStateMachine):
    """A dataset with two collectors, a reader with an old snapshot, and people who tidy up."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="avtd3-machine-"))
        self.clock = Clock()
        self.published: dict[str, list[int]] = {}
        self.left: set[str] = set()
        self.held: list[list[int]] = [[] for _ in range(WRITERS)]
        self.running: list[int | None] = [None] * WRITERS
        self.latest = [""] * WRITERS
        self.seed = 0

    @initialize(spec=st.sampled_from(SPECS))
    def create(self, spec):
        self.spec = spec
        self.dataset = Dataset.create(self.root / "d", spec)
        self.writers = [self.new_writer(n) for n in range(WRITERS)]
        self.snapshot = self.dataset.snapshot()

    def new_writer(self, n):
        self.running[n], self.latest[n] = None, ""
        return make_writer(
            self.dataset, collector=f"w{n}", clock=self.clock, segment_steps=1_000_000
        )

    def episode(self, seed):
        return make_episode(self.spec, 1 + seed % 3, seed)

    def found(self, n):
        """Note what has appeared, if something has, as the episodes that the writer held."""
        new = names(self.dataset.segments_path) - self.published.keys()
        assert len(new) <= 1
        for name in new:
            assert name > self.latest[n], "a writer's segments sort in the order of publication"
            self.latest[n] = name
            self.published[name] = self.held[n]
            self.held[n] = []

    writers_numbers = st.integers(0, WRITERS - 1)

    @rule(n=writers_numbers)
    def write_an_episode(self, n):
        self.hold_an_episode(n)

    def hold_an_episode(self, n):
        if self.running[n] is None:
            feed(self.writers[n], self.episode(self.seed))
            self.held[n].append(self.seed)
            self.seed += 1

    @rule(n=writers_numbers)
    def begin_an_episode(self, n):
        self.hold_an_episode(n)
        if self.running[n] is None:
            episode = self.episode(self.seed)
            begin(self.writers[n], episode)
            for t in range(episode.length - 1):
                step(self.writers[n], episode, t)
            self.running[n] = self.seed
            self.seed += 1

    @rule(n=writers_numbers, publishes=st.booleans())
    def end_an_episode(self, n, publishes):
        """Perhaps with a publication, a full disk or both in the midst of it."""
        seed = self.running[n]
        if seed is not None:
            if publishes:
                self.publish(n)
            episode = self.episode(seed)
            step(self.writers[n], episode, episode.length - 1)
            self.writers[n].end(episode.reason)
            self.held[n].append(seed)
            self.running[n] = None

    @rule(n=writers_numbers)
    def publish(self, n):
        self.writers[n].flush()
        self.found(n)
        assert self.held[n] == []

    @rule(n=writers_numbers, k=moments, code=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def publish_on_a_failing_disk(self, n, k, code):
        self.hold_an_episode(n)
        with failing(self.root, k, code), contextlib.suppress(StorageError):
            self.writers[n].flush()
        self.found(n)
        assert not [
            p
            for p in self.dataset.staging_path.iterdir()
            if f"-w{n}-" in p.name
            and p.name not in self.left
            and not p.name.endswith(".owner.json")
        ]

    @rule(n=writers_numbers, k=moments)
    def crash_while_publishing(self, n, k):
        self.hold_an_episode(n)
        before = names(self.dataset.staging_path)
        with failing(self.root, k, CrashError(), is_final=True), contextlib.suppress(CrashError):
            self.writers[n].flush()
        self.found(n)
        self.left |= names(self.dataset.staging_path) - before
        self.held[n] = []
        self.writers[n] = self.new_writer(n)

    @rule(n=writers_numbers)
    def close_and_start_again(self, n):
        self.writers[n].close()
        self.found(n)
        assert self.held[n] == []
        self.writers[n] = self.new_writer(n)

    @rule(seconds=st.floats(-1e6, 1e6))
    def set_the_clock(self, seconds):
        self.clock.now = max(1.0, self.clock.now + seconds)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def quarantine(self, data):
        name = data.draw(st.sampled_from(sorted(self.published)))
        self.dataset.quarantine(name)
        del self.published[name]
        assert (self.dataset.quarantine_path / name / MANIFEST_FILE).is_file()

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.published)))
        remove_segments(self.dataset.path, [name])
        del self.published[name]

    @rule()
    def clean_staging(self):
        self.dataset.clean_staging(older_than_s=-1.0)
        assert not list(self.dataset.staging_path.iterdir())
        self.left = set()

    @rule()
    def refresh(self):
        self.snapshot = self.dataset.refresh(self.snapshot)
        assert {segment.id for segment in self.snapshot.segments} == self.published.keys()
        assert self.snapshot.refused == ()

    @rule()
    def read_what_is_held(self):
        for segment in self.snapshot.segments:
            if segment.id in self.published:
                self.check(segment, self.published[segment.id])
                continue
            for read in (segment.episode_table, lambda: frames_of(segment), segment.verify):  # noqa: B023 - called at once
                with pytest.raises(SegmentNotFoundError):
                    read()

    @invariant()
    def a_new_reader_gets_what_was_published(self):
        snapshot = Dataset.open(self.dataset.path).snapshot()
        assert snapshot.refused == ()
        assert [segment.id for segment in snapshot.segments] == sorted(self.published)
        for segment in snapshot.segments:
            self.check(segment, self.published[segment.id])

    def check(self, segment, seeds):
        table = segment.episode_table()
        assert table.seed.tolist() == seeds
        episodes = [self.episode(seed) for seed in table.seed.tolist()]
        for stream, frames in frames_of(segment).items():
            kept = [episode.streams.get(stream, episode.frames) for episode in episodes]
            np.testing.assert_array_equal(frames, np.concatenate(kept))
        want = np.concatenate([episode.action for episode in episodes])
        np.testing.assert_array_equal(segment.read("action"), want)

    def teardown(self):
        shutil.rmtree(self.root)


pytestmark = pytest.mark.usefixtures("no_fsync")


FAST = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_any_order_of_things():
    run_state_machine_as_test(StoreMachine, settings=FAST)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_any_order_of_many_things():
    run_state_machine_as_test(
        StoreMachine, settings=settings(FAST, max_examples=150, stateful_step_count=50)
    )
