"""The parts of `test_processes.py`, each run as a process of its own: writer, reader, remover.

``python -m avtd3.tests.store.processes ROLE DATASET NAME`` ends with one line of JSON. All but the
writers continue until a file named ``over`` exists beside the dataset.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.errors import SegmentNotFoundError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.staging import remove_segments
from avtd3.tests.store.segments import feed, make_episode, make_spec, make_writer

SPEC = make_spec(height=4, width=4, vector=1, terms=1)
STEPS, SEGMENTS = 3, 30
FIRST_SEED = {"kept": 0, "a": 1000, "b": 2000}


def write(dataset, name, _):
    """Publish segment after segment; returns the seed of each by its id."""
    published = {}
    with make_writer(dataset, collector=name, segment_steps=1) as writer:
        for seed in range(FIRST_SEED[name], FIRST_SEED[name] + SEGMENTS):
            published[feed(writer, make_episode(SPEC, STEPS, seed)).segment_id] = seed
    return published


def remove(dataset, _, is_over):
    """Quarantine and delete what two of three collectors publish, but for every third segment."""
    gone: dict[str, list[str]] = {"quarantined": [], "deleted": []}
    is_last = False
    while not is_last:
        is_last = is_over()
        for name in dataset.segment_ids():
            if "-kept-" in name or int(name.split("-")[-2]) % 3 == 0:
                continue
            if len(gone["deleted"]) < len(gone["quarantined"]):
                remove_segments(dataset.path, [name])
                gone["deleted"].append(name)
            else:
                dataset.quarantine(name)
                gone["quarantined"].append(name)
    return gone


def read(dataset, mode, is_over):
    """Refresh, read every frame and draw until the end; returns how often each was done."""
    counts = {"rounds": 0, "segments": 0, "gone": 0, "batches": 0, "seen": 0}
    snapshot, seen = Snapshot(segments=()), set()
    config = ReplayConfig(batch_size=16, mode=mode)
    with Sampler([dataset], config, seed=0, scratch=dataset.path.parent) as sampler:
        is_last = False
        while not is_last:
            is_last = is_over()
            snapshot = dataset.refresh(snapshot)
            assert snapshot.refused == ()
            for segment in snapshot.segments:
                try:
                    check_segment(segment)
                except SegmentNotFoundError:
                    counts["gone"] += 1
                else:
                    counts["segments"] += 1
            sampler.refresh()
            for _ in range(3):
                seen |= check_batch(sampler.sample())
                counts["batches"] += 1
            counts["rounds"] += 1
    return counts | {"seen": len(seen)}


def check_segment(segment):
    (seed,) = segment.episode_table().seed.tolist()
    want = make_episode(SPEC, STEPS, seed)
    np.testing.assert_array_equal(segment.read_frames(), want.frames)
    np.testing.assert_array_equal(segment.read("action"), want.action)
    np.testing.assert_array_equal(segment.read("reward"), want.reward)


def check_batch(batch):
    """Every transition is one that was published; returns which, as seed and step."""
    drawn = set()
    for n, action in enumerate(batch.action):
        seed, t = STEP_OF[action.tobytes()]
        episode = make_episode(SPEC, STEPS, seed)
        np.testing.assert_array_equal(batch.observation_frames[n], stack(episode, t))
        np.testing.assert_array_equal(batch.next_observation_frames[n], stack(episode, t + 1))
        assert batch.reward[n] == episode.reward[t]
        drawn.add((seed, t))
    return drawn


def stack(episode, t):
    times = [max(0, n) for n in range(t - SPEC.image.stack + 1, t + 1)]
    return np.concatenate([episode.frames[n] for n in times])


STEP_OF = {
    action.tobytes(): (seed, t)
    for first in FIRST_SEED.values()
    for seed in range(first, first + SEGMENTS)
    for t, action in enumerate(make_episode(SPEC, STEPS, seed).action)
}


def main(role, path, name):
    os.fsync = lambda fd: None
    dataset = Dataset.open(Path(path))
    over = Path(path).with_name("over")
    found = {"write": write, "remove": remove, "read": read}[role](dataset, name, over.exists)
    with contextlib.closing(sys.stdout) as stream:
        stream.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
