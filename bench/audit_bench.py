"""How long an audit of a million steps takes, and how much memory at its peak.

The dataset is collected segments, hard-linked under new names until there are so many steps: the
files are read as often as if they were different ones, from the page cache.

    python bench/audit_bench.py collected/ --steps 1000000 --sample 0.05
"""

import argparse
import dataclasses
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.format.manifest import read_manifest


def multiply(source: Dataset, path: Path, steps: int) -> Dataset:
    """A dataset of at least so many steps, of links to another one's files."""
    dataset = Dataset.create(path, source.spec)
    segments, held, number = source.snapshot().segments, 0, 0
    while held < steps:
        segment = segments[number % len(segments)]
        target = dataset.segments_path / f"20270115T080000.{number:06d}Z-bench-{number:06d}-0"
        manifest = read_manifest(segment.path)
        for name in manifest.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(segment.path / name, target / name)
        # Of no plan, else every copy would be a finding.
        provenance = {k: v for k, v in manifest.provenance.items() if k != "plan_digest"}
        own = dataclasses.replace(manifest, segment_id=target.name, provenance=provenance)
        (target / MANIFEST_FILE).write_bytes(own.sealed().to_bytes())
        held, number = held + segment.steps, number + 1
    return dataset


def main() -> None:
    """Build, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="collected segments")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--sample", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="audits of the same data")
    parser.add_argument("--scratch", type=Path, help="on the dataset's file system")
    arguments = parser.parse_args()
    scratch = arguments.scratch or arguments.dataset.resolve().parent
    with tempfile.TemporaryDirectory(prefix="avtd3-audit-bench-", dir=scratch) as folder:
        source = Dataset.open(arguments.dataset)
        dataset = multiply(source, Path(folder) / "d", arguments.steps)
        config = AuditConfig(sample=arguments.sample, workers=arguments.workers)
        for _ in range(arguments.repeats):
            processor, start = time.process_time(), time.perf_counter()
            report = audit([dataset.path], config)
            figures = {
                "steps": report.total.steps,
                "segments": report.total.segments,
                "segments_read": report.total.segments_read,
                "sample": arguments.sample,
                "seconds": round(time.perf_counter() - start, 2),
                "cpu_seconds": round(time.process_time() - processor, 2),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "errors": report.log.count("error"),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
