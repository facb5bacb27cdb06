"""Measure batches per second of `Sampler` in its modes, of other replay buffers, and of np.take.

    pip install -c constraints.txt -e '.[native,bench]'
    python bench/replay_bench.py [--frames all] [--count 20000] [--data DIR] [--markdown | --json]

The floor is one ``np.take`` of the same number of frames from the same mapped file into a reused
buffer, without random numbers, rewards or vectors. Every rival returns 256 transitions with
observation and next observation of four frames, action, reward and end. All sample the same
episodes; one batch of each is first checked against them. Rivals take turns within each repeat, on
one thread unless stated otherwise. Rates and ratios are medians over the repeats; each ratio is of
two rates of the same repeat.

The datasets are made once and kept in ``--data``; see `replay_frames`.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from peers import Drawn, Material, Peer, make_cpprb, make_minari, make_sb3, make_torchrl
from peers_zarr import make_tensorstore, make_zarr, make_zarrs
from replay_frames import KINDS, open_copy, open_frames
from replay_table import Row, Table

from avtd3.store.dataset import Dataset
from avtd3.store.format.codec import FrameCodec
from avtd3.store.replay import direct
from avtd3.store.replay.cache import ReplayCache
from avtd3.store.replay.chunks import ChunkDecoder, usable_cores
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.direct import JoinedDecoder
from avtd3.store.replay.gather import Transitions
from avtd3.store.replay.native import native_problem, open_decoder
from avtd3.store.replay.sampler import Sampler

SB3 = "stable-baselines3 ReplayBuffer, in RAM"
PEERS: dict[str, Callable[[Material, Path], Peer]] = {
    SB3: make_sb3,
    "cpprb stack_compress, in RAM": make_cpprb,
    "TorchRL LazyMemmapStorage": make_torchrl,
    "Minari, uniform transitions": make_minari,
    "tensorstore on the same shards": make_tensorstore,
    "zarrs on the same shards": make_zarrs,
    "zarr-python on the same shards": make_zarr,
}

COPIES = {
    "chunks of one": FrameCodec(chunk_frames=1),
    "raw frames": FrameCodec(name="raw", chunk_frames=1),
}
"""Other codecs than the default one, for direct replay."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Something that returns batches, and what it is compared with."""

    draw: Callable[[], object]
    floor: str = ""
    """Name of the np.take of as many frames; empty for np.take itself."""
    memory_bytes: int = 0
    disk_bytes: int = 0


def fill_rate(dataset: Dataset, scratch: Path, cores: set[int]) -> float:
    """Return the frames per second decoded into an empty cache; the files are in the page cache.

    Args:
        dataset: The dataset to decode.
        scratch: Directory of the cache.
        cores: Cores to use.
    """
    segments = {(0, segment.id): segment for segment in dataset.snapshot().segments}
    cache = ReplayCache(dataset.spec, scratch)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # also applies to the threads that this one starts
    try:
        start = time.perf_counter()
        cache.follow(segments)
        seconds = time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, before)
        cache.close()
    return sum(segment.observations for segment in segments.values()) / seconds


def make_floor(sampler: Sampler, material: Material, width: int) -> Rival:
    """Return an np.take of random windows, drawn beforehand, into one buffer."""
    frames = sampler.backend.arrays()["frames"]
    flat = frames.reshape(len(frames), -1)
    first = np.random.default_rng(1).integers(
        0, len(material.frames) - width, (64, material.batch, 1)
    )
    windows = first + np.arange(width)
    out = np.empty((material.batch, width, flat.shape[1]), np.uint8)
    turn = iter(range(1 << 62))
    return Rival(draw=lambda: np.take(flat, windows[next(turn) % 64], axis=0, out=out, mode="clip"))


def add_ours(
    rivals: dict[str, Rival], dataset: Dataset, material: Material, scratch: Path
) -> list[Sampler]:
    """Add samplers in all modes, in direct mode also with other codecs, and their floors."""
    samplers = []
    shards = sum(segment.size_bytes for segment in dataset.snapshot().segments)
    for n in (1, 3):
        config = ReplayConfig(batch_size=material.batch, n_step=n, mode="cache")
        sampler = Sampler([dataset], config, seed=0, scratch=scratch, buffers=1)
        samplers.append(sampler)
        width = material.stack + 1 if n == 1 else 2 * material.stack
        floor = f"floor: np.take of {width} frames"
        rivals[floor] = make_floor(sampler, material, width)
        name = f"avtd3 cache, {n}-step"
        disk_bytes = shards + _scratch_bytes(sampler)
        rivals[name] = Rival(draw=sampler.sample, floor=floor, disk_bytes=disk_bytes)
    sources = {"": dataset}
    for kept, codec in COPIES.items():
        sources[f", {kept}"] = open_copy(dataset, kept.replace(" ", "-"), codec)
    for (name, decoder), (kept, source) in itertools.product(_decoders().items(), sources.items()):
        config = ReplayConfig(batch_size=material.batch, mode="direct")
        with mock.patch.object(direct, "open_decoder", decoder):
            sampler = Sampler([source], config, seed=0, scratch=scratch, buffers=1)
        samplers.append(sampler)
        held = source.snapshot().segments
        rivals[name + kept] = Rival(
            draw=sampler.sample,
            floor=f"floor: np.take of {material.stack + 1} frames",
            memory_bytes=sum(segment.frame_shard().spans.nbytes for segment in held),
            disk_bytes=sum(segment.size_bytes for segment in held) + _scratch_bytes(sampler),
        )
    for sampler in samplers:
        if sampler.config.n_step == 1:
            check(material, _read_ours(sampler.sample()))
    return samplers


def _decoders() -> dict[str, Callable[[int], ChunkDecoder | None]]:
    """Return the ways to decode frames, each with every number of threads."""
    cores = min(2, usable_cores())
    ways: dict[str, Callable[[int, int], ChunkDecoder | None]] = {"numcodecs": JoinedDecoder}
    if not native_problem():
        ways["native"] = open_decoder
    return {
        f"avtd3 direct, {name}, {threads} thread{'s' * (threads > 1)}": functools.partial(
            _open, way, threads
        )
        for name, way in ways.items()
        for threads in range(cores, 0, -1)
    }


def _open(
    way: Callable[[int, int], ChunkDecoder | None], threads: int, frame_bytes: int
) -> ChunkDecoder | None:
    return way(frame_bytes, threads)


def _scratch_bytes(sampler: Sampler) -> int:
    """Return the size of the rows in use in the scratch directory."""
    backend = sampler.backend
    rows = sum(found.steps + len(found.first_rows) for found in backend.segments.values())
    return rows * sum(array[0].nbytes for array in backend.arrays().values())


def _read_ours(batch: Transitions) -> Drawn:
    assert batch.observation_frames is not None
    assert batch.next_observation_frames is not None
    return Drawn(
        observation=batch.observation_frames,
        next_observation=batch.next_observation_frames,
        action=batch.action,
        reward=batch.reward,
    )


def check(material: Material, drawn: Drawn) -> None:
    """Check that a batch contains complete transitions of the dataset.

    SB3 and cpprb lose the last observation of an episode, so a next observation is compared only if
    another step follows.
    """
    shape = (material.batch, material.stack * material.frames.shape[1], *material.frames.shape[2:])
    assert drawn.observation.shape == drawn.next_observation.shape == shape
    steps: dict[bytes, list[int]] = {}
    for number, action in enumerate(material.action):
        steps.setdefault(action.tobytes(), []).append(number)
    rows, ends = material.rows(), set((material.lengths.cumsum() - 1).tolist())
    for number in range(material.batch):
        action = np.asarray(drawn.action[number], np.float32).tobytes()
        found = [
            step
            for step in steps[action]
            if material.reward[step] == drawn.reward[number]
            and (material.stacks(rows[[step]]) == drawn.observation[number]).all()
        ]
        assert found, "an observation that is not in the dataset"
        following = drawn.next_observation[number]
        assert any(
            step in ends or (material.stacks(rows[[step]] + 1) == following).all() for step in found
        ), "a next observation that does not follow"


def add_peers(rivals: dict[str, Rival], material: Material, scratch: Path) -> dict[str, str]:
    """Add every peer that is installed; return the others with the reason."""
    missing = {}
    for name, make in PEERS.items():
        try:
            peer = make(material, scratch)
        except ImportError as error:
            missing[name] = f"not installed: {error}"
            continue
        check(material, peer.read(peer.draw()))
        rivals[name] = Rival(
            draw=peer.draw,
            floor=f"floor: np.take of {material.stack + 1} frames",
            memory_bytes=peer.memory_bytes,
            disk_bytes=peer.disk_bytes,
        )
    return missing


def measure(rivals: dict[str, Rival], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Return the batches per second of each rival in each repeat, measured in turns."""
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for rival in rivals.values():
        rival.draw()
    for _ in range(repeats):
        for name, rival in rivals.items():
            batches, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds or not batches:
                rival.draw()
                batches += 1
            rates[name].append(batches / spent)
    return rates


def ratio(rates: dict[str, list[float]], name: str, other: str) -> float | None:
    """Return the median over the repeats of one rival's rate divided by another's.

    On a shared machine, rates of different repeats differ more than rates of one repeat.
    """
    if other not in rates:
        return None
    return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))


def compare(kind: str, dataset: Dataset, scratch: Path, options: argparse.Namespace) -> Table:
    """Measure all rivals on one dataset."""
    material = Material.of(dataset, options.batch)
    cores = sorted(os.sched_getaffinity(0))
    fills = [
        [fill_rate(dataset, scratch, set(cores[:count])) for count in (1, 2)]
        for _ in range(options.repeats)
    ]
    one_core, two_cores = (statistics.median(rates) for rates in zip(*fills, strict=True))
    rivals: dict[str, Rival] = {}
    samplers = add_ours(rivals, dataset, material, scratch)
    missing = add_peers(rivals, material, scratch)
    rates = measure(rivals, options.repeats, options.seconds)
    for sampler in samplers:
        sampler.close()
    rows = [
        Row(
            name=name,
            batches_per_second=statistics.median(rates[name]),
            to_floor=ratio(rates, name, rival.floor),
            to_sb3=ratio(rates, name, SB3),
            memory_bytes=rival.memory_bytes / material.steps if rival.floor else None,
            disk_bytes=rival.disk_bytes / material.steps if rival.floor else None,
        )
        for name, rival in rivals.items()
    ]
    rows += [Row(name=f"{name} ({why})") for name, why in missing.items()]
    return Table(
        kind=kind,
        transitions=material.steps,
        fill_one_core=one_core,
        fill_two_cores=two_cores,
        rows=tuple(rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--count", type=int, default=20_000, help="frames of each dataset")
    default = Path(tempfile.gettempdir()) / "avtd3-bench"
    parser.add_argument(
        "--data", type=Path, default=default, help="directory that keeps the datasets"
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds per rival and repeat")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # raised by the peers
    kinds = KINDS if options.frames == "all" else (options.frames,)
    tables = []
    for kind in kinds:
        options.data.mkdir(parents=True, exist_ok=True)
        dataset = open_frames(
            kind, options.data, options.count, lambda s: print(s, file=sys.stderr)
        )
        with tempfile.TemporaryDirectory(dir=options.data) as scratch:
            tables.append(compare(kind, dataset, Path(scratch), options))
        if not options.json:
            print(tables[-1].markdown() if options.markdown else tables[-1].text())
    if options.json:
        print(json.dumps([dataclasses.asdict(table) for table in tables]))


if __name__ == "__main__":
    main()
