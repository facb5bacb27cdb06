"""Compare sampling from a dataset at an S3 URL with sampling from the same dataset on disk.

    python bench/remote_bench.py [--frames 20000] [--batches 400] [--repeats 9] [--json]

The store is moto on this machine. The learner's mirror is filled first, and its thread keeps
following the URL meanwhile. Both samplers take turns; the median of the ratio of their CPU times,
that of the mirror's thread included, is printed.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from sampling_bench import make_dataset

from avtd3.store.dataset import Dataset
from avtd3.store.remote.background import Mirror
from avtd3.store.remote.transfer import transfer
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.remote import servers


def process_s(sampler: Sampler, batches: int) -> float:
    """Return the CPU time that this process takes, all threads together, for some batches."""
    start_s = time.process_time()
    for _ in range(batches):
        sampler.sample()
    return time.process_time() - start_s


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the figures, by name."""
    dataset, url = make_dataset(folder / "data", options.frames), "s3://bench/data"
    pushed = transfer(dataset.path, url)
    mirror = Mirror(url, folder / "mirror", max_bytes=1 << 40, steps=1 << 40)
    with contextlib.ExitStack() as stack:
        start_s = time.monotonic()
        mirror.fill(lambda: False, lambda _: None)
        filled_s = time.monotonic() - start_s
        stack.enter_context(mirror)
        config = ReplayConfig(mode="cache")
        local, remote = (
            stack.enter_context(Sampler([each], config, seed=0, scratch=folder))
            for each in (dataset, Dataset.open(mirror.path))
        )
        ratios = []
        for repeat in range(options.repeats + 1):
            pair = [local, remote] if repeat % 2 else [remote, local]
            times = {id(sampler): process_s(sampler, options.batches) for sampler in pair}
            ratios.append(times[id(local)] / times[id(remote)])
        steps = float(remote.steps)
    return {
        "steps": steps,
        "sampling speed from the URL / from disk": statistics.median(ratios[1:]),
        "push MB/s": pushed.size_bytes / pushed.seconds / 1e6,
        "mirror MB/s": pushed.size_bytes / filled_s / 1e6,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, servers.start_moto(Path(name)) as server:
        os.environ.update(server.environment)
        servers.put_bucket(server, "bench")
        figures = measure(Path(name), options)
    if options.json:
        print(json.dumps(figures))
        return
    for what, figure in figures.items():
        print(f"{what:42} {figure:10.2f}")


if __name__ == "__main__":
    main()
