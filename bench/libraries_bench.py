"""Measure the libraries that docs/decisions/007 decides on: imports, sizes, speed and faults.

    python bench/libraries_bench.py

It needs about 20 s. matplotlib is measured if it is installed (``pip install -e '.[bench]'``).
"""

import importlib.metadata
import importlib.util
import io
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dependencies import size_mb

IMPORTS = (
    "pydantic.type_adapter",
    "numpy",
    "numpy, scipy.special",
    "numpy, scipy.stats",
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.backend.event_processing.event_file_loader",
    "matplotlib.backends.backend_agg, matplotlib.figure",
)
PACKAGES = ("pydantic", "pydantic_core", "scipy", "matplotlib", "fonttools", "tensorboard")


def main() -> None:
    """Print one line per figure."""
    for name in IMPORTS:
        if importlib.util.find_spec(name.split(",")[0].split(".")[0]):
            print(f"import {name}: {import_seconds(name):.2f} s")
    for package in PACKAGES:
        print(f"size of {package}: {size_of(package)}")
    configurations()
    statistics_of_scipy()
    with tempfile.TemporaryDirectory(prefix="avtd3-libraries-bench-") as folder:
        event_files(Path(folder))


def import_seconds(names: str, repeats: int = 5) -> float:
    """Return the median time of an import in a fresh interpreter, less that of an empty one."""

    def median(code: str) -> float:
        command = [sys.executable, "-c", code]
        return statistics.median(
            timeit.timeit(lambda: subprocess.run(command, check=True), number=1)
            for _ in range(repeats)
        )

    return median(f"import {names}") - median("pass")


def size_of(package: str) -> str:
    """Return the size of the installed files of a package as text."""
    try:
        return f"{size_mb(importlib.metadata.distribution(package)):.0f} MB"
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def best_ms(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest duration of a call."""
    return 1e3 * min(timeit.repeat(call, number=1, repeat=repeats))


def configurations() -> None:
    """Measure validators, values and schemas of the largest sections."""
    from avtd3.configs import load

    for section in ("collect", "learn"):
        kind = load.section_type(section)

        def first(kind: type = kind, described: bool = False) -> object:
            load._adapter.cache_clear()
            return load._adapter(kind, described=described)

        print(
            f"{section}: validator {best_ms(first):.1f} ms, with docstrings "
            f"{best_ms(lambda f=first: f(described=True)):.1f} ms"  # type: ignore[misc]
        )
        load.build(kind, {}, path=section)
        values = best_ms(lambda k=kind, s=section: load.build(k, {}, path=s))  # type: ignore[misc]
        print(f"{section}: values {values:.2f} ms")


def statistics_of_scipy() -> None:
    """Compare our statistics with scipy's: time per call."""
    import numpy as np
    from scipy import special, stats

    from avtd3.collect.scores import bootstrap_interval, wilson_interval
    from avtd3.learn.analysis.statistics import kendall_variance, mean_ranks, theil_sen_slope
    from avtd3.store.audit.drift import kolmogorov_smirnov

    rng = np.random.default_rng(0)
    x, y = np.arange(60.0), rng.normal(size=60)
    pairs_of_60 = np.triu_indices(60, 1)
    first, second, sample = rng.normal(size=4096), rng.normal(size=4096), rng.normal(size=100)

    def bootstrap() -> object:
        return stats.bootstrap((sample,), np.mean, n_resamples=2000, method="percentile", rng=rng)

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "slope of 60 points": (
            lambda: theil_sen_slope(x, y),
            lambda: stats.theilslopes(y, x),
        ),
        "Mann-Kendall of 60": (
            lambda: (
                np.sign(y[None, :] - y[:, None])[pairs_of_60].sum(),
                kendall_variance(y),
            ),
            lambda: stats.kendalltau(x, y, method="asymptotic"),
        ),
        "ranks of 60": (lambda: mean_ranks(y), lambda: stats.rankdata(y)),
        "Kolmogorov-Smirnov of 4096": (
            lambda: kolmogorov_smirnov(first, second),
            lambda: stats.ks_2samp(first, second),
        ),
        "Wilson": (
            lambda: wilson_interval(3, 7),
            lambda: stats.binomtest(3, 7).proportion_ci(method="wilson"),
        ),
        "bootstrap of 100": (lambda: bootstrap_interval(sample), bootstrap),
    }
    print(
        f"quantile of Student by scipy: {1e3 * best_ms(lambda: special.stdtrit(7.3, 0.995)):.0f} us"
    )
    for name, (ours, theirs) in pairs.items():
        print(f"{name}: ours {1e3 * best_ms(ours):.0f} us, scipy {1e3 * best_ms(theirs):.0f} us")


def event_files(folder: Path, lines: int = 2000) -> None:
    """Compare our event reader with TensorBoard's: events per second, and broken files."""
    from tensorboard.backend.event_processing.event_file_loader import (
        EventFileLoader,
        LegacyEventFileLoader,
    )
    from tensorboard.summary.writer.record_writer import masked_crc32c

    from avtd3.learn.analysis.event_log import read_log
    from avtd3.learn.logging import EventWriter
    from avtd3.learn.metrics import METRICS

    names = [str(name) for name in METRICS][:80]
    writer = EventWriter(folder, first_step=1)
    for step in range(1, lines + 1):
        writer.write(step, dict.fromkeys(names, step * 0.5))
    writer.close()
    (path,) = folder.iterdir()

    def report(name: str, read: Callable[[], object]) -> None:
        print(f"{name}: {1e3 * lines / best_ms(read, 3):,.0f} events of {len(names)} scalars/s")

    report("our reader, to curves", lambda: read_log(path))
    report(
        "TensorBoard's LegacyEventFileLoader, events only",
        lambda: drain(LegacyEventFileLoader, path),
    )
    report("TensorBoard's EventFileLoader, events only", lambda: drain(EventFileLoader, path))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3000] ^= 1
    claims = {}
    for power in (40, 64):
        head = struct.pack("<Q", (1 << power) - 1)
        claims[f"a claim of 2^{power} - 1 bytes"] = head + struct.pack("<I", masked_crc32c(head))
    cases = {"truncated": whole[:-5], "a flipped bit": bytes(flipped)}
    cases["a record that is no event"] = whole + framed(b"\xff\xff\xff")
    cases |= {name: whole + record for name, record in claims.items()}
    for name, data in cases.items():
        path.write_bytes(data)
        try:
            theirs = f"{drain(LegacyEventFileLoader, path):,} events without a word"
        except Exception as error:  # noqa: BLE001 - which one is the question
            theirs = type(error).__name__
        log = read_log(path)
        said = [text.removeprefix(path.name).strip() for text in (*log.notices, *log.damaged)]
        print(f"{name}: TensorBoard: {theirs}; ours: {'; '.join(said)}")


def framed(data: bytes) -> bytes:
    """Return a record with right checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    RecordWriter(file).write(data)
    return file.getvalue()


def drain(loader: Callable[[str], Any], path: Path) -> int:
    """Return the number of events that a loader yields."""
    events: Iterable[object] = loader(str(path)).Load()
    return sum(1 for _ in events)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"measured in {time.perf_counter() - start:.0f} s")
