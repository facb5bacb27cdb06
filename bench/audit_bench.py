"""Measure the time and the peak memory of an audit of a million steps.

The dataset consists of the segments of a small one, hard-linked under new ids. Without a dataset,
the script writes one of made-up frames. All files are read from the page cache.

    python bench/audit_bench.py [collected/] [--steps 1000000] [--sample 0.05]
"""

import argparse
import dataclasses
import json
import resource
import tempfile
import time
from pathlib import Path

from open_bench import link_copy
from store_bench import road_frames, write

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.manifest import read_manifest

SOURCE_STEPS = 4_000
EPISODE_STEPS = 500


def multiply(source: Dataset, path: Path, steps: int) -> Dataset:
    """Make a dataset of at least ``steps`` steps from links to the files of another one."""
    dataset = Dataset.create(path, source.spec)
    segments, linked, number = source.snapshot().segments, 0, 0
    while linked < steps:
        segment = segments[number % len(segments)]
        manifest = read_manifest(segment.path)
        # Without a plan: otherwise every copy would be a finding.
        provenance = {k: v for k, v in manifest.provenance.items() if k != "plan_digest"}
        name = f"20270115T080000.{number:06d}Z-bench-{number:06d}-0"
        own = dataclasses.replace(manifest, provenance=provenance)
        link_copy(segment.path, dataset.segments_path / name, own)
        linked, number = linked + segment.steps, number + 1
    return dataset


def main() -> None:
    """Build the dataset, audit it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, nargs="?", help="collected segments to link")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--sample", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="audits of the same data")
    parser.add_argument("--scratch", type=Path, help="directory on the file system of the dataset")
    arguments = parser.parse_args()
    scratch = arguments.scratch
    if scratch is None and arguments.dataset is not None:
        scratch = arguments.dataset.resolve().parent
    with tempfile.TemporaryDirectory(prefix="avtd3-audit-bench-", dir=scratch) as folder:
        if arguments.dataset is None:
            frames = road_frames(SOURCE_STEPS, noise=6.0)
            source = write(Path(folder) / "source", frames, FrameCodec(), EPISODE_STEPS)
        else:
            source = Dataset.open(arguments.dataset)
        dataset = multiply(source, Path(folder) / "d", arguments.steps)
        config = AuditConfig(sample=arguments.sample, workers=arguments.workers)
        for _ in range(arguments.repeats):
            cpu, start = time.process_time(), time.perf_counter()
            report = audit([dataset.path], config)
            figures = {
                "steps": report.total.steps,
                "segments": report.total.segments,
                "segments_read": report.total.segments_read,
                "sample": arguments.sample,
                "seconds": round(time.perf_counter() - start, 2),
                "cpu_seconds": round(time.process_time() - cpu, 2),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "errors": report.log.count("error"),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
