"""Damaged files of other tools give an error of avtd3, and nothing else."""

import random
import shutil

import pytest

from avtd3.store.errors import SpecError, UnreadableError
from avtd3.store.exchange.exporting import export_episodes
from avtd3.store.exchange.importing import SOURCES, import_episodes
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

HEAD_BYTES = 4000  # where most of the structure of an HDF5 file is
TRIES = 100


def damage(path, rng):
    """Change some bytes of one file, mostly of its head, and perhaps cut it."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    most = min(len(data), HEAD_BYTES) if rng.random() < 0.7 else len(data)
    for _ in range(rng.choice((1, 2, 8, 30))):
        place = rng.randrange(most)
        data[place] = rng.choice((0, 255, data[place] ^ 1 << rng.randrange(8), rng.randrange(256)))
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    file.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SOURCES)
def test_damaged_sources_give_an_error_or_are_imported(tmp_path, layout):
    spec = make_spec(height=40, width=36)
    write_dataset(tmp_path / "data", spec, [make_episode(spec, n, seed=n) for n in (4, 6)])
    export_episodes(tmp_path / "data", tmp_path / "whole", layout)
    refused = 0
    for seed in range(TRIES):
        source, target = tmp_path / "source", tmp_path / "target"
        for path in (source, target):
            shutil.rmtree(path, ignore_errors=True)
        copy = shutil.copy if (tmp_path / "whole").is_file() else shutil.copytree
        copy(tmp_path / "whole", source)
        damage(source, random.Random(seed))
        try:
            import_episodes(source, target, layout)
        except (SpecError, UnreadableError):
            refused += 1
    assert refused > TRIES / 2
