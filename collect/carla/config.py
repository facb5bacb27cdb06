"""`CarlaConfig`: which CARLA server, which car and camera, and how long to wait for what."""

import dataclasses
from typing import Any

from avtd3.collect.checks import check_number
from avtd3.collect.maps.camera_mounting import FrontCamera
from avtd3.store.errors import ConfigError

SCENARIO_WEATHER, KEPT_WEATHER = "scenario", "keep"
CARLA_WEATHERS = (
    "ClearNoon",
    "CloudyNoon",
    "WetNoon",
    "WetCloudyNoon",
    "SoftRainNoon",
    "MidRainyNoon",
    "HardRainNoon",
    "ClearSunset",
    "CloudySunset",
    "WetSunset",
    "WetCloudySunset",
    "SoftRainSunset",
    "MidRainSunset",
    "HardRainSunset",
    "ClearNight",
    "CloudyNight",
    "WetNight",
    "WetCloudyNight",
    "SoftRainNight",
    "MidRainyNight",
    "HardRainNight",
    "DustStorm",
)
"""Presets of ``carla.WeatherParameters``, version 0.9.16."""
_LARGEST_PICTURE = 4096
_SHAPE_THE_DATA = (
    "vehicle",
    "control_period_s",
    "camera",
    "weather",
    "start_speed_mps",
    "start_lateral_m",
    "start_heading_deg",
    "settle_s",
)
_THIS_MACHINE = ("localhost", "127.0.0.1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CarlaCamera(FrontCamera):
    """The front camera of a CARLA server."""

    def __post_init__(self) -> None:
        FrontCamera.__post_init__(self)  # super() does not know a class with slots
        if self.supersample * max(self.height, self.width) > _LARGEST_PICTURE:
            raise ConfigError(
                f"camera.supersample is {self.supersample}, expected at most "
                f"{_LARGEST_PICTURE // max(self.height, self.width)} with {self.height} x "
                f"{self.width}: servers draw pictures of up to {_LARGEST_PICTURE} pixels a side"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CarlaConfig:
    """CARLA servers, and everything about driving on one."""

    host: str = "localhost"
    """Where the servers run."""
    ports: tuple[int, ...] = (2000,)
    """RPC port of each server; each gets a worker of its own."""
    timeout_s: float = 10.0
    """How long one call of the client may take."""
    connect_timeout_s: float = 30.0
    """How long a server that does not answer is asked again, with `backoff_s` in between."""
    load_timeout_s: float = 120.0
    """How long a map may take to load."""
    step_timeout_s: float = 30.0
    """How long a step may take before the client's process is killed: at least `timeout_s` plus
    `sensor_timeout_s`, which name the cause more exactly."""
    sensor_timeout_s: float = 5.0
    """How long the picture of a frame may come after the frame."""
    backoff_s: float = 1.0
    """Pause before the second try to reach a server; it doubles up to `backoff_max_s`."""
    backoff_max_s: float = 20.0
    """Longest pause between two tries."""
    tm_port: int = 0
    """Port of the traffic manager in the client's process; 0 picks a free one, as several servers
    need it."""
    vehicle: str = "vehicle.tesla.model3"
    """Blueprint of the car."""
    control_period_s: float = 0.05
    """Simulated seconds per step; the server's fixed time step."""
    camera: CarlaCamera = dataclasses.field(default_factory=CarlaCamera)
    """The front camera."""
    weather: str = SCENARIO_WEATHER
    """``scenario``: as the scenario says, varied by episode; ``keep``: the server's own; else a
    preset of CARLA such as ``ClearNoon``."""
    spectator_follows: bool = False
    """Whether the server's own view follows the car."""
    start_speed_mps: float = 6.0
    """Largest speed at which an episode begins."""
    start_lateral_m: float = 0.3
    """Largest distance from the lane's middle at which an episode begins."""
    start_heading_deg: float = 3.0
    """Largest deviation from the lane's heading with which an episode begins."""
    settle_s: float = 1.0
    """Simulated seconds in which the car comes to rest on the ground before an episode."""
    server_command: str = ""
    """Command that starts a server, with ``{port}`` for its port; empty: servers run already."""
    server_start_s: float = 180.0
    """How long a server that avtd3 started may take until it listens."""
    server_memory_mb: int = 0
    """Megabytes above which a server that avtd3 started is started anew; 0 never."""
    recycle_episodes: int = 0
    """Episodes after which a server that avtd3 started is started anew; 0 never."""
    spawn_attempts: int = 6
    """Places along the route that are tried for the car while others stand there."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("carla.host is empty, expected a name or an address: localhost")
        if not self.ports or len(set(self.ports)) != len(self.ports):
            raise ConfigError(f"carla.ports is {self.ports}, expected at least one, each once")
        for port in self.ports:
            check_number("carla.ports", port, minimum=1, maximum=65_535)
        check_number("carla.tm_port", self.tm_port, maximum=65_535)
        if self.tm_port and len(self.ports) > 1:
            raise ConfigError(
                f"carla.tm_port is {self.tm_port}, expected 0 with {len(self.ports)} servers: the "
                "client of each needs a port of its own"
            )
        self._check_waits()
        if not self.vehicle.startswith("vehicle."):
            raise ConfigError(
                f"carla.vehicle is {self.vehicle!r}, expected a blueprint: vehicle.tesla.model3"
            )
        check_number("carla.control_period_s", self.control_period_s, minimum=0.01, maximum=0.5)
        known = (SCENARIO_WEATHER, KEPT_WEATHER, *CARLA_WEATHERS)
        if self.weather not in known:
            raise ConfigError(
                f"carla.weather is {self.weather!r}, expected one of: {', '.join(known)}"
            )
        check_number("carla.start_speed_mps", self.start_speed_mps, maximum=30.0)
        check_number("carla.start_lateral_m", self.start_lateral_m, maximum=2.0)
        check_number("carla.start_heading_deg", self.start_heading_deg, maximum=30.0)
        check_number("carla.settle_s", self.settle_s, maximum=10.0)
        check_number("carla.recycle_episodes", self.recycle_episodes)
        check_number("carla.server_memory_mb", self.server_memory_mb)
        if self.server_command and self.host not in _THIS_MACHINE:
            raise ConfigError(
                f"carla.host is {self.host!r}, expected one of: {', '.join(_THIS_MACHINE)}; a "
                "server_command starts servers on this machine"
            )
        check_number("carla.spawn_attempts", self.spawn_attempts, minimum=1, maximum=100)

    def _check_waits(self) -> None:
        for name in (
            "timeout_s",
            "connect_timeout_s",
            "load_timeout_s",
            "sensor_timeout_s",
            "backoff_s",
            "backoff_max_s",
            "server_start_s",
        ):
            check_number(f"carla.{name}", getattr(self, name), minimum=0.1, maximum=3600.0)
        least = self.timeout_s + self.sensor_timeout_s
        check_number("carla.step_timeout_s", self.step_timeout_s, minimum=least, maximum=7200.0)

    def port_of(self, worker: int) -> int:
        """The port of a worker's server; workers beyond the ports share them in turn."""
        return self.ports[worker % len(self.ports)]

    def plan_document(self) -> dict[str, Any]:
        """The settings that shape the data, as JSON values; servers and waiting times do not."""
        document = dataclasses.asdict(self)
        return {name: document[name] for name in _SHAPE_THE_DATA}
