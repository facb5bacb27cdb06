"""What avtd3 adds to a CARLA server's tick: its step against a bare loop with the same sensors.

    python bench/carla_bench.py [--steps N] [--rounds N] [--server-ms MS ...] [--json]
    python bench/carla_bench.py --host H --port P [--town Town01]

The bare loop is what a script of a few lines does with the client: set a control, tick, wait for
the picture of that frame; camera, collision and lane invasion sensors as avtd3 has them. avtd3's
step is `CarlaWorld.step`: the same through its supervised process, with the gray picture, the
motion, the lane and the vehicle ahead. The two are measured in turn, each in a fresh process; the
figures are medians over the rounds. The processor time of the client's processes says more than
the clock where others use the machine as well.

Without --port the server is the wire-compatible one of the tests, which ticks in 2 ms, ten times
as fast as CARLA with a camera: `--server-ms` has it wait before each tick (0 is its own pace).
"""

import argparse
import contextlib
import json
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import CarlaWorld
from avtd3.collect.scenarios import scenario

WARM_UP = 20
SENSORS = ("sensor.camera.rgb", "sensor.other.collision", "sensor.other.lane_invasion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server-ms", type=float, nargs="+", default=[0.0, 10.0, 25.0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, help="of a running server; else the tests' server")
    parser.add_argument("--town", default="Town01")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare_cost(options.host, options.port, options.steps)))
        return
    rows = []
    for server_ms in [0.0] if options.port else options.server_ms:
        with serving(options, server_ms) as port:
            rows.append({"server_ms": server_ms} | measure(options, port))
    print(json.dumps(rows, indent=2) if options.json else table(rows))


@contextlib.contextmanager
def serving(options: argparse.Namespace, server_ms: float) -> Iterator[int]:
    """The port of a server: the one that was named, or one of the tests' for a while."""
    if options.port:
        yield options.port
        return
    from avtd3.tests.carla.launch import CarlaServer

    with CarlaServer(slow={"tick_cue": server_ms / 1000.0}) as server:
        yield server.port


def measure(options: argparse.Namespace, port: int) -> dict[str, Any]:
    rounds = []
    for seed in range(options.rounds):
        # The world first: it brings the server to the town, and is gone when the other comes.
        step, step_cpu = step_cost(options, port, seed)
        command = [sys.executable, __file__, "--bare", f"--steps={options.steps}"]
        command += [f"--host={options.host}", f"--port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        bare, bare_cpu = json.loads(done.stdout.splitlines()[-1])
        rounds.append(
            {
                "bare_ms": bare,
                "step_ms": step,
                "overhead_percent": 100.0 * (step / bare - 1.0),
                "bare_processor_ms": bare_cpu,
                "step_processor_ms": step_cpu,
                "added_processor_percent": 100.0 * (step_cpu - bare_cpu) / bare,
            }
        )
    return {name: statistics.median(row[name] for row in rounds) for name in rounds[0]} | {
        "rounds": rounds
    }


def step_cost(options: argparse.Namespace, port: int, seed: int) -> tuple[float, float]:
    """Milliseconds of a `CarlaWorld.step`, by the clock and of both processes' processors."""
    world = CarlaWorld(CarlaConfig(host=options.host, ports=(port,)), port)
    try:
        world.reset(scenario(1, town=options.town, weather="clear"), seed)
        actions = controls(WARM_UP + options.steps)
        for action in actions[:WARM_UP]:
            world.step(action)
        child = psutil.Process(world.child_pid)
        begun, used = time.perf_counter(), time.process_time() + sum(child.cpu_times()[:2])
        for action in actions[WARM_UP:]:
            world.step(action)
        spent = time.perf_counter() - begun
        used = time.process_time() + sum(child.cpu_times()[:2]) - used
        return 1000.0 * spent / options.steps, 1000.0 * used / options.steps
    finally:
        world.close()


def controls(steps: int) -> np.ndarray:
    """Slow driving, a little to the left and right: float32 (steps, 2)."""
    steer = 0.02 * np.sin(0.3 * np.arange(steps))
    return np.stack([steer, np.full(steps, 0.15)], axis=1).astype(np.float32)


def bare_cost(host: str, port: int, steps: int) -> tuple[float, float]:
    """Milliseconds of a tick of a loop around the client, by the clock and of the processor."""
    import carla

    client = carla.Client(host, port)
    client.set_timeout(60.0)
    world = client.get_world()
    settings = world.get_settings()
    settings.synchronous_mode, settings.fixed_delta_seconds = True, 0.05
    world.apply_settings(settings)
    library, places = world.get_blueprint_library(), world.get_map().get_spawn_points()
    car = world.spawn_actor(library.find("vehicle.tesla.model3"), places[0])
    pictures: queue.SimpleQueue[Any] = queue.SimpleQueue()
    events: list[Any] = []
    front = carla.Transform(carla.Location(1.4, 0.0, 1.6), carla.Rotation(pitch=-6.0))
    sensors = []
    for kind in SENSORS:
        blueprint = library.find(kind)
        if blueprint.has_attribute("image_size_x"):
            camera = CarlaConfig().camera
            side = str(camera.height * camera.supersample)
            blueprint.set_attribute("image_size_x", side)
            blueprint.set_attribute("image_size_y", side)
        sensors.append(world.spawn_actor(blueprint, front, attach_to=car))
        sensors[-1].listen(pictures.put if kind == SENSORS[0] else events.append)
    try:
        return drive_bare(carla, world, car, pictures, steps)
    finally:
        for sensor in sensors:
            sensor.stop()
            sensor.destroy()
        car.destroy()
        settings.synchronous_mode, settings.fixed_delta_seconds = False, None
        world.apply_settings(settings)


def drive_bare(
    carla: Any,  # noqa: ANN401 - the client
    world: Any,  # noqa: ANN401
    car: Any,  # noqa: ANN401
    pictures: "queue.SimpleQueue[Any]",
    steps: int,
) -> tuple[float, float]:
    """Tick and wait for pictures; milliseconds per tick."""
    begun = used = 0.0
    for number, (steer, pedal) in enumerate(controls(WARM_UP + steps).tolist()):
        if number == WARM_UP:
            begun, used = time.perf_counter(), time.process_time()
        car.apply_control(carla.VehicleControl(throttle=pedal, steer=steer))
        frame = world.tick()
        # The first ones may be lost: a subscription is live a little after `listen`.
        with contextlib.suppress(queue.Empty):
            while pictures.get(timeout=0.2 if number < WARM_UP else 10.0).frame < frame:
                pass
    spent, used = time.perf_counter() - begun, time.process_time() - used
    return 1000.0 * spent / steps, 1000.0 * used / steps


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["server waits   bare tick   avtd3 step  overhead   processor: bare    avtd3  added"]
    lines += [
        f"{row['server_ms']:9.0f} ms {row['bare_ms']:8.2f} ms {row['step_ms']:9.2f} ms"
        f" {row['overhead_percent']:7.1f} % {row['bare_processor_ms']:14.2f} ms"
        f" {row['step_processor_ms']:5.2f} ms {row['added_processor_percent']:4.1f} %"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
