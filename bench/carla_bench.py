"""What avtd3 adds to a CARLA server's tick: its step against a bare loop with the same sensors.

    python bench/carla_bench.py [--steps N] [--rounds N] [--server-ms MS ...] [--json]
    python bench/carla_bench.py --host H --port P [--town Town01]

avtd3's step is `CarlaWorld.step`: a control, a tick, the gray picture of that frame, motion, lane
and the vehicle ahead, through its supervised process. The bare loop is a script of a few lines: a
control, a tick, the picture of that frame as it comes. It is a second client that drives the same
car and listens to the same camera, collision and lane invasion sensors, in turn with avtd3 every
few dozen steps: server and machine are the same for both. Figures are medians over the rounds. The
CPU time of the client's processes says more than wall time on a shared machine.

Without --port the server is the wire-compatible one of the tests, which ticks in 2 ms, ten times
as fast as CARLA with a camera: `--server-ms` has it wait before each tick (0 is its own pace).
"""

import argparse
import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import CarlaWorld
from avtd3.collect.maps.scenarios import scenario

WARM_UP = 5
STAND, CREEP = np.array([0.0, -1.0], np.float32), np.array([0.02, 0.05], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="in turn, before the other's")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--server-ms", type=float, nargs="+", default=[0.0, 10.0, 25.0, 50.0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, help="of a running server; else the tests' server")
    parser.add_argument("--town", default="Town01")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        drive_bare(options.host, options.port)
        return
    with serving(options) as (port, slow_down):
        rows = measure(options, port, slow_down)
    print(json.dumps(rows, indent=2) if options.json else table(rows))


@contextlib.contextmanager
def serving(
    options: argparse.Namespace,
) -> Iterator[tuple[int, Callable[[float], None] | None]]:
    """A port, and what slows the server down if it is one of the tests'."""
    if options.port:
        yield options.port, None
        return
    from avtd3.tests.collect.carla.launch import CarlaServer

    with CarlaServer() as server:
        yield server.port, lambda ms: server.fault(slow={"tick_cue": ms / 1000.0})


def measure(
    options: argparse.Namespace, port: int, slow_down: Callable[[float], None] | None
) -> list[dict[str, Any]]:
    world = CarlaWorld(CarlaConfig(host=options.host, ports=(port,)), port)
    command = [sys.executable, __file__, "--bare", f"--host={options.host}", f"--port={port}"]
    rows = []
    try:
        world.reset(scenario(1, town=options.town, weather="clear"), 0)
        for _ in range(40):
            world.step(STAND)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as bare:
            assert bare.stdin is not None
            assert bare.stdout is not None
            for server_ms in [0.0] if slow_down is None else options.server_ms:
                if slow_down is not None:
                    slow_down(server_ms)
                rounds = []
                for _ in range(options.rounds):
                    step = step_cost(world, options.steps)
                    print(options.steps, file=bare.stdin, flush=True)
                    rounds.append(compared(step, json.loads(bare.stdout.readline())))
                rows.append({"server_ms": server_ms, **medians(rounds)})
            bare.stdin.close()
    finally:
        world.close()
    return rows


def compared(step: list[float], bare: list[float]) -> dict[str, float]:
    """One round: milliseconds of wall time and CPU time, and what the step adds."""
    return {
        "bare_ms": bare[0],
        "step_ms": step[0],
        "added_ms": step[0] - bare[0],
        "overhead_percent": 100.0 * (step[0] / bare[0] - 1.0),
        "bare_processor_ms": bare[1],
        "step_processor_ms": step[1],
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}


def step_cost(world: CarlaWorld, steps: int) -> list[float]:
    """Milliseconds of a `CarlaWorld.step`, of wall time and of both processes' CPU time."""
    child = psutil.Process(world.client.pid)
    begun = used = 0.0
    for number in range(-WARM_UP, steps):
        if number == 0:
            begun = time.perf_counter()
            used = time.process_time() + sum(child.cpu_times()[:2])
        world.step(CREEP)
    spent = time.perf_counter() - begun
    used = time.process_time() + sum(child.cpu_times()[:2]) - used
    return [1000.0 * spent / steps, 1000.0 * used / steps]


def drive_bare(host: str, port: int) -> None:
    """Drive the car that is there by numbers of steps from standard input; for its own process."""
    import carla

    client = carla.Client(host, port)
    client.set_timeout(60.0)
    world = client.get_world()
    world.tick()
    actors = world.get_actors()
    (car,) = (
        actor
        for actor in actors
        if actor.attributes.get("role_name") == "hero" and actor.type_id.startswith("vehicle.")
    )
    pictures: queue.SimpleQueue[Any] = queue.SimpleQueue()
    events: list[Any] = []
    sensors = [actor for actor in actors if actor.parent is not None and actor.parent.id == car.id]
    for sensor in sensors:
        sensor.listen(pictures.put if "camera" in sensor.type_id else events.append)
    for line in sys.stdin:
        begun = used = 0.0
        for number in range(-WARM_UP, int(line)):
            if number == 0:
                begun, used = time.perf_counter(), time.process_time()
            car.apply_control(carla.VehicleControl(steer=0.02, throttle=0.05))
            frame = world.tick()
            # Those of the other's steps come first; the very first may be lost.
            with contextlib.suppress(queue.Empty):
                while pictures.get(timeout=1.0).frame < frame:
                    pass
        spent, used = time.perf_counter() - begun, time.process_time() - used
        print(json.dumps([1000.0 * spent / int(line), 1000.0 * used / int(line)]), flush=True)
    # The sensors belong to the other client: this one only leaves.
    os._exit(0)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["server waits  bare tick  avtd3 step     added  overhead   processor: bare    avtd3"]
    lines += [
        f"{row['server_ms']:9.0f} ms {row['bare_ms']:7.2f} ms {row['step_ms']:8.2f} ms"
        f" {row['added_ms']:6.2f} ms {row['overhead_percent']:7.1f} %"
        f" {row['bare_processor_ms']:14.2f} ms {row['step_processor_ms']:5.2f} ms"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
