"""Measure the ways of sampling, compared with uniform sampling and with the bare frame gather.

    python bench/sampling_bench.py [--frames 40000] [--batch 256] [--repeats 9] [--json]
    python bench/sampling_bench.py --streams [--frames 8000]

Every rival samples the same 84x84 frames in stacks of 4, with 23 numbers each. They take turns
within each repeat, and the medians of the CPU time over the repeats are compared. *prioritised*
includes the update of the priorities after each batch.

With ``--streams``, the dataset has three streams: gray 84x84 in stacks of 4, colour 128x128 in
stacks of 2, and a view from above 8x64x64 of single frames. Samplers of one stream each, and of all
three, are compared with a bare gather of as many frames of the same streams from the same files.
"""

import argparse
import contextlib
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
from avtd3.store.replay.config import MixPart, ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

Draw = Callable[[], object]


STREAMS = {
    "gray": ImageSpec(),
    "rgb": ImageSpec(channels=3, height=128, width=128, stack=2),
    "bev": ImageSpec(channels=8, height=64, width=64, stack=1),
}


def make_dataset(
    path: Path, frames: int, steps: int = 499, *, has_streams: bool = False
) -> Dataset:
    """Write episodes of random numbers and frames; the contents do not affect the cost."""
    spec = EpisodeSpec(
        image=None if has_streams else ImageSpec(),
        streams=STREAMS if has_streams else {},
        vector_names=tuple(f"v{i}" for i in range(23)),
        action_names=("steer", "throttle_brake"),
    )
    dataset = Dataset.create(path, spec)
    rng = np.random.default_rng(0)
    pictures = {name: blocky(rng, image.frame_shape) for name, image in spec.images.items()}
    vectors = rng.normal(size=(steps + 1, 23)).astype(np.float32)
    with SegmentWriter(dataset, collector="bench", provenance={}) as writer:
        for seed in range(max(2, frames // (steps + 1))):
            for t, vector in enumerate(vectors):
                shown = {name: of_stream[t % 8] for name, of_stream in pictures.items()}
                seen = Observation(
                    image=shown.get("image"),
                    streams=shown if has_streams else None,
                    vector=vector,
                )
                if t == 0:
                    writer.begin(seen, seed=seed, scenario=seed % 2, world="bench", driver="random")
                    continue
                action = vector[:2].clip(-1.0, 1.0)
                writer.step(action, float(vector[2]), seen, terminated=t == steps)
            writer.end("goal")
    return dataset


def blocky(rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return eight frames uint8 (8, C, H, W) that compress like pictures."""
    channels, height, width = shape
    blocks = rng.integers(0, 256, (8, channels, -(-height // 7), -(-width // 7)))
    return np.kron(blocks, np.ones((7, 7))).astype(np.uint8)[:, :, :height, :width]


def draws_of(sampler: Sampler) -> Draw:
    """Return a function that samples one batch as a learner does."""
    config = sampler.config
    if config.sequence_length:
        return sampler.sample_sequences
    if not config.prioritised:
        return sampler.sample
    errors = np.random.default_rng(0).exponential(size=config.batch_size).astype(np.float32)

    def draw() -> None:
        batch = sampler.sample()
        assert batch.index is not None
        sampler.update_priorities(batch.index, errors)

    return draw


def configs(batch: int) -> dict[str, ReplayConfig]:
    """Return the ways of sampling."""
    mix = (MixPart(filter=("scenario=0",), weight=0.3), MixPart(weight=0.7))
    return {
        "uniform": ReplayConfig(batch_size=batch, mode="cache"),
        "filter": ReplayConfig(batch_size=batch, mode="cache", filter=("end=goal",), held_out=0.1),
        "mix": ReplayConfig(batch_size=batch, mode="cache", mix=mix),
        "prioritised": ReplayConfig(batch_size=batch, mode="cache", prioritised=True),
        "sequences of 8": ReplayConfig(batch_size=batch, mode="cache", sequence_length=8),
    }


def make_floor(sampler: Sampler, batch: int) -> Draw:
    """Return a gather of random windows of each stream, drawn beforehand."""
    gathers = [stream_floor(sampler, stream, batch) for stream in sampler.spec.images]

    def draw() -> None:
        for gather in gathers:
            gather()

    return draw


def stream_floor(sampler: Sampler, stream: str, batch: int) -> Draw:
    """Return a gather of random windows of one stream."""
    frames, width = sampler.frame_array(stream).frames, sampler.spec.images[stream].stack + 1
    assert frames is not None
    flat = frames.reshape(len(frames), -1)
    out = np.empty((batch, width, flat.shape[1]), np.uint8)
    first = np.random.default_rng(1).integers(0, sampler.steps - width, (64, batch, 1))
    windows = itertools.cycle(first + np.arange(width))
    return lambda: np.take(flat, next(windows), axis=0, out=out, mode="clip")


def seconds_per_batch(draw: Draw, batches: int) -> float:
    """Return the CPU time of one batch."""
    draw()
    start = time.process_time()
    for _ in range(batches):
        draw()
    return (time.process_time() - start) / batches


def measure(dataset: Dataset, scratch: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds per batch of each rival, measured in turns."""
    with contextlib.ExitStack() as stack:
        samplers = {
            name: stack.enter_context(
                Sampler([dataset], config, seed=0, scratch=scratch, buffers=1)
            )
            for name, config in configs(options.batch).items()
        }
        rivals = {name: draws_of(sampler) for name, sampler in samplers.items()}
        rivals["bare np.take"] = make_floor(samplers["uniform"], options.batch)
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(options.repeats):
            for name, draw in rivals.items():
                times[name].append(seconds_per_batch(draw, options.batches))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_streams(dataset: Dataset, scratch: Path, options: argparse.Namespace) -> None:
    """Print how samplers of one stream, and of all, compare with their bare gathers."""
    choices = {name: (name,) for name in STREAMS} | {"all three": tuple(STREAMS)}
    with contextlib.ExitStack() as stack:
        samplers = {
            name: stack.enter_context(
                Sampler(
                    [dataset],
                    ReplayConfig(batch_size=options.batch, mode="cache", streams=streams),
                    seed=0,
                    scratch=scratch,
                    buffers=1,
                )
            )
            for name, streams in choices.items()
        }
        pairs = {n: (draws_of(s), make_floor(s, options.batch)) for n, s in samplers.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
        for _ in range(options.repeats):
            for name, (ours, floor) in pairs.items():
                seconds = [seconds_per_batch(draw, options.batches) for draw in (ours, floor)]
                times[name].append((seconds[0], seconds[1]))
    print(f"{'batch of ' + str(options.batch):18} {'ms':>7} {'floor ms':>9} {'floor / ms':>11}")
    for name, found in times.items():
        ours, floor = (statistics.median(values) for values in zip(*found, strict=True))
        share = statistics.median(bare / own for own, bare in found)
        print(f"{name:18} {1e3 * ours:7.3f} {1e3 * floor:9.3f} {share:11.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--frames", type=int, default=40_000, help="frames in the generated dataset"
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=100, help="batches per repeat")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--streams", action="store_true", help="measure three named streams")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.streams:
            dataset = make_dataset(Path(name) / "data", options.frames, has_streams=True)
            measure_streams(dataset, Path(name), options)
            return
        dataset = make_dataset(Path(name) / "data", options.frames)
        times = measure(dataset, Path(name), options)
    rows = [
        {
            "name": name,
            "milliseconds": 1e3 * seconds,
            "to_uniform": seconds / times["uniform"],
            "to_floor": seconds / times["bare np.take"],
        }
        for name, seconds in times.items()
    ]
    if options.json:
        print(json.dumps({"frames": options.frames, "batch": options.batch, "rows": rows}))
        return
    print(f"{'batch of ' + str(options.batch):18} {'ms':>7} {'to uniform':>11} {'to floor':>9}")
    for row in rows:
        print(
            f"{row['name']:18} {row['milliseconds']:7.3f} {row['to_uniform']:11.2f} "
            f"{row['to_floor']:9.2f}"
        )


if __name__ == "__main__":
    main()
