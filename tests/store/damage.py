"""Damages copies of segments and reads them in every way there is; run as a process of its own.

``python -m avtd3.tests.store.damage DIRECTORY SEED COUNT`` prints each copy before it is read, so
that a crash of the process names what it was reading, and ends with a count of each outcome. The
rule: what a reader returns is what was published, or it raises one of the store's own errors.
"""

import dataclasses
import functools
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    FormatVersionError,
    NoSegmentsError,
    SegmentCorruptError,
    SegmentNotFoundError,
)
from avtd3.store.files import sha256
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.format.manifest import FileEntry, read_manifest
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.segment import Segment
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

SPEC = make_spec()
REFUSED = (SegmentCorruptError, SegmentNotFoundError, FormatVersionError)
CODECS = {
    "lz4hc": FrameCodec(),
    "zstd": FrameCodec(name="zstd", level=1),
    "raw": FrameCodec(name="raw", chunk_frames=3),
}
MODES = ("cache", "direct")


def rebuild_manifest(path, **changes):
    """Seal a changed segment again, as an honest stranger would."""
    files = {
        p.relative_to(path).as_posix(): FileEntry(p.stat().st_size, sha256(p.read_bytes()))
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != MANIFEST_FILE
    }
    manifest = dataclasses.replace(read_manifest(path), files=files, **changes).sealed()
    (path / MANIFEST_FILE).write_bytes(manifest.to_bytes())


def make_pristine(root: Path) -> dict[str, Dataset]:
    """One dataset of one segment for each way to encode the frames."""
    datasets = {}
    for name, codec in CODECS.items():
        episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate((5, 3, 1))]
        datasets[name] = write_dataset(root / name, SPEC, episodes, codec=codec)
    return datasets


def flip(data, rng):
    bad = bytearray(data)
    for place in rng.integers(len(bad), size=rng.integers(1, 4)):
        bad[place] ^= 1 << rng.integers(8)
    return bytes(bad)


def truncate(data, rng):
    return data[: rng.integers(len(data))]


def extend(data, rng):
    return data + rng.bytes(rng.integers(1, 40))


def zero_a_run(data, rng):
    start = rng.integers(len(data))
    length = min(len(data) - start, int(rng.integers(1, 65)))
    return data[:start] + bytes(length) + data[start + length :]


def scramble_a_run(data, rng):
    start = rng.integers(len(data))
    length = min(len(data) - start, int(rng.integers(1, 65)))
    return data[:start] + rng.bytes(length) + data[start + length :]


def move_a_run(data, rng):
    cut = rng.integers(len(data))
    return data[cut:] + data[:cut]


CHANGES = (flip, flip, truncate, extend, zero_a_run, scramble_a_run, move_a_run)


def remove(file, _rng):
    file.unlink()


def empty(file, _rng):
    file.write_bytes(b"")


def put_another(file, rng):
    segment = next(parent for parent in file.parents if parent.parent.name == "segments")
    others = sorted(p for p in segment.rglob("*") if p.is_file() and p != file)
    file.write_bytes(others[rng.integers(len(others))].read_bytes())


def put_a_directory(file, _rng):
    file.unlink()
    file.mkdir()


def put_a_pipe(file, _rng):
    file.unlink()
    os.mkfifo(file)


def put_a_link(file, _rng):
    size = file.stat().st_size
    file.unlink()
    # As long as the file was, if a path can be: what a link has as its size.
    file.symlink_to("/dev/zero".rjust(min(size, 200), "/"))


REPLACEMENTS = (remove, empty, put_another, put_a_directory, put_a_pipe, put_a_link)


def damage(file: Path, rng: np.random.Generator) -> str:
    """Do something to a file; returns what."""
    number = int(rng.integers(len(CHANGES) + len(REPLACEMENTS)))
    if number < len(CHANGES):
        file.write_bytes(CHANGES[number](file.read_bytes(), rng))
        return CHANGES[number].__name__
    REPLACEMENTS[number - len(CHANGES)](file, rng)
    return REPLACEMENTS[number - len(CHANGES)].__name__


@dataclasses.dataclass
class Truth:
    """What the undamaged dataset holds, however it is read."""

    arrays: dict[str, np.ndarray]
    batches: dict[str, list[np.ndarray]]


def read_everything(segment: Segment) -> dict[str, Callable[[], np.ndarray]]:
    """Every way to read a segment, to be tried one by one."""
    count = segment.observations
    reads: dict[str, Callable[[], np.ndarray]] = {
        name: functools.partial(segment.read, name) for name in segment.names
    }
    reads["table"] = lambda: np.array(dataclasses.astuple(segment.episode_table()), object)
    reads["some frames"] = functools.partial(segment.read_frames, count // 3, count - 1)
    return reads


def draw(dataset: Dataset, mode: str) -> list[np.ndarray]:
    """Two batches, as plain arrays."""
    config = ReplayConfig(batch_size=16, mode=mode, n_step=2)
    with Sampler([dataset], config, seed=3, scratch=dataset.path.parent) as sampler:
        found = []
        for _ in range(2):
            batch = sampler.sample()
            found += [
                np.array(getattr(batch, name))
                for name in ("frames", "observation_vector", "action", "reward", "discount")
            ]
    return found


def know(dataset: Dataset) -> Truth:
    (segment,) = dataset.snapshot().segments
    return Truth(
        arrays={name: read() for name, read in read_everything(segment).items()},
        batches={mode: draw(dataset, mode) for mode in MODES},
    )


def is_same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == object:
        return repr(one.tolist()) == repr(other.tolist())
    return one.dtype == other.dtype and np.array_equal(one, other)


def check(dataset: Dataset, truth: Truth, mode: str) -> str:
    """Read a damaged dataset in every way; raises AssertionError for a wrong answer."""
    (name,) = (p.name for p in dataset.segments_path.iterdir())
    is_whole = True
    try:
        segment = dataset.open_segment(name)
        outcome = "found when read"
        for what, read in read_everything(segment).items():
            try:
                assert is_same(read(), truth.arrays[what]), f"{what} is not what was published"
            except REFUSED:
                is_whole = False
        try:
            segment.verify()
        except REFUSED:
            is_whole = False
    except REFUSED:
        outcome, is_whole = "found when opened", False
    try:
        for got, want in zip(draw(dataset, mode), truth.batches[mode], strict=True):
            assert is_same(got, want), f"a batch ({mode}) is not what was published"
    except NoSegmentsError:
        assert not is_whole, "the sampler refuses a whole segment"
    verdict = audit([dataset.path], AuditConfig(scheduler="sync")).verdict
    assert is_whole or verdict != "ok", "the audit finds nothing"
    return "harmless" if is_whole else outcome


def run(root: Path, seed: int, count: int) -> dict[str, Any]:
    """Damage, read and restore ``count`` copies, each file of each segment in turn.

    Returns:
        How often each outcome was, and how many of how many files were damaged.
    """
    pristine = make_pristine(root / "pristine")
    truths = {name: know(dataset) for name, dataset in pristine.items()}
    files = [
        (name, file.relative_to(dataset.path))
        for name, dataset in pristine.items()
        for file in sorted(dataset.segments_path.rglob("*"))
        if file.is_file()
        # The bytes that code of others decodes, and the one file that vouches for the rest.
        for _ in range(5 if file.name == MANIFEST_FILE or "frames/c/" in file.as_posix() else 1)
    ]
    outcomes: Counter[str] = Counter()
    work = root / "work"
    start = np.random.default_rng(seed).permutation(len(files))
    for number in range(count):
        name, file = files[start[number % len(files)]]
        shutil.copytree(pristine[name].path, work)
        what = damage(work / file, np.random.default_rng((seed, number)))
        mode = MODES[number % 2]
        report(f"copy {number} ({name}): {what} of {file}, replay {mode}")
        outcomes[check(Dataset.open(work), truths[name], mode)] += 1
        shutil.rmtree(work)
    touched = {files[place] for place in start[:count]}
    return {"outcomes": outcomes, "touched": len(touched), "files": len(set(files))}


def report(line: str) -> None:
    """Print at once: the next moment may be the process's last."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    os.fsync = lambda fd: None
    report(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))


if __name__ == "__main__":
    main()
