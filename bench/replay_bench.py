"""How close a whole batch of `Sampler` comes to the bare gather of its frames.

    python bench/replay_bench.py [--dataset DATASET] [--repeats 7] [--json]

The floor is one ``np.take`` of the same number of frames from the same mapped file into as many
reused buffers: no draw, no rewards, no vectors. Rivals run in turns within each repeat, and the
medians over the repeats are compared. stable-baselines3 takes part if it is installed
(``pip install avtd3[bench]``); its buffer holds the same stacks in memory, once each
(``optimize_memory_usage=True``).
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.replay import ReplayCache
from avtd3.store.sampler import ReplayConfig, Sampler
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.writer import EpisodeInfo, SegmentWriter

Draw = Callable[[], object]
SB3 = "stable-baselines3 ReplayBuffer"


def make_dataset(path: Path, frames: int, episode_steps: int = 500) -> Dataset:
    """Write a dataset of smooth, scrolling texture with a vector of 23 numbers."""
    spec = EpisodeSpec(
        image=ImageSpec(),
        vector_names=tuple(f"v{i}" for i in range(23)),
        vector_scales=(1.0,) * 23,
        action_names=("steer", "throttle_brake"),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        reward_terms=(),
        control_period_s=0.05,
    )
    dataset = Dataset.create(path, spec)
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(0, 256, (40, 40)), np.ones((16, 16)))
    texture = (coarse + rng.normal(0.0, 1.0, coarse.shape)).clip(0, 255).astype(np.uint8)
    vectors = rng.normal(size=(episode_steps + 1, 23)).astype(np.float32)
    with SegmentWriter(dataset, collector="bench", provenance={}) as writer:
        for seed in range(max(1, frames // (episode_steps + 1))):
            _write_episode(writer, texture, vectors, seed)
    return dataset


def _write_episode(
    writer: SegmentWriter, texture: NDArray[np.uint8], vectors: NDArray[np.float32], seed: int
) -> None:
    info = EpisodeInfo(seed=seed, scenario=0, world="bench", town="", weather="", driver="random")
    for t, vector in enumerate(vectors):
        x, y = (seed * 37 + t) % 550, (seed * 91 + t // 3) % 550
        frame = np.ascontiguousarray(texture[None, y : y + 84, x : x + 84])
        if t == 0:
            writer.begin_episode(info, frame=frame, vector=vector, frame_id=0, sim_time_s=0.0)
            continue
        writer.step(
            action=vector[:2].clip(-1.0, 1.0),
            reward=float(vector[2]),
            reward_terms=None,
            frame=frame,
            vector=vector,
            terminated=t + 1 == len(vectors),
            truncated=False,
            frame_id=t,
            sim_time_s=0.05 * t,
        )
    writer.end_episode("goal")


def fill_seconds(dataset: Dataset, scratch: Path) -> tuple[float, int]:
    """Seconds to decode a dataset into an empty cache, files in the page cache; frames."""
    segments = {(0, segment.id): segment for segment in dataset.snapshot().segments}
    cache = ReplayCache(dataset.spec, scratch)
    start = time.perf_counter()
    cache.follow(segments)
    seconds = time.perf_counter() - start
    cache.close()
    return seconds, sum(segment.observations for segment in segments.values())


def make_floor(frames: NDArray[np.uint8], count: int, batch: int, width: int, buffers: int) -> Draw:
    """One gather of random windows, drawn beforehand, into as many buffers by turns."""
    flat = frames.reshape(len(frames), -1)
    outs = itertools.cycle(
        [np.empty((batch, width, flat.shape[1]), np.uint8) for _ in range(buffers)]
    )
    first = np.random.default_rng(1).integers(0, count - width, (64, batch, 1))
    windows = itertools.cycle(first + np.arange(width))
    return lambda: np.take(flat, next(windows), axis=0, out=next(outs), mode="clip")


def make_sb3(frames: NDArray[np.uint8], count: int, batch: int, stack: int) -> Draw | None:
    """SB3's replay buffer in memory with the same stacks, or None if it is not installed."""
    try:
        from gymnasium import spaces
        from stable_baselines3.common.buffers import ReplayBuffer
    except ImportError:
        return None
    shape = (stack * frames.shape[1], *frames.shape[2:])
    buffer = ReplayBuffer(
        count - stack,
        spaces.Box(0, 255, shape, np.uint8),
        spaces.Box(-1.0, 1.0, (2,), np.float32),
        device="cpu",
        optimize_memory_usage=True,
        handle_timeout_termination=False,
    )
    for i in range(stack):
        channels = slice(i * frames.shape[1], (i + 1) * frames.shape[1])
        buffer.observations[:, 0, channels] = frames[i : i + count - stack]
    for column in (buffer.actions, buffer.rewards, buffer.dones):
        column[:] = 0
    buffer.full = True
    return lambda: buffer.sample(batch)


def batches_per_second(draw: Draw, batches: int) -> float:
    draw()
    start = time.perf_counter()
    for _ in range(batches):
        draw()
    return batches / (time.perf_counter() - start)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table."""

    name: str
    batches_per_second: float
    to_floor: float | None
    to_sb3: float | None


def measure(rivals: dict[str, Draw], repeats: int, batches: int) -> dict[str, float]:
    """Median batches per second of each rival, measured in turns."""
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, draw in rivals.items():
            rates[name].append(batches_per_second(draw, batches))
    return {name: statistics.median(values) for name, values in rates.items()}


def compare(dataset: Dataset, scratch: Path, options: argparse.Namespace) -> list[Row]:
    """All rivals on one dataset."""
    image = dataset.spec.image
    assert image is not None, "the benchmark is about frames; give a dataset with an image"
    rivals: dict[str, Draw] = {}
    floor_of: dict[str, str] = {}
    samplers = []
    for n, buffers in ((1, 1), (1, 3), (3, 1)):
        config = ReplayConfig(batch_size=options.batch, n_step=n)
        sampler = Sampler([dataset], config, seed=0, scratch=scratch, buffers=buffers)
        samplers.append(sampler)
        width = image.stack + 1 if n == 1 else 2 * image.stack
        floor = f"np.take, {width} frames, {buffers} buffers"
        frames, count = sampler._cache.columns()["frames"], sampler._cache.rows
        rivals[floor] = make_floor(frames, count, options.batch, width, buffers)
        rivals[f"Sampler, n-step {n}, {buffers} buffers"] = sampler.sample
        floor_of[f"Sampler, n-step {n}, {buffers} buffers"] = floor
    sb3 = make_sb3(frames, count, options.batch, image.stack)
    if sb3 is not None:
        rivals[SB3] = sb3
    rates = measure(rivals, options.repeats, options.batches)
    for sampler in samplers:
        sampler.close()
    return [
        Row(
            name=name,
            batches_per_second=rate,
            to_floor=rate / rates[floor_of[name]] if name in floor_of else None,
            to_sb3=rate / rates[SB3] if sb3 is not None else None,
        )
        for name, rate in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", type=Path, help="measure on this one; else on a made one")
    parser.add_argument("--frames", type=int, default=40_000, help="frames of the made dataset")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=100, help="batches per repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        path = options.dataset
        dataset = Dataset.open(path) if path else make_dataset(scratch / "data", options.frames)
        seconds, frames = fill_seconds(dataset, scratch)
        rows = compare(dataset, scratch, options)
    if options.json:
        document = {"frames": frames, "fill_frames_per_second": frames / seconds}
        print(json.dumps({**document, "rows": [dataclasses.asdict(row) for row in rows]}))
        return
    print(f"{frames} frames; cache filled at {frames / seconds:,.0f} frames/s")
    print(f"{'batch of ' + str(options.batch):34} {'batches/s':>10} {'to floor':>9} {'to SB3':>7}")
    for row in rows:
        ratios = ["-" if r is None else f"{r:.3f}" for r in (row.to_floor, row.to_sb3)]
        print(f"{row.name:34} {row.batches_per_second:10.0f} {ratios[0]:>9} {ratios[1]:>7}")
    if rows[0].to_sb3 is None:
        print("stable-baselines3 is not installed: pip install 'avtd3[bench]' adds it")


if __name__ == "__main__":
    main()
