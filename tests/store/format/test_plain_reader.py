"""docs/format.md is enough to read a dataset: a reader written from it agrees with ours."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest

from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.format.codec import FrameCodec
from avtd3.store.maintenance.pins import pin
from avtd3.tests.store.format import plain_reader
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

GOLDEN = Path(__file__).parents[2] / "golden"
SPECS = {
    "all": make_spec(channels=3),
    "no image": make_spec(image=False),
    "image only": make_spec(vector=0, terms=0),
    "streams": make_spec(streams=("bev", "gray", "rgb")),
}


def assert_agree(dataset):
    spec, theirs = plain_reader.read_dataset(dataset.path)
    assert spec == dataset.spec.to_json()
    number = 0
    for segment in dataset.snapshot().segments:
        table = segment.episode_table()
        for i in range(segment.episodes):
            episode, number = theirs[number], number + 1
            begin, length = int(table.offset[i]), int(table.length[i])
            for name in set(segment.names) & episode.keys():
                rows = slice(begin, begin + length)
                if name.startswith("frame") or name in ("vector", "sim_time"):
                    rows = slice(begin + i, begin + i + length + 1)
                np.testing.assert_array_equal(episode[name], segment.read(name)[rows])
            row = table.row(i)
            for name in plain_reader.COLUMNS:
                assert episode[name] == row["episode_return" if name == "return" else name]
    assert number == len(theirs) > 0


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("codec", [FrameCodec(), FrameCodec(name="zstd"), FrameCodec(name="raw")])
def test_it_reads_what_the_writer_writes(tmp_path, kind, codec):
    spec = SPECS[kind]
    episodes = [make_episode(spec, length, seed) for seed, length in enumerate((3, 1, 6))]
    assert_agree(write_dataset(tmp_path / "d", spec, episodes, codec=codec, segment_steps=4))


@pytest.mark.parametrize("version", [1, 2])
def test_it_reads_the_golden_datasets(version):
    assert_agree(Dataset.open(GOLDEN / f"dataset-v{version}"))


def test_files_of_audits_and_maintenance_are_not_data(tmp_path):
    spec = SPECS["all"]
    dataset = write_dataset(tmp_path / "d", spec, [make_episode(spec, 4, 0)])
    for path in dataset.path.rglob("*"):
        os.utime(path, (1e9, 1e9))  # settled, so that the audit remembers
    audit([dataset.path])
    pin(dataset.path, dataset.segment_ids()[:1], note="kept")
    assert {".verified.json", "pins.json"} <= {path.name for path in dataset.path.iterdir()}
    assert_agree(dataset)


def test_it_stacks_frames_as_the_specification_says():
    frames = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    stacked = plain_reader.stacks(frames, 3)[:, :, 0, 0, 0]
    assert stacked.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    strided = plain_reader.stacks(frames, 2, 2)[:, :, 0, 0, 0]
    assert strided.tolist() == [[0, 0], [0, 1], [0, 2], [1, 3]]


def test_it_needs_zarr_and_numpy_and_sixty_lines():
    source = Path(plain_reader.__file__).read_text()
    tree = ast.parse(source)
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    own = {"hashlib", "json", "warnings", "collections.abc", "pathlib", "typing"}
    assert imported - own == {"zarr", "numpy"}
    assert len([line for line in source.splitlines() if line.strip()]) <= 60
