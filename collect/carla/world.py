"""`CarlaWorld`: a `World` on a CARLA server, whose client runs in a supervised child process.

The client can crash or block its process, and never recovers from a server that went away. A
failure therefore costs one episode: the child process is ended, and the next reset starts a new
one, which removes the leftover actors. This process never imports the client.

The client never frees what it stores about actors: about 5 kB for each car with its sensors, 100 kB
for each traffic manager. A child process is therefore replaced every `EPISODES_PER_CHILD` episodes.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.client_process import ClientProcess
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.packing import Packed, unpack
from avtd3.collect.carla.simulator import Simulator
from avtd3.collect.driving.world import Surroundings, WorldFrame, WorldStart
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.errors import Avtd3Error, WorldError, WorldLost

EPISODES_PER_CHILD = 200
"""Episodes after which the child process is replaced; starting one takes about two seconds."""


class CarlaWorld:
    """A `World` on one CARLA server.

    Args:
        config: The settings.
        port: RPC port of the server.

    Attributes:
        name: ``carla``.
        control_period_s: Simulated seconds per step.
        image_shape: (1, H, W) of the frames.
        simulator: Starts the server, if the configuration has a command for it; else None.
        notices: Remarks about the running episode for the user.
    """

    name = "carla"

    def __init__(self, config: CarlaConfig, port: int) -> None:
        self.config, self.port = config, port
        self.simulator = Simulator(config, port) if config.server_command else None
        self.control_period_s = config.control_period_s
        self.image_shape = (1, config.camera.height, config.camera.width)
        self.notices: tuple[str, ...] = ()
        self._child: ClientProcess | None = None
        self._found: dict[str, Any] | None = None
        self._losses, self._starts, self._episodes = 0, 0, 0
        self._is_running, self._is_dirty, self._is_closed = False, False, False

    @property
    def child_pid(self) -> int | None:
        """Return the id of the process with the client; None if there is none."""
        return self._child.pid if self._child else None

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode; see `World.reset`.

        Raises:
            RoadError: The scenario's road network cannot be used.
            ConfigError: The server has no such map, vehicle or weather.
            WorldLost: The server or its client failed; the next reset starts a new client.
            WorldError: The server cannot be used at all.
        """
        if self._is_closed:
            raise WorldError("the simulator is closed; create a new CarlaWorld")
        self._prepare_server()
        if self._episodes >= EPISODES_PER_CHILD:
            self._end_child()
        with self._ending_lost_child():
            child = self._connected()
            self._episodes += 1
            start: WorldStart
            start, self.notices = child.ask("reset", scenario, seed)
        self._is_running = True
        return start

    def _connected(self) -> ClientProcess:
        """Return the child process; start and connect one if there is none."""
        if self._child is None:
            self._child, self._episodes = ClientProcess(self.config, self.port), 0
            try:
                self._found = self._child.open(self._found)
            except Avtd3Error:
                self._end_child()
                raise
        return self._child

    def _prepare_server(self) -> None:
        """Replace our own server if necessary; give another one time to recover after losses."""
        simulator, is_running = self.simulator, self._is_running
        self._is_running = False
        if simulator is not None:
            if is_running:
                simulator.episode_done()
            if simulator.is_spent:
                self._end_child()
            simulator.ensure()
            if simulator.starts != self._starts and self._child is not None:
                self._child.kill()  # its client never connects to the new server
                self._child = None
            self._starts = simulator.starts
        elif self._losses > 1:
            config = self.config
            time.sleep(min(config.backoff_s * 2 ** (self._losses - 2), config.backoff_max_s))

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Drive for one control period; see `World.step`.

        Raises:
            WorldLost: The server, a sensor or the client failed: the episode is over.
            WorldError: No episode is running, or the action is not two finite numbers.
        """
        values = action.tolist()
        if len(values) != 2 or not all(map(math.isfinite, values)):
            raise WorldError(
                f"action is {values}, expected two finite numbers (steer, throttle or brake); "
                "check the driver"
            )
        with self._ending_lost_child():
            packed: Packed = self._current().ask(
                "step", *values, limit_s=self.config.step_timeout_s
            )
        self._losses = 0
        return unpack(packed)

    def _current(self) -> ClientProcess:
        if self._child is None:
            raise WorldError("the simulator has no running episode; call reset() first")
        return self._child

    def surroundings(self) -> Surroundings:
        """Return the lanes and vehicles around the car; see `World.surroundings`."""
        with self._ending_lost_child():
            found: Surroundings = self._current().ask("surroundings")
        return found

    @contextlib.contextmanager
    def _ending_lost_child(self) -> Iterator[None]:
        """End the child process if the world is lost inside the block."""
        try:
            yield
        except WorldLost as error:
            self._lose(error)
            raise

    def _lose(self, error: WorldLost) -> None:
        """End the child process of a lost world, as cleanly as possible."""
        self._losses += 1
        self._is_running = False
        self._end_child()
        if self.simulator is not None:
            self.simulator.restart(error.reason)

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            config = self.config
            self._is_dirty = not child.end(2.0 * config.timeout_s + config.step_timeout_s)

    def close(self) -> None:
        """Remove our actors and restore the server's settings; safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._end_child()
        if self.simulator is not None:
            self.simulator.close()
        elif self._is_dirty:
            self._clean_up()

    def _clean_up(self) -> None:
        """Remove what a lost child process has left, if the server still answers."""
        brief = dataclasses.replace(self.config, connect_timeout_s=self.config.backoff_s)
        child = ClientProcess(brief, self.port)
        with contextlib.suppress(WorldError):
            child.open(self._found)
        child.end(2.0 * brief.timeout_s + brief.step_timeout_s)
