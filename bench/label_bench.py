"""What it costs to store in every step what the expert would have done.

Drives episodes of the built-in simulator with the expert, and prints the CPU time of a step of
driving (without making maps and writing) and the part of it that the labels take.
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.drivers import Driver, LabelledDriver
from avtd3.collect.rollout import Rollout
from avtd3.collect.worlds import EnvironmentConfig, open_environment, open_world
from avtd3.store.step import Observation


class Timed:
    """Another driver, and the CPU time that it takes."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self.spent_s = driver, 0.0

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._driver.reset(rng)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the action of the other driver."""
        started_s = time.process_time()
        action = self._driver.act(observation)
        self.spent_s += time.process_time() - started_s
        return action


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=8)
    count = parser.parse_args().episodes
    steps, driving_s, arrays_s = 0, 0.0, 0.0
    with open_environment(EnvironmentConfig(), open_world) as environment:
        teacher = environment.teacher()
        assert teacher is not None, "the built-in simulator has an expert"
        timed = Timed(teacher)
        driver = LabelledDriver(environment.driver("expert"), timed)
        for seed in range(0, 2 * count, 2):
            rollout = Rollout(environment, seed)
            started_s = time.process_time()
            steps += sum(1 for _ in rollout.drive(driver, "expert", np.random.default_rng(0)))
            driven_s = time.process_time()
            driver.labels(environment.spec)
            driving_s += driven_s - started_s
            arrays_s += time.process_time() - driven_s
    labels_us, whole_us = ((timed.spent_s + arrays_s) / steps * 1e6, driving_s / steps * 1e6)
    share = labels_us / whole_us
    print(f"{steps} steps: {labels_us:.1f} of {whole_us:.1f} us of a step are labels, {share:.1%}")


if __name__ == "__main__":
    main()
