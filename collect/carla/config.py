"""`CarlaConfig`: which CARLA servers to use, the car and the camera, and the timeouts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from avtd3.collect.checks import check_number
from avtd3.collect.maps.episode_setup import FrontCamera, SimulatorConfig
from avtd3.collect.sim.streams import StreamCamera
from avtd3.store.errors import ConfigError, check_integers

SCENARIO_WEATHER, KEPT_WEATHER = "scenario", "keep"
CARLA_WEATHERS = (
    "ClearNoon", "CloudyNoon", "WetNoon", "WetCloudyNoon", "SoftRainNoon", "MidRainyNoon",
    "HardRainNoon", "ClearSunset", "CloudySunset", "WetSunset", "WetCloudySunset",
    "SoftRainSunset", "MidRainSunset", "HardRainSunset", "ClearNight", "CloudyNight", "WetNight",
    "WetCloudyNight", "SoftRainNight", "MidRainyNight", "HardRainNight", "DustStorm",
)  # fmt: skip
"""Presets of ``carla.WeatherParameters`` in version 0.9.16."""
_LARGEST_PICTURE = 4096
_DATA_SETTINGS = (
    "vehicle", "control_period_s", "camera", "weather", "start_speed_mps", "start_lateral_m",
    "start_heading_deg", "settle_s",
)  # fmt: skip
_WAIT = (0.1, 3600.0)
_LIMITS = {
    "timeout_s": _WAIT, "connect_timeout_s": _WAIT, "load_timeout_s": _WAIT,
    "sensor_timeout_s": _WAIT, "backoff_s": _WAIT, "backoff_max_s": _WAIT, "server_start_s": _WAIT,
    "tm_port": (0, 65_535), "walkers": (0, 1000), "settle_s": (0, 10), "spawn_attempts": (1, 100),
    "recycle_episodes": (0, math.inf), "server_memory_mb": (0, math.inf),
}  # fmt: skip
_THIS_MACHINE = ("localhost", "127.0.0.1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CarlaCamera(FrontCamera):
    """The front camera on a CARLA server."""

    def __post_init__(self) -> None:
        FrontCamera.__post_init__(self)  # super() does not know a class with slots
        _check_picture(self)


def _check_picture(camera: FrontCamera) -> None:
    if camera.supersample * max(camera.height, camera.width) > _LARGEST_PICTURE:
        raise ConfigError(
            f"camera.supersample is {camera.supersample}, expected at most "
            f"{_LARGEST_PICTURE // max(camera.height, camera.width)} with {camera.height} x "
            f"{camera.width}: servers render at most {_LARGEST_PICTURE} pixels per side"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CarlaConfig(SimulatorConfig):
    """CARLA servers, and how episodes run on them."""

    host: str = "localhost"
    """Host of the servers."""
    ports: tuple[int, ...] = (2000,)
    """RPC port of each server; each server gets a worker of its own."""
    timeout_s: float = 10.0
    """Timeout of one call of the client."""
    connect_timeout_s: float = 30.0
    """How long to retry connecting to a server that does not answer; `backoff_s` is the first
    pause."""
    load_timeout_s: float = 120.0
    """Timeout for loading a map."""
    step_timeout_s: float = 30.0
    """Timeout of a step, after which the client's process is killed. At least `timeout_s` plus
    `sensor_timeout_s`, whose errors name the cause more exactly."""
    sensor_timeout_s: float = 5.0
    """How long to wait for the picture of a frame."""
    backoff_s: float = 1.0
    """Pause before the second attempt to connect; it doubles up to `backoff_max_s`."""
    backoff_max_s: float = 20.0
    """Maximum pause between two attempts to connect."""
    tm_port: int = 0
    """Port of the traffic manager in the client's process; 0 picks a free one, which several
    servers need."""
    vehicle: str = "vehicle.tesla.model3"
    """Blueprint of the car."""

    camera: CarlaCamera = dataclasses.field(default_factory=CarlaCamera)
    """The front camera."""
    streams: Mapping[str, StreamCamera] = dataclasses.field(default_factory=dict)
    """Named streams, see docs/streams.md; each front camera is a sensor of its own. Their light and
    noise are those of the server. With any, `camera` is not used."""
    weather: str = SCENARIO_WEATHER
    """``scenario``: that of the scenario, varied by episode; ``keep``: that of the server; or a
    preset of CARLA such as ``ClearNoon``."""
    spectator_follows: bool = False
    """Whether the server's own view follows the car."""
    walkers: int = 0
    """Number of pedestrians around the start, who walk along the road or across it."""

    settle_s: float = 1.0
    """Simulated seconds for the car to settle on the ground before an episode."""
    server_command: str = ""
    """Command that starts a server, with ``{port}`` for its port; empty if servers run already."""
    server_start_s: float = 180.0
    """Timeout for a server that avtd3 started to listen on its port."""
    server_memory_mb: int = 0
    """Memory in megabytes above which a server that avtd3 started is restarted; 0 for no limit."""
    recycle_episodes: int = 0
    """Episodes after which a server that avtd3 started is restarted; 0 for never."""
    spawn_attempts: int = 6
    """Number of places along the route that are tried for the car while others are occupied."""

    def __post_init__(self) -> None:
        check_integers(self, "carla.")
        self.check("carla")
        self._check_servers()
        for stream in self.streams.values():
            _check_picture(stream)
        for name, (low, high) in _LIMITS.items():
            check_number(f"carla.{name}", getattr(self, name), minimum=low, maximum=high)
        least = self.timeout_s + self.sensor_timeout_s
        check_number("carla.step_timeout_s", self.step_timeout_s, minimum=least, maximum=7200.0)
        if not self.vehicle.startswith("vehicle."):
            raise ConfigError(
                f"carla.vehicle is {self.vehicle!r}, expected a blueprint like vehicle.tesla.model3"
            )
        known = (SCENARIO_WEATHER, KEPT_WEATHER, *CARLA_WEATHERS)
        if self.weather not in known:
            raise ConfigError(
                f"carla.weather is {self.weather!r}, expected one of: {', '.join(known)}"
            )

    def _check_servers(self) -> None:
        expected = "expected a name or an address like localhost"
        if not self.host:
            raise ConfigError(f"carla.host is empty, {expected}")
        try:
            self.host.encode("idna")
        except UnicodeError as error:
            raise ConfigError(f"carla.host is {self.host!r}, {expected}") from error
        if not self.ports or len(set(self.ports)) != len(self.ports):
            raise ConfigError(f"carla.ports is {self.ports}, expected one or more distinct ports")
        for port in self.ports:
            check_number("carla.ports", port, minimum=1, maximum=65_535)
        if self.tm_port and len(self.ports) > 1:
            raise ConfigError(
                f"carla.tm_port is {self.tm_port}, expected 0 with {len(self.ports)} servers: each "
                "client needs its own port"
            )
        if self.server_command and self.host not in _THIS_MACHINE:
            raise ConfigError(
                f"carla.host is {self.host!r}, expected one of: {', '.join(_THIS_MACHINE)}; "
                "carla.server_command starts servers on this machine"
            )

    def port_of(self, worker: int) -> int:
        """Return the port of a worker's server; additional workers share the ports in turn."""
        return self.ports[worker % len(self.ports)]

    def plan_document(self) -> dict[str, Any]:
        """Return the settings that affect the data, as JSON values; not servers and timeouts."""
        document = dataclasses.asdict(self)
        found = {name: document[name] for name in _DATA_SETTINGS}
        # Plans without walkers or streams keep the digest that they had before there were any.
        added = {"walkers": self.walkers} if self.walkers else {}
        return {**found, **added, **({"streams": document["streams"]} if self.streams else {})}
