"""Measure what many segments and many collectors cost; docs/scale.md has the figures.

    python bench/scale_bench.py remote [--segments 10000 100000]   list, open and follow a bucket
    python bench/scale_bench.py local [--segments 10000 100000]    the same with a directory
    python bench/scale_bench.py collectors [--steps 6000]          1, 2 and 4 collectors on a bucket
    python bench/scale_bench.py packing [--delay-ms 10]            fewer objects per segment

The bucket is one of SeaweedFS on this machine. In ``remote`` and ``local``, all segments but the
newest have only what a reader looks at: a manifest, and an entry in the log. They were collected
over days of 1000 segments each. Requests and bytes are counted by a proxy in a run of their own.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from open_bench import measure, write_first

from avtd3.store.dataset import Dataset
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.format.manifest import Manifest, read_manifest
from avtd3.store.remote.background import Mirror
from avtd3.store.remote.client import LocalPlace, RemotePlace
from avtd3.store.remote.commit import segment_key
from avtd3.store.remote.log import LogEntry, LogReader, add_entry, stamp, summarise_days
from avtd3.store.remote.transfer import SegmentCopier, list_segments
from avtd3.tests.store.remote import servers

PER_DAY, DAY_S = 1000, 86_400.0
WHOLE, NEW = 50, 10
"""Newest segments that are whole, and those that are published while a reader follows."""


def copies(first: Path, ids: list[str]) -> Iterator[Manifest]:
    """Yield manifests of copies of a segment."""
    manifest = read_manifest(first)
    for segment_id in ids:
        yield dataclasses.replace(manifest, segment_id=segment_id).sealed()


def times_of(segments: int) -> list[float]:
    """Return when the segments were published: 1000 each day, until some minutes ago."""
    end_s = time.time() - 1200.0
    return [end_s - (segments - n) * DAY_S / PER_DAY for n in range(segments)]


def name_of(time_s: float, number: int) -> str:
    """Return the id of a segment."""
    return f"{stamp(time_s)}-bench-{number:06d}-00000000"


def whole_copy(first: Path, target: Path, manifest: Manifest) -> None:
    """Write a whole copy of a segment into a dataset."""
    shutil.copytree(first, target)
    (target / MANIFEST_FILE).write_bytes(manifest.to_bytes())


def fill_bucket(url: str, local: Path, segments: int) -> None:
    """Make a dataset at a URL; its newest segments are published by the code of avtd3."""
    dataset, first = write_first(local)
    place, times = RemotePlace(url), times_of(segments)
    names = [name_of(time_s, n) for n, time_s in enumerate(times)]
    sealed = list(zip(copies(first, names), times, strict=True))

    def put(item: tuple[Manifest, float]) -> None:
        manifest, time_s = item
        place.write(segment_key(manifest.segment_id, MANIFEST_FILE), manifest.to_bytes())
        add_entry(place, LogEntry.of(manifest, time_s, indices=(0,), lengths=(2,)))

    place.write("zarr.json", (local / "zarr.json").read_bytes())
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, sealed[:-WHOLE]))
    source = LocalPlace(local)
    with SegmentCopier(source, place) as copier:
        for manifest, _ in sealed[-WHOLE:]:
            whole_copy(first, dataset.segments_path / manifest.segment_id, manifest)
            copier.copy(manifest, manifest.to_bytes())


@dataclasses.dataclass
class Phases:
    """Sends what each phase of a measured process took to the process that counts requests."""

    pipe: Any

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a phase."""
        self.pipe.send(("begin", name))
        self.pipe.recv()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        times = {
            "wall_s": time.perf_counter() - wall_s,
            "cpu_s": time.process_time() - cpu_s,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
        }
        self.pipe.send((name, times))
        self.pipe.recv()


class CountingProxy(servers.FaultProxy):
    """Counts requests and bytes."""

    def count(self) -> dict[str, int]:
        """Return what was counted, and start again."""
        methods = [method for method, _ in self.requests]
        lists = sum("list-type" in path for _, path in self.requests)
        counts = {
            "requests": len(methods),
            "PUT": methods.count("PUT"),
            "LIST": lists,
            "GET": methods.count("GET") - lists,
            "bytes": self.size_bytes,
        }
        self.requests, self.size_bytes = [], 0
        return counts


def in_process(
    work: Callable[..., None], arguments: tuple[Any, ...], proxy: CountingProxy | None
) -> dict[str, dict[str, float]]:
    """Run work in a new process; return what each of its phases took."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    before = os.environ["AWS_ENDPOINT_URL"]
    if proxy is not None:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    process = context.Process(target=work, args=(Phases(there), *arguments))
    process.start()
    os.environ["AWS_ENDPOINT_URL"] = before
    there.close()
    found: dict[str, dict[str, float]] = {}
    with contextlib.suppress(EOFError):
        while True:
            name, value = here.recv()
            counts = proxy.count() if proxy is not None else {}
            if name != "begin":
                found[name] = {**value, **counts}
            here.send("continue")
    process.join()
    if process.exitcode:
        raise SystemExit(f"a measured process failed: {process.exitcode}")
    return found


def read_bucket(phase: Phases, url: str, local: Path, folder: Path, number: int) -> None:
    """List, open and follow the dataset at a URL."""
    place = RemotePlace(url)
    with phase("start"):
        _ = place.honours_conditions
    with phase("list all segments"):
        list_segments(place)
    with phase("open the newest 2000 steps"):
        LogReader(place).open(2 * PER_DAY)
    with phase("open all"):
        LogReader(place).open()
    mirror = Mirror(url, folder, max_bytes=1 << 40, steps=2 * WHOLE)
    with phase(f"fill a mirror with {WHOLE} segments"):
        mirror.fill(lambda: False, lambda _: None)
    mirror.work()
    with phase("look for new segments: none"):
        mirror.work()
    dataset, source = Dataset.open(local), LocalPlace(local)
    first = dataset.segments_path / dataset.segment_ids()[-1]
    names = [name_of(time.time(), 10**5 * number + n) for n in range(NEW)]
    with SegmentCopier(source, place) as copier:
        for manifest in copies(first, names):
            whole_copy(first, dataset.segments_path / manifest.segment_id, manifest)
        with phase(f"publish {NEW} segments"):
            for manifest in copies(first, names):
                copier.copy(manifest, manifest.to_bytes())
    with phase(f"look for new segments: {NEW}"):
        mirror.work()
    assert set(names) <= set(Dataset.open(folder).segment_ids())


def measure_remote(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of datasets of several sizes in a bucket."""
    figures = {}
    for segments in options.segments:
        url, local = f"s3://bench/n{segments}", folder / f"local-{segments}"
        if not local.exists():
            fill_bucket(url, local, segments)
        start_s, cpu_s = time.perf_counter(), time.process_time()
        days = summarise_days(RemotePlace(url), time.time())
        took = f"{time.perf_counter() - start_s:.1f} s ({time.process_time() - cpu_s:.1f} s of CPU)"
        print(f"{segments} segments: {len(days)} days summarised in {took}", file=sys.stderr)
        if options.only_make:
            continue
        found: dict[str, Any] = {}
        found |= in_process(read_bucket, (url, local, folder / f"m{segments}", 1), None)
        with CountingProxy(servers.Server(os.environ["AWS_ENDPOINT_URL"])) as proxy:
            counted = (url, local, folder / f"c{segments}", 2)
            for name, counts in in_process(read_bucket, counted, proxy).items():
                kept = {k: v for k, v in counts.items() if k not in ("wall_s", "cpu_s")}
                found[name] = {**kept, **found[name]}
        figures[f"{segments} segments"] = found
        print(json.dumps(found), file=sys.stderr)
    return figures


def measure_local(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of directories of several sizes."""
    figures = {}
    for segments in options.segments:
        path = folder / f"d{segments}"
        dataset, first = write_first(path)
        names = [name_of(time_s, n) for n, time_s in enumerate(times_of(segments - 1))]
        for manifest in copies(first, names):
            (target := dataset.segments_path / manifest.segment_id).mkdir()
            (target / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        whole = dataset.snapshot(check_files=False)
        before = dataclasses.replace(whole, segments=whole.segments[:-NEW])
        found: dict[str, Any] = {
            "list": measure(dataset.segment_ids, options.repeats),
            "open as by a learner": measure(
                lambda: Dataset.open(path).snapshot(check_files=False),  # noqa: B023
                options.repeats,
            ),
            "look for new segments: none": measure(lambda: dataset.refresh(whole), 5),  # noqa: B023
            f"look for new segments: {NEW}": measure(
                lambda: dataset.refresh(before, check_files=False),  # noqa: B023
                5,
            ),
        }
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
        figures[f"{segments} segments"] = {**found, "memory_mb": rss}
        shutil.rmtree(path)
    return figures


def run_collectors(url: str, number: int, options: argparse.Namespace, endpoint: str) -> dict:
    """Run collectors at the same time, each with its own spool; return what they took together."""
    environment, start_s = {**os.environ, "AWS_ENDPOINT_URL": endpoint}, time.perf_counter()
    words = [sys.executable, "-m", "avtd3.cli", "collect", url, "--quiet"]
    words += ["--steps", str(options.steps)]
    running = []
    for seed in range(number):
        spool = f"{options.folder}/{url.rpartition('/')[2]}-{seed}"
        own = ["--seed", str(seed), "--set", f"collect.spool={spool}"]
        running.append(subprocess.Popen([*words, *own], env=environment))
    cpu_s, failed = 0.0, 0
    for process in running:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        cpu_s += usage.ru_utime + usage.ru_stime
        failed += status != 0
    if failed:
        raise SystemExit(f"{failed} collectors failed")
    wall_s = time.perf_counter() - start_s
    entries = LogReader(RemotePlace(url)).open()
    steps = sum(entry.steps for entry in entries)
    return {
        "segments": len(entries),
        "steps": steps,
        "steps/s": steps / wall_s,
        "cpu_us/step": 1e6 * cpu_s / steps,
        "bytes/step": sum(entry.size_bytes for entry in entries) / steps,
    }


def measure_collectors(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of several collectors, and the requests of one."""
    options.folder, endpoint = folder, os.environ["AWS_ENDPOINT_URL"]
    found = {}
    for number in options.collectors:
        url = f"s3://bench/c{number}"
        found[f"{number} collectors"] = run_collectors(url, number, options, endpoint)
        print(json.dumps(found), file=sys.stderr)
    with CountingProxy(servers.Server(endpoint)) as proxy:
        counted = run_collectors("s3://bench/counted", 1, options, proxy.endpoint)
        requests = proxy.count()
    per_segment = {f"{k}/segment": v / counted["segments"] for k, v in requests.items()}
    return {**found, "1 collector, counted": {**counted, **per_segment}}


def push_packed(place: RemotePlace, source: LocalPlace, manifest: Manifest) -> None:
    """Put a segment as a pack of its small files, its shards, its manifest and its log entry."""
    prefix = segment_key(manifest.segment_id)
    shards = [name for name, entry in manifest.files.items() if entry.size > 64 * 1024]
    pack = b"".join(source.read(prefix + n) for n in manifest.files if n not in shards)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(place.write, f"{prefix}pack", pack)]
        jobs += [pool.submit(place.write, prefix + n, source.read(prefix + n)) for n in shards]
        for job in jobs:
            job.result()
    place.sizes(prefix)
    place.create(f"{prefix}{MANIFEST_FILE}", manifest.to_bytes())
    add_entry(place, LogEntry.of(manifest, time.time()))


def pull_packed(place: RemotePlace, target: Path, manifest: Manifest) -> None:
    """Get such a segment, and write its files."""
    prefix = segment_key(manifest.segment_id)
    shards = [name for name, entry in manifest.files.items() if entry.size > 64 * 1024]
    place.read(f"{prefix}{MANIFEST_FILE}")
    with ThreadPoolExecutor(8) as pool:
        pack, *data = pool.map(lambda n: place.read(prefix + n), ["pack", *shards])
    found, start = dict(zip(shards, data, strict=True)), 0
    for name, entry in manifest.files.items():
        if name not in found:
            found[name], start = pack[start : start + entry.size], start + entry.size
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with (target / name).open("wb") as file:
            file.write(found[name])
            file.flush()
            os.fsync(file.fileno())


def move_segments(phase: Phases, url: str, local: Path, folder: Path) -> None:
    """Push and pull all segments of a dataset, as they are and packed."""
    place, source = RemotePlace(url), LocalPlace(local)
    names = Dataset.open(local).segment_ids()
    manifests = [read_manifest(local / "segments" / name) for name in names]
    with phase("start"):
        transfer_spec(source, place)
    with phase("push"), SegmentCopier(source, place) as copier:
        for manifest in manifests:
            copier.copy(manifest, manifest.to_bytes())
    Dataset.create(folder, Dataset.open(local).spec)
    with phase("pull"), SegmentCopier(place, LocalPlace(folder)) as copier:
        for name in names:
            found = copier.manifest(name)
            assert found is not None
            copier.copy(*found)
    with phase("push packed"):
        for manifest in manifests:
            push_packed(RemotePlace(f"{url}-packed"), source, manifest)
    with phase("pull packed"):
        for manifest in manifests:
            target = folder / "packed" / manifest.segment_id
            pull_packed(RemotePlace(f"{url}-packed"), target, manifest)


def transfer_spec(source: LocalPlace, place: RemotePlace) -> None:
    """Create the dataset at a URL."""
    place.write("zarr.json", source.read("zarr.json"))
    _ = place.honours_conditions


def wait_before_answers(wait_s: float) -> Callable[[str, str], str]:
    """Return the fault of a proxy that only delays each request."""

    def fault(method: str, path: str) -> str:
        time.sleep(wait_s)
        return ""

    return fault


def measure_packing(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of both layouts, for each segment."""
    local = folder / "data"
    words = [sys.executable, "-m", "avtd3.cli", "collect", str(local), "--quiet"]
    subprocess.run([*words, "--steps", str(options.steps)], check=True)
    segments = len(Dataset.open(local).segment_ids())
    figures = {}
    for delay_ms in (0.0, *options.delay_ms):
        with CountingProxy(servers.Server(os.environ["AWS_ENDPOINT_URL"])) as proxy:
            proxy.fault = wait_before_answers(delay_ms / 1000.0)
            url = f"s3://bench/p{delay_ms:g}"
            found = in_process(move_segments, (url, local, folder / f"{delay_ms}"), proxy)
        figures[f"{delay_ms:g} ms per request, for each of {segments} segments"] = {
            name: {k: v if k == "memory_mb" else v / segments for k, v in figure.items()}
            for name, figure in found.items()
            if name != "start"
        }
        print(json.dumps(figures), file=sys.stderr)
    return figures


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "remote": measure_remote,
    "local": measure_local,
    "collectors": measure_collectors,
    "packing": measure_packing,
}


def show(figures: dict[str, Any]) -> None:
    """Print figures by group, one line for each phase."""
    for group, phases in figures.items():
        print(group)
        for name, values in phases.items():
            if isinstance(values, dict):
                text = ", ".join(f"{k} {v:.6g}" for k, v in values.items())
                print(f"    {name:34} {text}")
            else:
                print(f"    {name:34} {values:.6g}")


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--segments", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--collectors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[10.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="keep the bucket here, or use what is there")
    parser.add_argument("--only-make", action="store_true", help="make the datasets, and stop")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="avtd3-scale-"))
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not (folder / "weed").exists()
        if options.part != "local":
            server = stack.enter_context(servers.start_weed(folder))
            os.environ.update(server.environment)
            if is_new:
                servers.put_bucket(server, "bench")
        figures = PARTS[options.part](options, folder)
    print(json.dumps(figures)) if options.json else show(figures)


if __name__ == "__main__":
    main()
