"""Measure the cost of the guards: CPU time per update of `GuardMonitor` and of the update itself.

    python bench/guard_bench.py [--batch 256] [--updates 20] [--readings 20] [--json]

One thread. The update is the default one (Nature CNNs on four frames of 84x84, bf16 where the
hardware multiplies it natively). The guards are driven with the results of real updates, by the
default settings: a reading every 100 updates, a measurement of the layers every 1 000.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch

from avtd3.learn.batch import Batch
from avtd3.learn.device import autocast_type
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.guards.monitor import GuardMonitor
from avtd3.learn.networks import NetworkConfig, ObservationBatch, to_pixels
from avtd3.learn.td3 import TD3Config, TD3State, Update, create_state, update
from avtd3.store.spec import EpisodeSpec, ImageSpec

CPU = torch.device("cpu")
SPEC = EpisodeSpec(
    image=ImageSpec(),
    vector_names=tuple(f"v{i}" for i in range(23)),
    action_names=("steer", "pedal"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--readings", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    update_s, state, pair, batch = _updates(options.batch, options.updates)
    guard_s = _guards(state, pair, batch, options.readings)
    found = {"update_ms": 1e3 * update_s, "guards_ms": 1e3 * guard_s, "share": guard_s / update_s}
    if options.json:
        print(json.dumps(found))
    else:
        print(
            f"an update {found['update_ms']:.1f} ms, the guards {found['guards_ms']:.3f} ms of it: "
            f"{found['share']:.2%} (CPU time, one thread, batch {options.batch})"
        )


def _updates(size: int, count: int) -> tuple[float, TD3State, tuple[Update, Update], Batch]:
    """Return CPU seconds per update, and the last two updates: without and with the actor."""
    autocast, config = autocast_type("auto", CPU), TD3Config()
    state = create_state(SPEC, NetworkConfig(), config, CPU, 0)
    batch = _batch(size, autocast or torch.float32)
    noise = torch.randn(size, 2)
    done = [update(state, batch, noise, config, autocast) for _ in range(2)]
    before_s = time.process_time()
    done += [update(state, batch, noise, config, autocast) for _ in range(count)]
    passed_s = time.process_time() - before_s
    last = sorted(done[-2:], key=lambda one: one.actor is not None)
    return passed_s / count, state, (last[0], last[1]), batch


def _guards(state: TD3State, pair: tuple[Update, Update], batch: Batch, readings: int) -> float:
    """Return the CPU seconds per update of `GuardMonitor`, over a number of readings."""
    config = GuardConfig()
    with tempfile.TemporaryDirectory() as directory:
        features = NetworkConfig().features
        monitor = GuardMonitor(Path(directory), config, features=features, policy_delay=2)
        state.updates = 0
        before_s = time.process_time()
        for number in range(1, readings * config.every + 1):
            monitor.before(state)
            state.updates = number
            monitor.after(state, pair[number % 2 == 0], batch, 200.0)
        return (time.process_time() - before_s) / (readings * config.every)


def _batch(size: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def observe() -> ObservationBatch:
        shape = (size, 4, 84, 84)
        frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        vector = torch.randn(size, 23, generator=generator)
        return ObservationBatch(pixels=(to_pixels(frames, dtype),), vector=vector)

    reward = torch.randn(size, generator=generator)
    first = Batch(
        observation=observe(),
        action=2.0 * torch.rand(size, 2, generator=generator) - 1.0,
        reward=reward,
        discount=torch.full((size,), 0.99),
        next_observation=observe(),
    )
    return dataclasses.replace(first, reward=reward.clamp(-1.0, 1.0))


if __name__ == "__main__":
    main()
