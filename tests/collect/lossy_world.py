"""A world for tests that is lost on request."""

from avtd3.store.errors import RouteError, WorldLost
from avtd3.tests.collect.point_world import PointWorld


class LossyWorld(PointWorld):
    """Is lost at chosen resets and steps, counted from 1 over its life; has no route for seeds."""

    def __init__(self, resets=None, steps=None, seeds=(), routeless=()):
        super().__init__()
        self.lost_resets, self.lost_steps, self.lost_seeds = resets or {}, steps or {}, seeds
        self.routeless = routeless
        self.resets = 0
        self.seeds = []

    def reset(self, scenario, seed):
        self.resets += 1
        self.seeds.append(seed)
        if seed in self.routeless:
            raise RouteError("no way leads there")
        if seed in self.lost_seeds:
            raise WorldLost("this road kills every server", "client_crash")
        if self.resets in self.lost_resets:
            raise WorldLost(f"lost at reset {self.resets}", self.lost_resets[self.resets])
        return super().reset(scenario, seed)

    def step(self, action):
        if self.steps + 1 in self.lost_steps:
            self.steps += 1
            raise WorldLost(f"lost at step {self.steps}", self.lost_steps[self.steps])
        return super().step(action)


def open_second_worker_alone_lossy(settings, worker):
    return LossyWorld(resets={2: "server_away"} if worker == 1 else {})


def lose_world(job, should_stop, report):
    """A worker's job that ends with a lost world."""
    raise WorldLost("no frame within 5 s", "sensor_stall")
