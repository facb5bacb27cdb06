"""Many short episodes leave nothing behind, and memory use does not grow."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

import avtd3.collect.carla.world
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import CarlaWorld
from avtd3.collect.maps.scenarios import scenario
from avtd3.store.errors import WorldLost
from avtd3.tests.collect.carla.launch import CarlaServer

STEPS = 4
MAX_LOSSES = 3
"""The traffic manager sometimes blocks the client's process, which is then killed (see
test_wire_traps.py). A thousand episodes have very few such losses."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources that a process uses."""

    rss_mb: float
    threads: int
    files: int

    @classmethod
    def of(cls, pid):
        proc = Path(f"/proc/{pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return cls(
            rss_mb=pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20),
            threads=len(list((proc / "task").iterdir())),
            files=len(list((proc / "fd").iterdir())),
        )


class ResourceMonitor:
    """Records the resources of a world's processes after each episode."""

    def __init__(self, world, server):
        self._world, self._server = world, server
        self.used, self.children = [], []

    def episode_over(self):
        child = self._world.client.pid
        pids = {"parent": os.getpid(), "child": child, "server": self._server.pid}
        self.used.append({name: Resources.of(pid) for name, pid in pids.items()})
        self.children.append(child)

    def assert_flat(self, growth):
        """Check that threads, files and memory do not grow from the second third to the last.

        The first third is for warming up. Memory may grow by the given share.
        """
        third = len(self.used) // 3
        for name in ("parent", "child", "server"):
            before, last = (
                [used[name] for used in part]
                for part in (self.used[third : 2 * third], self.used[-third:])
            )
            for what, share in (("threads", 0.0), ("files", 0.0), ("rss_mb", growth)):
                most = [max(getattr(used, what) for used in part) for part in (before, last)]
                assert most[1] <= most[0] * (1.0 + share), (name, what, most)


def soak(episodes, growth):
    setting = scenario(1, town="AvTown01", npcs=2, weather="fair")
    with CarlaServer() as server:
        config = CarlaConfig(host="127.0.0.1", ports=(server.port,), settle_s=0.1)
        world = CarlaWorld(config, server.port)
        monitor, losses = ResourceMonitor(world, server), list[str]()
        for number in range(episodes):
            try:
                world.reset(setting, number)
                for _ in range(STEPS):
                    world.step(np.array([0.0, 0.5], np.float32))
            except WorldLost as error:
                losses.append(str(error))
                if len(losses) > MAX_LOSSES:
                    pytest.fail("; ".join(losses))
            else:
                monitor.episode_over()
        monitor.assert_flat(growth)
        world.close()
        record = server.record_when(lambda record: record["clients"] == 0)
        assert [actor["type"] for actor in record["actors"]] == ["spectator"]
        assert record["streams"] == {}
        assert record["settings"][0] is False
        assert record["problems"] == []
    return monitor.children


def test_two_dozen_episodes_leave_nothing(monkeypatch):
    monkeypatch.setattr(avtd3.collect.carla.world, "EPISODES_PER_CHILD", 8)
    children = soak(24, growth=0.05)
    # A loss also starts a new child process, so there may be more.
    assert len(set(children)) >= 3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_episodes_leave_nothing():
    soak(1000, growth=0.05)
