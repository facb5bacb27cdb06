"""Speed of the store: steps in to sealed segments out, frames back, segments opened.

Frames are those of a made-up road seen from a moving car, clean or with sensor noise; the floor is
numcodecs alone on the same chunks, in the same run. Run ``python bench/store_bench.py [--json]``.
"""

import argparse
import functools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.format.codec import FrameCodec, chain_kind, decode_into
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter, WriterConfig

SPEC = EpisodeSpec(
    image=ImageSpec(),
    vector_names=tuple(f"number_{n}" for n in range(23)),
    action_names=("steer", "throttle_brake"),
    reward_terms=("efficiency", "lane", "comfort", "safety"),
)


def road_frames(count: int, noise: float) -> NDArray[np.uint8]:
    """Frames of a road that bends: uint8 (count, 1, 84, 84)."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[0:84, 0:84].astype(np.float32)
    depth = 1.0 / np.maximum(row - 30.0, 0.5)
    frames = np.empty((count, 1, 84, 84), np.uint8)
    for n in range(count):
        bend = 30.0 * np.sin(n / 40.0) * depth
        across = (column - 42.0 - bend) * depth * 20.0
        image = np.where(np.abs(across) < 8.0, 90.0, 140.0)
        dash = (np.abs(across) < 0.5) & (np.sin(60.0 * depth + n / 2.0) > 0.0)
        image = np.where(dash, 230.0, image)
        image = np.where(row < 31.0, 200.0 - row, image)
        if noise:
            image = image + rng.normal(0.0, noise, image.shape)
        frames[n, 0] = np.clip(image, 0.0, 255.0)
    return frames


def write(path: Path, frames: NDArray[np.uint8], codec: FrameCodec, episode_steps: int) -> Dataset:
    """Feed all frames through a writer, as fast as it goes."""
    dataset = Dataset.create(path, SPEC)
    config = WriterConfig(codec=codec, segment_seconds=1e9)
    vector = np.zeros(23, np.float32)
    action = np.zeros(2, np.float32)
    terms = np.ones(4, np.float32)
    with SegmentWriter(dataset, collector="bench", provenance={}, config=config) as writer:
        for start in range(0, len(frames) - 1, episode_steps + 1):
            block = frames[start : start + episode_steps + 1]
            writer.begin(Observation(image=block[0], vector=vector))
            for n in range(1, len(block)):
                writer.step(
                    action,
                    None,
                    Observation(image=block[n], vector=vector),
                    truncated=n == len(block) - 1,
                    reward_terms=terms,
                )
            writer.end("time_limit")
    return dataset


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def read(segments: Sequence[Segment]) -> float:
    """Seconds to decode all frames into memory that is there already."""
    out = [np.zeros((segment.observations, 1, 84, 84), np.uint8) for segment in segments]
    return seconds(lambda: [s.read_frames(out=o) for s, o in zip(segments, out, strict=True)])


def codec_floor(frames: NDArray[np.uint8], codec: FrameCodec) -> tuple[float, float]:
    """Seconds to encode, and to decode, all whole chunks without any file."""
    size = codec.chunk_frames
    blocks = [frames[n : n + size] for n in range(0, len(frames) - size + 1, size)]
    begin = time.perf_counter()
    chunks = [codec.encode(block) for block in blocks]
    encoding = time.perf_counter() - begin
    kind = chain_kind(codec.chain())
    place = memoryview(bytearray(blocks[0].nbytes))

    def decode() -> None:
        for chunk in chunks:
            decode_into(kind, chunk, place)

    return encoding, seconds(decode)


def measure(frames: NDArray[np.uint8], codec: FrameCodec, repeats: int) -> dict[str, float]:
    """Medians over interleaved repeats, in frames per second and bytes per frame."""
    rows: list[tuple[float, float, float, float]] = []
    size = 0
    for _ in range(repeats):
        root = Path(tempfile.mkdtemp(prefix="store-bench-"))
        try:
            floor = codec_floor(frames, codec)
            writing = seconds(functools.partial(write, root / "data", frames, codec, 200))
            segments = Dataset.open(root / "data").snapshot().segments
            reading = read(segments)
            rows.append((writing, reading, *floor))
            size = sum(segment.size_bytes for segment in segments)
        finally:
            shutil.rmtree(root)
    writing, reading, encoding, decoding = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    return {
        "written_per_s": len(frames) / writing,
        "encoding_share": encoding / writing,
        "read_per_s": len(frames) / reading,
        "decoding_share": decoding / reading,
        "bytes_per_frame": size / len(frames),
    }


def opening(count: int, repeats: int) -> float:
    """Seconds to open a dataset of so many segments and list its snapshot."""
    root = Path(tempfile.mkdtemp(prefix="store-bench-"))
    try:
        frames = road_frames(9, 0.0)
        dataset = Dataset.create(root / "data", SPEC)
        for _ in range(count):
            write(root / "data", frames, FrameCodec(), 8)
        times = [seconds(lambda: Dataset.open(dataset.path).snapshot()) for _ in range(repeats)]
        return statistics.median(times)
    finally:
        shutil.rmtree(root)


def main() -> None:
    """Print one table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=8_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--segments", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    for label, noise in (("clean", 0.0), ("noisy", 3.0)):
        frames = road_frames(arguments.frames, noise)
        for codec in (FrameCodec(), FrameCodec(name="zstd", level=1), FrameCodec(name="raw")):
            name = f"{label} {codec.name} {codec.level}"
            table[name] = measure(frames, codec, arguments.repeats)
    open_s = opening(arguments.segments, arguments.repeats)
    if arguments.json:
        opened = {"segments": arguments.segments, "seconds": open_s}
        print(json.dumps({"codecs": table, "opening": opened}, indent=2))
        return
    print(
        f"{'frames, codec':<16}{'written/s':>11}{'encoding':>10}{'read/s':>10}"
        f"{'decoding':>10}{'B/frame':>9}"
    )
    for name, row in table.items():
        print(
            f"{name:<16}{row['written_per_s']:>11,.0f}{row['encoding_share']:>10.0%}"
            f"{row['read_per_s']:>10,.0f}{row['decoding_share']:>10.0%}{row['bytes_per_frame']:>9,.0f}"
        )
    print(f"opening {arguments.segments} segments: {open_s * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
