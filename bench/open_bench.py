"""Speed of opening datasets of many segments, and of following one that is new; warm.

A learner opens without looking at the files of each segment; the other commands look at all.

Each segment is a copy of one tiny real one under its own name: the data are hard links, only the
manifest is written anew. Run ``python bench/open_bench.py [--segments N] [--json]``; 10 000
segments are 1 GB of directories and manifests and take two minutes to make.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from store_bench import SPEC

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.format.manifest import Manifest, read_manifest
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter


def write_first(path: Path) -> tuple[Dataset, Path]:
    """A dataset of one segment of two steps; its spec is that of the road world."""
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
    """A segment with the files of another one, as hard links, and a manifest of its own."""
    target.mkdir()
    for name in manifest.files:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(source / name, file)
    own = dataclasses.replace(manifest, segment_id=target.name).sealed()
    (target / MANIFEST_FILE).write_bytes(own.to_bytes())


def fill(dataset: Dataset, first: Path, segments: int) -> None:
    """Add copies until there are so many segments."""
    manifest = read_manifest(first)
    source = first
    for number in range(1, segments):
        target = dataset.segments_path / f"20270115T080000.{number:06d}Z-bench-{number:06d}-0"
        link_copy(source, target, manifest)
        if number % 20_000 == 0:  # a file has at most 65 000 names on ext4
            source = target


def measure(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median wall and processor seconds of some work."""
    times = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
    return {"wall_s": wall, "processor_s": processor}


def measure_all(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Each kind of work by name; refuses a dataset with damaged segments."""
    dataset = Dataset.open(path)
    if refused := dataset.snapshot().refused:
        raise SystemExit(f"refused: {refused[0].reason}")
    whole = dataset.snapshot(check_files=False)
    before = Snapshot(segments=whole.segments[:-1])
    return {
        "opened as a learner does": measure(
            lambda: Dataset.open(path).snapshot(check_files=False), repeats
        ),
        "opened with a look at all files": measure(lambda: Dataset.open(path).snapshot(), repeats),
        "one more followed": measure(lambda: dataset.refresh(before), repeats),
    }


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="build it here and leave it, or use what is here")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="avtd3-open-bench-") as scratch:
        path = arguments.keep or Path(scratch) / "d"
        if not path.exists():
            dataset, first = write_first(path)
            fill(dataset, first, arguments.segments)
        count = len(Dataset.open(path).segment_ids())
        found = measure_all(path, arguments.repeats)
    if arguments.json:
        print(json.dumps({"segments": count, **found}))
        return
    for name, times in found.items():
        print(
            f"{count} segments, {name}: {times['wall_s']:.3f} s "
            f"({times['processor_s']:.3f} s of one processor)"
        )


if __name__ == "__main__":
    main()
