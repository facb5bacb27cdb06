"""Measure the collection speed of one core: built-in simulator, 20 vehicles, expert, published.

    python bench/collect_bench.py [--steps N] [--workers N] [--repeats N] [--json]

Between the repeats, the same process steps CarRacing-v3, a common small driving environment with a
camera (`pip install '.[bench]'`; skipped without it). The ratio of the two speeds is more
comparable than either speed, because shared machines change their speed by the minute.

Each repeat collects into a new dataset with its own seed; the table shows medians. Steps per second
of CPU time vary less on a busy machine. The breakdown is from one more run that measures the CPU
time of each part (which adds about 2 us per step and part). Road networks are built between
episodes, one for every few of them.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.driving.expert import Expert
from avtd3.collect.driving.task import DrivingTask
from avtd3.collect.sim.camera import Camera
from avtd3.collect.sim.traffic import Traffic
from avtd3.collect.sim.world import RoadWorld, Vehicle
from avtd3.store.writer import SegmentWriter

PARTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "camera": (Camera, ("render",)),
    "traffic": (Traffic, ("advance",)),
    "vehicle": (Vehicle, ("advance",)),
    "world, all of a step": (RoadWorld, ("step",)),
    "task": (DrivingTask, ("advance",)),
    "expert": (Expert, ("act",)),
    "write": (SegmentWriter, ("begin", "step", "end", "close")),
    "networks": (RoadWorld, ("prepare_map",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.steps, options.workers, options.repeats)
    print(json.dumps(result, indent=2) if options.json else table(result))


def measure(folder: Path, steps: int, workers: int, repeats: int) -> dict[str, Any]:
    config = CollectConfig(workers=workers, min_free_mb=0)
    walls, processors, sizes, returns, peers = [], [], [], [], []
    for seed in range(repeats):
        before = time.process_time()
        report = collect(
            folder / f"repeat-{seed}", dataclasses.replace(config, seed=seed), steps=steps
        ).document()
        used = time.process_time() - before
        walls.append(report["steps_per_second"])
        processors.append(report["steps"] / used if workers == 1 else 0.0)
        sizes.append(report["bytes"] / report["steps"])
        returns.append(report["return_mean"])
        peers.append(car_racing())
    result: dict[str, Any] = {
        "workers": workers,
        "steps": steps,
        "steps_per_second": statistics.median(walls),
        "steps_per_processor_second": statistics.median(processors) if workers == 1 else None,
        "car_racing_per_processor_second": statistics.median(peers),
        "bytes_per_step": statistics.median(sizes),
        "return_mean": statistics.median(returns),
    }
    if workers == 1:
        result["microseconds_per_step"] = breakdown(folder, config, steps)
    return result


def car_racing(steps: int = 150) -> float:
    """Return the steps of CarRacing-v3 per second of CPU time; 0 without Gymnasium."""
    if not (importlib.util.find_spec("gymnasium") and importlib.util.find_spec("Box2D")):
        return 0.0
    import gymnasium

    world = gymnasium.make("CarRacing-v3")
    world.reset(seed=0)
    start = time.process_time()
    for _ in range(steps):
        world.step(np.array([0.0, 0.1, 0.0], np.float32))
    used = time.process_time() - start
    world.close()
    return steps / used


def breakdown(folder: Path, config: CollectConfig, steps: int) -> dict[str, float]:
    spent = dict.fromkeys(PARTS, 0.0)
    with contextlib.ExitStack() as stack:
        for part, (kind, methods) in PARTS.items():
            for method in methods:
                stack.enter_context(_clocked(kind, method, part, spent))
        start = time.process_time()
        report = collect(folder / "breakdown", dataclasses.replace(config, seed=99), steps=steps)
        used = time.process_time() - start
    done = report.tally.steps
    parts = {part: 1e6 * seconds / done for part, seconds in spent.items()}
    whole = 1e6 * used / done
    own = ("world, all of a step", "task", "expert", "write", "networks")
    return {**parts, "rest": whole - sum(parts[part] for part in own), "whole": whole}


@contextlib.contextmanager
def _clocked(kind: type, method: str, part: str, spent: dict[str, float]) -> Iterator[None]:
    plain: Callable[..., Any] = getattr(kind, method)

    def clocked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any method
        start = time.process_time()
        try:
            return plain(*args, **kwargs)
        finally:
            spent[part] += time.process_time() - start

    setattr(kind, method, clocked)
    try:
        yield
    finally:
        setattr(kind, method, plain)


def table(result: dict[str, Any]) -> str:
    lines = [
        f"workers               {result['workers']}",
        f"steps/s               {result['steps_per_second']:.0f}",
    ]
    if result["workers"] == 1:
        ours, peer = (
            result["steps_per_processor_second"],
            result["car_racing_per_processor_second"],
        )
        lines.append(f"steps/s of CPU time   {ours:.0f}")
        if peer:
            lines.append(f"CarRacing-v3          {peer:.0f}")
            lines.append(f"ratio to CarRacing    {ours / peer:.1f}")
    lines.append(f"bytes/step            {result['bytes_per_step']:.0f}")
    for part, us in result.get("microseconds_per_step", {}).items():
        lines.append(f"  {part:22} {us:7.1f} us")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
