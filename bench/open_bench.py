"""Measure how long it takes to open a dataset of many segments, and to find one new segment.

A learner opens a dataset without checking the files of each segment; the other commands check them.
Each segment is a copy of one tiny segment under its own id: the data are hard links, only the
manifest is written. Files are read from the page cache. Run
``python bench/open_bench.py [--segments N] [--json]``; 10 000 segments are 1 GB of directories and
manifests and take two minutes to make.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from store_bench import SPEC, road_frames, write

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.format.manifest import Manifest, read_manifest
from avtd3.store.maintenance.compact import compact
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter


def write_first(path: Path) -> tuple[Dataset, Path]:
    """Write a dataset of one segment of two steps; return it and the segment's directory."""
    dataset = Dataset.create(path, SPEC)
    seen = Observation(image=np.zeros((1, 84, 84), np.uint8), vector=np.zeros(23, np.float32))
    with SegmentWriter(dataset, collector="bench") as writer:
        writer.begin(seen)
        for n in (1, 2):
            terms = np.zeros(4, np.float32)
            writer.step(np.zeros(2, np.float32), None, seen, truncated=n == 2, reward_terms=terms)
        writer.end("time_limit")
    (name,) = dataset.segment_ids()
    return dataset, dataset.segments_path / name


def link_copy(source: Path, target: Path, manifest: Manifest) -> None:
    """Make a segment from hard links to the files of another one, with its own id."""
    target.mkdir()
    for name in manifest.files:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(source / name, file)
    own = dataclasses.replace(manifest, segment_id=target.name).sealed()
    (target / MANIFEST_FILE).write_bytes(own.to_bytes())


def fill(dataset: Dataset, first: Path, segments: int) -> None:
    """Add copies of the first segment until the dataset has ``segments`` segments."""
    manifest = read_manifest(first)
    source = first
    for number in range(1, segments):
        target = dataset.segments_path / f"20270115T080000.{number:06d}Z-bench-{number:06d}-0"
        link_copy(source, target, manifest)
        if number % 20_000 == 0:  # a file has at most 65 000 names on ext4
            source = target


def write_leftovers(path: Path, steps: int) -> Dataset:
    """Write a dataset that was merged, and bring back the segments that were merged."""
    frames = road_frames(steps + steps // 200, noise=2.0)
    dataset = write(path, frames, FrameCodec(), episode_steps=200)
    aside = shutil.copytree(dataset.segments_path, path / "aside")
    compact(path, target_steps=2 * steps)
    for segment in aside.iterdir():
        if not (dataset.segments_path / segment.name).exists():
            segment.rename(dataset.segments_path / segment.name)
    return dataset


def measure(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the median wall-clock and CPU seconds of some work."""
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    return {"wall_s": wall, "cpu_s": cpu}


def measure_all(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Return the times of each kind of work by name; exit if a segment is damaged."""
    dataset = Dataset.open(path)
    if refused := dataset.snapshot().refused:
        raise SystemExit(f"refused: {refused[0].reason}")
    whole = dataset.snapshot(check_files=False)
    before = Snapshot(segments=whole.segments[:-1])
    return {
        "opened as by a learner": measure(
            lambda: Dataset.open(path).snapshot(check_files=False), repeats
        ),
        "opened with all files checked": measure(lambda: Dataset.open(path).snapshot(), repeats),
        "one new segment found": measure(lambda: dataset.refresh(before), repeats),
    }


def measure_proof(path: Path, steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return the times to check that a merged segment holds what it replaces."""
    dataset = write_leftovers(path, steps)
    known = dataset.snapshot()
    if not known.replaced or known.unproven:
        raise SystemExit("the merged segment is not proven to replace its sources")
    return {
        f"a replacement of {known.steps} steps proven": measure(dataset.snapshot, repeats),
        "the same, known from a snapshot": measure(lambda: dataset.refresh(known), repeats),
    }


def main() -> None:
    """Build the dataset, measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--proof-steps", type=int, default=10_000)
    parser.add_argument(
        "--keep", type=Path, help="build it here and keep it, or use it if it exists"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="avtd3-open-bench-") as scratch:
        path = arguments.keep or Path(scratch) / "d"
        if not path.exists():
            dataset, first = write_first(path)
            fill(dataset, first, arguments.segments)
        count = len(Dataset.open(path).segment_ids())
        found = measure_all(path, arguments.repeats)
        proof = Path(scratch) / "proof"
        found |= measure_proof(proof, arguments.proof_steps, arguments.repeats)
    if arguments.json:
        print(json.dumps({"segments": count, **found}))
        return
    for name, times in found.items():
        print(
            f"{count} segments, {name}: {times['wall_s']:.3f} s ({times['cpu_s']:.3f} s CPU time)"
        )


if __name__ == "__main__":
    main()
