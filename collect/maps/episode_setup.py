"""What an episode draws from its seed, and its settings: the same on both simulators.

Each purpose has its own random stream. More vehicles therefore do not change the route or the
weather, and a simulator that needs one more stream does not change the others.
"""

import cmath
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.planner import MIN_ROUTE_M, plan_route, plan_through
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.collect.maps.weather import Weather, draw_weather
from avtd3.collect.plan import GROUP
from avtd3.store.errors import check_integers

_RETRY_EVERY_M = 10.0
_LIMITS = {
    "height": (8, 1024), "width": (8, 1024), "supersample": (1, 8), "field_of_view_deg": (10, 150),
    "pitch_deg": (-20, 45), "pitch_jitter_deg": (0, 10), "yaw_jitter_deg": (0, 20),
    "height_m": (0, 1000), "height_jitter_m": (0, 0.5), "forward_m": (-3, 3),
    "lateral_jitter_m": (0, 1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """Settings that both simulators share; base of their configurations."""

    control_period_s: float = 0.05
    """Simulated seconds per step; 20 Hz as in the reports."""
    start_speed_mps: float = 6.0
    """Maximum speed at the start of an episode."""
    start_lateral_m: float = 0.3
    """Maximum distance from the lane centre at the start of an episode."""
    start_heading_deg: float = 3.0
    """Maximum deviation from the heading of the lane at the start of an episode."""

    def check(self, section: str) -> None:
        """Raise ConfigError if a value is impossible; `section` is the prefix of its name."""
        period = f"{section}.control_period_s"
        check_number(period, self.control_period_s, minimum=0.01, maximum=0.5)
        for name, most in (("speed_mps", 30.0), ("lateral_m", 2.0), ("heading_deg", 30.0)):
            check_number(f"{section}.start_{name}", getattr(self, f"start_{name}"), maximum=most)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontCamera:
    """A camera behind the windscreen, and how much its mounting varies between episodes.

    Both simulators have the same defaults, so that one policy can drive on the pictures of both.
    """

    height: int = 84
    """Rows of the picture."""
    width: int = 84
    """Columns of the picture."""
    supersample: int = 2
    """Rays or rendered pixels per pixel along each side; their mean is stored."""
    field_of_view_deg: float = 90.0
    """Horizontal angle of view."""
    forward_m: float = 1.4
    """Distance ahead of the centre of the car."""
    height_m: float = 1.6
    """Height above the ground."""
    pitch_deg: float = 6.0
    """Downward tilt."""
    height_jitter_m: float = 0.1
    """Maximum deviation of the height."""
    lateral_jitter_m: float = 0.1
    """Maximum deviation from the middle of the car."""
    pitch_jitter_deg: float = 1.0
    """Maximum deviation of the tilt."""
    yaw_jitter_deg: float = 1.0
    """Maximum deviation of the camera's heading from the car's."""

    def __post_init__(self) -> None:
        check_integers(self, "camera.")
        for name, (low, high) in _LIMITS.items():
            check_number(f"camera.{name}", getattr(self, name), minimum=low, maximum=high)
        check_positive("camera.height_m", self.height_m - self.height_jitter_m)


class Mounting(NamedTuple):
    """Position and direction of a camera relative to the centre of its car, on the ground."""

    forward_m: float
    right_m: float
    height_m: float
    pitch_rad: float
    yaw_rad: float


def draw_mounting(camera: FrontCamera, rng: np.random.Generator) -> Mounting:
    """Draw the camera mounting of an episode."""
    up, aside, tilt, turn = rng.uniform(-1.0, 1.0, 4).tolist()
    return Mounting(
        forward_m=camera.forward_m,
        right_m=aside * camera.lateral_jitter_m,
        height_m=camera.height_m + up * camera.height_jitter_m,
        pitch_rad=math.radians(camera.pitch_deg + tilt * camera.pitch_jitter_deg),
        yaw_rad=math.radians(turn * camera.yaw_jitter_deg),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Position and speed of the car at the start of an episode."""

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float

    @property
    def velocity(self) -> complex:
        """Return the velocity in the world, x + iy in m/s."""
        return cmath.rect(self.speed_mps, self.yaw_rad)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSetup:
    """An episode as drawn from its seed, and the random streams for what is drawn later."""

    route: Route
    lanes: tuple[int, ...]
    """Indices of the lanes that the route runs along, in driving order."""
    weather: Weather
    start: Start
    """The car: near the start of the route, rolling, slightly off the lane centre."""
    camera_rng: np.random.Generator
    """Draws the camera's mounting, and then everything else that varies between pictures."""
    traffic_rng: np.random.Generator
    simulator_rng: np.random.Generator
    """Draws what only other simulators need."""

    def starts(self, attempts: int) -> Iterator[tuple[Route, Start, float]]:
        """Yield up to `attempts` starts, farther and farther along the route if one is occupied.

        Each comes with the rest of the route and its distance along the original route in metres.
        """
        route, start = self.route, self.start
        yield route, start, 0.0
        lateral_m = route.project(start.x_m, start.y_m, 0.0).lateral_m
        turn = start.yaw_rad - float(route.yaw_rad[0])
        for attempt in range(1, attempts):
            first = int(np.searchsorted(route.distance_m, attempt * _RETRY_EVERY_M))
            if first >= len(route.points) or route.length_m - route.distance_m[first] < MIN_ROUTE_M:
                return
            rest = route.rest(first)
            place = _beside(rest, lateral_m, turn, start.speed_mps)
            yield rest, place, float(route.distance_m[first])


def draw_setup(
    network: RoadNetwork, scenario: Scenario, seed: int, config: SimulatorConfig
) -> EpisodeSetup:
    """Draw the setup of an episode; the same seed gives the same setup."""
    route_rng, start_rng, camera_rng, traffic_rng, simulator_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5)
    )
    if scenario.waypoints:
        planned = plan_through(network, scenario.waypoints)
    else:
        planned = plan_route(network, route_rng, scenario.route_length_m)
    route = planned.route
    aside, turn = start_rng.uniform(-1.0, 1.0, 2).tolist()
    return EpisodeSetup(
        route=route,
        lanes=planned.lanes,
        weather=draw_weather(scenario.weather, camera_rng),
        start=_beside(
            route,
            aside * config.start_lateral_m,
            turn * math.radians(config.start_heading_deg),
            start_rng.uniform(0.0, config.start_speed_mps),
        ),
        camera_rng=camera_rng,
        traffic_rng=traffic_rng,
        simulator_rng=simulator_rng,
    )


def draw_network(scenario: Scenario, seed: int) -> tuple[str, int]:
    """Return kind and seed of the generated network of an episode.

    Even episode seeds (collections) get even network seeds, odd ones (evaluations) odd. In a
    collection, the episodes of a `GROUP` share a network, because building one takes long.
    """
    if scenario.network is not None:
        return scenario.network_kinds[0], scenario.network
    is_evaluation = seed & 1
    number = (seed >> 1) if is_evaluation else (seed >> 1) // GROUP
    number %= scenario.networks
    kind = scenario.network_kinds[number % len(scenario.network_kinds)]
    return kind, 2 * number + is_evaluation


def _beside(route: Route, lateral_m: float, turn_rad: float, speed_mps: float) -> Start:
    """Return a start beside the first point of a route."""
    yaw = float(route.yaw_rad[0])
    x, y = route.points[0].tolist()
    return Start(
        x_m=x - lateral_m * math.sin(yaw),
        y_m=y + lateral_m * math.cos(yaw),
        yaw_rad=math.remainder(yaw + turn_rad, math.tau),
        speed_mps=speed_mps,
    )
