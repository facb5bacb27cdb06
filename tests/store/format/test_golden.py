"""Datasets of every released format stay readable, on the bytes that were committed then."""

from pathlib import Path

import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.format.layout import FORMAT_VERSION
from avtd3.tests.golden.make_dataset import (
    LENGTHS,
    golden_action,
    golden_colour,
    golden_frame,
    golden_info,
    golden_spec,
    golden_terms,
    golden_vector,
)

GOLDEN = Path(__file__).parents[2] / "golden"
ROWS = [(e, row) for e, length in enumerate(LENGTHS) for row in range(length + 1)]
STEPS = [(e, row) for e, length in enumerate(LENGTHS) for row in range(length)]


def test_every_format_has_its_golden_dataset():
    found = sorted(path.name for path in GOLDEN.glob("dataset-v*"))
    assert found == [f"dataset-v{version}" for version in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_old_bytes_are_read(version):
    dataset = Dataset.open(GOLDEN / f"dataset-v{version}")
    assert dataset.spec == golden_spec(version)
    assert dataset.spec.format_version == version
    (segment,) = dataset.snapshot().segments
    segment.verify()
    frames = [golden_frame(*row) for row in ROWS]
    streams = {"frames_front": frames, "frames_rgb": [golden_colour(*row) for row in ROWS]}
    want = {
        **({"frames": frames} if version == 1 else streams),
        "vector": [golden_vector(*row) for row in ROWS],
        "frame_id": [1000 * e + row for e, row in ROWS],
        "sim_time": [0.05 * row for _, row in ROWS],
        "action": [golden_action(*row) for row in STEPS],
        "reward_terms": [golden_terms(*row) for row in STEPS],
        "reward": [golden_terms(*row).sum() for row in STEPS],
        "terminated": [row == (1, 4) for row in STEPS],
        "truncated": [row == (0, 2) for row in STEPS],
    }
    for name, values in want.items():
        np.testing.assert_array_equal(segment.read(name), np.array(values))
    assert segment.provenance["config"] == {"golden": True}


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_old_episodes_are_read(version):
    (segment,) = Dataset.open(GOLDEN / f"dataset-v{version}").snapshot().segments
    table = segment.episode_table()
    infos = [golden_info(0), golden_info(1)]
    assert table.length.tolist() == list(LENGTHS)
    assert table.episode_return.tolist() == [4.5, -37.5]
    assert table.end_reason == ["time_limit", "collision"]
    assert table.wall_time.tolist() == [1_800_000_000.0] * 2
    for number, info in enumerate(infos):
        row = table.row(number)
        assert {name: row[name] for name in info} == info
