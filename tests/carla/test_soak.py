"""Episodes begin, drive a little and end, over and over: nothing is left and nothing grows."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import CarlaWorld
from avtd3.collect.scenarios import scenario
from avtd3.store.errors import WorldLost
from avtd3.tests.carla.launch import CarlaServer

STEPS = 4
MOST_LOSSES = 3
"""The traffic manager may block the client's process, which is then killed; see the client's
traps. Seldom enough that a thousand episodes suffer hardly any."""


@dataclasses.dataclass(frozen=True)
class Held:
    """What a process holds."""

    rss_mb: float
    threads: int
    files: int

    @classmethod
    def by(cls, pid):
        proc = Path(f"/proc/{pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return cls(
            rss_mb=pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20),
            threads=len(list((proc / "task").iterdir())),
            files=len(list((proc / "fd").iterdir())),
        )


class Watch:
    """What the processes of a world hold, against what they held when they were warm."""

    def __init__(self, world, server, warm_up):
        self._world, self._server, self._warm_up = world, server, warm_up
        self._child, self._episodes, self._warm = None, 0, None

    def episode_over(self):
        if self._child != self._world.child_pid:
            self._child, self._episodes, self._warm = self._world.child_pid, 0, None
        self._episodes += 1
        if self._episodes == self._warm_up:
            self._warm = self._now()

    def _now(self):
        pids = {"parent": os.getpid(), "child": self._child, "server": self._server.pid}
        return {name: Held.by(pid) for name, pid in pids.items()}

    def assert_flat(self, growth):
        """No process holds more threads or files than it did, or more memory by that share."""
        assert self._warm is not None, "the last child did not live long enough to be judged"
        for name, now in self._now().items():
            warm = self._warm[name]
            assert now.threads <= warm.threads, (name, warm, now)
            assert now.files <= warm.files, (name, warm, now)
            assert now.rss_mb <= warm.rss_mb * (1.0 + growth), (name, warm, now)


def soak(episodes, warm_up, growth):
    setting = scenario(1, town="AvTown01", npcs=2, weather="fair")
    with CarlaServer() as server:
        config = CarlaConfig(host="127.0.0.1", ports=(server.port,), settle_s=0.1)
        world = CarlaWorld(config, server.port)
        watch, losses = Watch(world, server, warm_up), list[str]()
        for number in range(episodes):
            try:
                world.reset(setting, number)
                for _ in range(STEPS):
                    world.step(np.array([0.0, 0.5], np.float32))
            except WorldLost as error:
                losses.append(str(error))
                if len(losses) > MOST_LOSSES:
                    pytest.fail("; ".join(losses))
            else:
                watch.episode_over()
        watch.assert_flat(growth)
        world.close()
        record = server.record_when(lambda record: record["clients"] == 0)
        assert [actor["type"] for actor in record["actors"]] == ["spectator"]
        assert record["streams"] == {}
        assert record["settings"][0] is False
        assert record["problems"] == []


def test_thirty_episodes_leave_nothing():
    soak(30, warm_up=10, growth=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_episodes_leave_nothing():
    soak(1000, warm_up=300, growth=0.05)
