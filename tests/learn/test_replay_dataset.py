"""`ReplayDataset` in the main process and in workers of every start method."""

import hashlib
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.data import DataLoader

from avtd3.learn.replay_dataset import ReplayBatch, ReplayDataset, ReplaySequences
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, DatasetError, NoSegmentsError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

B = 16


def write(path, seeds, spec=None):
    spec = spec or make_spec()
    episodes = [make_episode(spec, 20, seed=seed) for seed in seeds]
    return write_dataset(path, spec, episodes, segment_steps=40)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "data", range(6)).path


@pytest.fixture
def scratch(tmp_path):
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


def make(path, scratch, **changes):
    settings = {"seed": 7, "batch_size": B, "scratch": str(scratch), "batches": 6}
    return ReplayDataset(path, **{**settings, **changes})


def load(dataset, workers=0, method=None):
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=method
    )
    return list(loader)


def content(batch):
    return [None if value is None else value.numpy().tobytes() for value in batch]


def rewards(batches):
    return [tuple(batch.reward.flatten().tolist()) for batch in batches]


@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_are_those_of_a_sampler_with_the_same_seed(path, scratch, n_step):
    found = load(make(path, scratch, n_step=n_step))
    config = ReplayConfig(batch_size=B, n_step=n_step)
    with Sampler([Dataset.open(path)], config, seed=7, scratch=scratch) as sampler:
        for batch, expected in zip(found, sampler.batches(6), strict=True):
            assert isinstance(batch, ReplayBatch)
            assert batch.bc_mask is None
            for name in ("observation", "next_observation"):
                for part in ("frames", "vector"):
                    ours = getattr(batch, f"{name}_{part}")
                    theirs = getattr(expected, f"{name}_{part}")
                    assert (ours.shape, ours.numpy().tobytes()) == (theirs.shape, theirs.tobytes())
            for name in ("action", "reward", "discount"):
                assert getattr(batch, name).numpy().tobytes() == getattr(expected, name).tobytes()


def test_shapes_and_types_are_as_documented(path, scratch):
    (batch,) = load(make(path, scratch, batches=1, imitate=("policy=none",)))
    known = {name: value for name, value in batch._asdict().items() if value is not None}
    assert {name: (value.dtype, tuple(value.shape)) for name, value in known.items()} == {
        "observation_frames": (torch.uint8, (B, 4, 6, 5)),
        "observation_vector": (torch.float32, (B, 3)),
        "action": (torch.float32, (B, 2)),
        "reward": (torch.float32, (B,)),
        "discount": (torch.float32, (B,)),
        "next_observation_frames": (torch.uint8, (B, 4, 6, 5)),
        "next_observation_vector": (torch.float32, (B, 3)),
        "bc_mask": (torch.float32, (B,)),
    }
    (sequences,) = load(make(path, scratch, batches=1, sequence_length=8))
    assert isinstance(sequences, ReplaySequences)
    shapes = {name: value.shape for name, value in sequences._asdict().items() if value is not None}
    assert shapes == {
        "frames": (2, 4 + 8, 1, 6, 5),
        "vector": (2, 9, 3),
        "action": (2, 8, 2),
        "reward": (2, 8),
        "terminated": (2, 8),
        "truncated": (2, 8),
    }


def test_a_dataset_without_images_has_no_frames(tmp_path, scratch):
    path = write(tmp_path / "vectors", range(3), make_spec(image=False)).path
    (batch,) = load(make(path, scratch, batches=1))
    assert batch.observation_frames is batch.next_observation_frames is None
    assert batch.observation_vector.shape == (B, 3)
    (sequences,) = load(make(path, scratch, batches=1, sequence_length=4))
    assert sequences.frames is None


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_tensors_may_be_kept_and_do_not_hold_more_memory_than_they_show(path, scratch, mode):
    kept, copies = [], []
    for batch in make(path, scratch, mode=mode, batches=40):
        kept.append(batch)
        copies.append(content(batch))
        assert batch.reward.untyped_storage().nbytes() == batch.reward.nbytes
    assert [content(batch) for batch in kept] == copies


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("length", [0, 8])
def test_worker_w_gives_the_batches_of_seed_plus_w(path, scratch, workers, length):
    changes = {"sequence_length": length}
    found = load(make(path, scratch, batches=7, **changes), workers, "fork")
    expected = alternate(path, scratch, workers, **changes)
    assert [content(batch) for batch in found] == expected
    assert len(set(rewards(found))) == 7
    assert not list(scratch.iterdir()), "each worker has closed its sampler"


def alternate(path, scratch, workers, **changes):
    """Seven batches as workers give them in turn."""
    alone = [load(make(path, scratch, seed=7 + w, batches=7, **changes)) for w in range(workers)]
    return [content(alone[n % workers][n // workers]) for n in range(7)]


SCRIPT = """
import hashlib, sys
from torch.utils.data import DataLoader
from avtd3.learn.replay_dataset import ReplayDataset

if __name__ == "__main__":
    path, scratch = sys.argv[1:]
    dataset = ReplayDataset(path, seed=7, batches=7, batch_size=16, scratch=scratch)
    for method, workers in (("spawn", 1), ("forkserver", 2)):
        loader = DataLoader(
            dataset, batch_size=None, num_workers=workers, multiprocessing_context=method
        )
        for batch in loader:
            parts = [part.numpy().tobytes() for part in batch if part is not None]
            print(hashlib.sha256(b"".join(parts)).hexdigest())
"""


def test_workers_may_be_spawned_or_forked_by_a_server(tmp_path, path, scratch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script), str(path), str(scratch)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    expected = [alternate(path, scratch, workers) for workers in (1, 2)]
    digests = [
        hashlib.sha256(b"".join(part for part in parts if part is not None)).hexdigest()
        for parts in (*expected[0], *expected[1])
    ]
    assert found.stdout.split() == digests
    assert not list(scratch.iterdir())


def test_two_workers_sample_independently(path, scratch):
    """How often batches share a transition: 120 of them, 2 x 16 drawn with replacement."""
    batches = rewards(load(make(path, scratch, batches=80), 2, "fork"))
    shared = [len(set(a) & set(b)) for a, b in zip(batches[::2], batches[1::2], strict=True)]
    expected = 120 * (1 - (1 - 1 / 120) ** 16) ** 2
    assert abs(sum(shared) / 40 - expected) < 4 * (1.2 / 40**0.5)
    assert set().union(*batches) == set(rewards([_whole(path, scratch)])[0])


def _whole(path, scratch):
    return next(iter(make(path, scratch, seed=1, batch_size=5000, batches=1)))


def test_a_pass_repeats_with_a_seed_and_differs_without(path, scratch):
    with_seed = make(path, scratch)
    assert rewards(with_seed) == rewards(with_seed)
    without = make(path, scratch, seed=None)
    torch.manual_seed(3)
    first, second = rewards(without), rewards(without)
    assert not set(first) & set(second)
    torch.manual_seed(3)
    assert rewards(without) == first
    torch.manual_seed(3)
    workers = rewards(load(without, 2, "fork"))
    assert len(set(workers)) == 6
    assert workers != rewards(load(without, 2, "fork"))


def test_nothing_is_open_before_the_first_batch_and_after_the_last(path, scratch):
    dataset = pickle.loads(pickle.dumps(make(path, scratch)))
    assert not list(scratch.iterdir())
    batches = iter(dataset)
    next(batches)
    assert list(scratch.iterdir())
    batches.close()
    assert not list(scratch.iterdir())
    assert not [t for t in threading.enumerate() if t.name.startswith("replay")]


def test_an_endless_pass_ends_with_its_loader(path, scratch):
    loader = DataLoader(make(path, scratch, batches=None), batch_size=None, num_workers=1)
    batches = iter(loader)
    assert [next(batches).reward.shape for _ in range(20)] == [(B,)] * 20
    del batches, loader
    with Sampler([Dataset.open(path)], ReplayConfig(), seed=0, scratch=scratch):
        pass  # removes what a killed worker may have left
    assert not list(scratch.iterdir())


def test_new_segments_are_sampled_after_a_refresh(tmp_path, path, scratch):
    batches = iter(make(path, scratch, batches=None, refresh_s=0.0, batch_size=2000))
    before = set(next(batches).reward.tolist())
    (segment,) = (write(tmp_path / "more", [50]).path / "segments").iterdir()
    segment.rename(path / "segments" / segment.name)
    assert len(set(next(batches).reward.tolist()) - before) == 20
    batches.close()


def test_several_datasets_with_weights(tmp_path, path, scratch):
    other = write(tmp_path / "other", range(90, 92)).path
    dataset = make([path, str(other)], scratch, weights=(0.0, 1.0), batch_size=500)
    assert len(set(next(iter(dataset)).reward.tolist())) == 40
    assert dataset.spec == make_spec()
    assert repr(dataset) == f"ReplayDataset({path}, {other}, batch_size=500)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nstep": 3}, "no argument 'nstep'; did you mean 'n_step'"),
        ({"zzz": 3}, "no argument 'zzz'; expected one of capacity, "),
        ({"n_step": 0}, "replay.n_step is 0"),
        ({"prioritised": True}, "cannot sample by priority"),
        ({"batches": -1}, "batches is -1"),
        ({"refresh_s": -1.0}, "refresh_s is -1.0"),
    ],
)
def test_mistakes_are_reported_at_once(path, scratch, changes, words):
    with pytest.raises(ConfigError, match=words):
        make(path, scratch, **changes)


def test_paths_are_checked_at_once_and_data_with_the_first_batch(tmp_path, scratch):
    with pytest.raises(ConfigError, match="at least one path"):
        make([], scratch)
    with pytest.raises(DatasetError, match="does not exist"):
        make(tmp_path / "nowhere", scratch)
    empty = Dataset.create(tmp_path / "empty", make_spec()).path
    with pytest.raises(NoSegmentsError, match="no segment is published yet"):
        load(make(empty, scratch))
