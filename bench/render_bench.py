"""Measure what storing the state of the world costs, and draw pictures again from it.

    python bench/render_bench.py [--steps N] [--repeats N] [--frames N] [--scenario N] [--json]
    python bench/render_bench.py --streams [--frames N] [--scenario N]

Each repeat collects the same steps twice in this process, with and without states, in turn; road
networks are built before, as they cost the same. The live pictures are drawn from the stored
numbers in both cases: what turning positions into these numbers costs is measured by itself and
added. Then pictures are drawn again until ``--frames`` of them are compared with the stored ones.

With ``--streams``, so many frames of four streams together are collected, drawn again and compared,
and the CPU time of a frame of each stream is measured.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
import timeit
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.rerender import check_pictures
from avtd3.collect.sim.scene import pose_steps
from avtd3.collect.sim.streams import StreamCamera
from avtd3.collect.sim.traffic import DECIDE_EVERY
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.dataset import Dataset

STREAMS = {
    "bev": StreamCamera(kind="bev", height=64, width=64, stack=1),
    "gray": StreamCamera(),
    "rgb": StreamCamera(kind="rgb", height=144, width=256),
    "semantic": StreamCamera(kind="semantic", height=144, width=256),
}
LEAST = StreamCamera(height=8, width=8, supersample=1)


class _OneWorld(RoadWorld):
    """A world that keeps its networks from one collection to the next."""

    def close(self) -> None:
        self._map = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--scenario", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--streams", action="store_true", help="draw named streams")
    options = parser.parse_args()
    config = CollectConfig(scenario=ScenarioConfig(number=options.scenario))
    with tempfile.TemporaryDirectory() as folder:
        if options.streams:
            config = dataclasses.replace(config, road=RoadConfig(streams=STREAMS))
            result = draw_again(Path(folder) / "d", config, options.frames // len(STREAMS))
            result |= time_streams(config)
            print("\n".join(f"{name:28} {value}" for name, value in result.items()))
            return
        result = measure_cost(Path(folder), config, options.steps, options.repeats)
        result |= draw_again(Path(folder) / "frames", config, options.frames)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(f"{name:28} {value}" for name, value in result.items()))


def measure_cost(folder: Path, config: CollectConfig, steps: int, repeats: int) -> dict[str, Any]:
    """Return CPU time and bytes of a step with and without states."""
    world = _OneWorld(config.road)
    kinds = {True: config, False: dataclasses.replace(config, record_world=False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    sizes = {}
    for repeat in range(repeats + 1):
        for is_recorded, kind in kinds.items():
            path = folder / f"{repeat}-{is_recorded}"
            started_s = time.process_time()
            collect(path, kind, steps=steps, open_world=lambda *_: world)
            spent_s = time.process_time() - started_s
            if repeat:  # the first one builds the networks
                collected = Dataset.open(path).snapshot().steps
                times[is_recorded].append(1e6 * spent_s / collected)
            sizes[is_recorded] = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    with_us, without_us = (statistics.median(times[key]) for key in (True, False))
    paired = statistics.median(a - b for a, b in zip(times[True], times[False], strict=True))
    traffic = config.scenario.resolve()[0].npcs
    at, heading = np.full((DECIDE_EVERY, traffic), 3.0 + 4.0j), np.full((DECIDE_EVERY, traffic), 1j)
    plan_us = 1e6 * min(timeit.repeat(lambda: pose_steps(at, heading), number=500, repeat=5)) / 500
    last_us = 1e6 * min(timeit.repeat(lambda: pose_steps(at[0], heading[0]), number=500)) / 500
    rounding_us = (plan_us + last_us) / DECIDE_EVERY
    return {
        "steps": steps,
        "us_per_step_without": round(without_us, 1),
        "us_per_step_with": round(with_us, 1),
        "us_median_difference": round(paired, 1),
        "us_rounding_poses": round(rounding_us, 2),
        "time_share": f"{(paired + rounding_us) / without_us:.1%}",
        "bytes_share": f"{sizes[True] / sizes[False] - 1.0:.1%}",
    }


def time_streams(config: CollectConfig, steps: int = 300) -> dict[str, Any]:
    """Return the CPU time of a frame of each stream, beyond that of a step without it."""
    found = {}
    for name in ("", *STREAMS):
        # Each world draws the smallest stream, too.
        streams = {"least": LEAST} | ({name: STREAMS[name]} if name else {})
        world = RoadWorld(dataclasses.replace(config.road, streams=streams))
        world.reset(config.scenario.resolve()[0], 0)
        action = np.zeros(2, np.float32)
        world.step(action)
        started_s = time.process_time()
        for _ in range(steps):
            world.step(action)
        found[name] = 1e3 * (time.process_time() - started_s) / steps
    return {f"ms_{name}": round(found[name] - found[""], 3) for name in STREAMS}


def draw_again(path: Path, config: CollectConfig, frames: int) -> dict[str, Any]:
    """Collect pictures, draw them again, and compare them."""
    collect(path, config, steps=frames)
    started_s = time.process_time()
    report = check_pictures(path)
    spent_s = time.process_time() - started_s
    return {
        "frames_drawn_again": report.frames,
        "frames_differing": report.differing,
        "ms_per_frame": round(1e3 * spent_s / report.frames, 3),
    }


if __name__ == "__main__":
    main()
