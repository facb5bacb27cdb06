"""`EpisodeSetup`: what an episode draws before anything moves, the same on every world with roads.

Each purpose has a random stream of its own, so that more vehicles do not change the route or the
weather, and a world that needs one stream more does not change the others.
"""

import cmath
import dataclasses
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from avtd3.collect.driving.world import Scenario
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.planner import MIN_ROUTE_M, scenario_route
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.weather import Weather, draw_weather

_FURTHER_M = 10.0


class StartLimits(Protocol):
    """How far the beginnings of episodes differ from a car that stands in its lane's middle."""

    @property
    def start_speed_mps(self) -> float:
        """Largest speed."""
        ...

    @property
    def start_lateral_m(self) -> float:
        """Largest distance from the lane's middle."""
        ...

    @property
    def start_heading_deg(self) -> float:
        """Largest deviation from the lane's heading."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where and how fast a car begins."""

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float

    @property
    def velocity(self) -> complex:
        """Velocity in the world, x + iy in m/s."""
        return cmath.rect(self.speed_mps, self.yaw_rad)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSetup:
    """An episode as drawn from its seed."""

    route: Route
    """The way to the goal."""
    weather: Weather
    """Light, sky and wetness."""
    start: Start
    """The car: on the route's beginning, rolling, a little off the middle."""
    camera_rng: np.random.Generator
    """Draws the camera's mounting, and then what else differs between pictures."""
    traffic_rng: np.random.Generator
    """Draws the other vehicles."""
    simulator_rng: np.random.Generator
    """Draws what only foreign simulators need."""

    def starts(self, attempts: int) -> Iterator[tuple[Route, Start, float]]:
        """The start, then places further along the route, for worlds where something may stand.

        Args:
            attempts: How many at most; fewer where the route is short.

        Yields:
            The route from there on, the start, and the metres that it lies further on.
        """
        route, start = self.route, self.start
        yield route, start, 0.0
        lateral_m = route.project(start.x_m, start.y_m, 0.0).lateral_m
        turn = start.yaw_rad - float(route.yaw_rad[0])
        for attempt in range(1, attempts):
            first = int(np.searchsorted(route.distance_m, attempt * _FURTHER_M))
            if first >= len(route.points) or route.length_m - route.distance_m[first] < MIN_ROUTE_M:
                return
            rest = Route(points=route.points[first:], lane_width_m=route.lane_width_m[first:])
            place = _beside(rest, lateral_m, turn, start.speed_mps)
            yield rest, place, float(route.distance_m[first])


def draw_opening(
    network: RoadNetwork, scenario: Scenario, seed: int, limits: StartLimits
) -> EpisodeSetup:
    """Draw an episode's beginning.

    Args:
        network: The roads.
        scenario: The setting.
        seed: The episode's seed; the same one gives the same opening.
        limits: How much the start varies.

    Raises:
        RoadError: The roads have no route for the scenario.
        ConfigError: The scenario's weather is unknown.
    """
    route_rng, start_rng, camera_rng, traffic_rng, simulator_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5)
    )
    route = scenario_route(network, scenario, route_rng).route
    return EpisodeSetup(
        route=route,
        weather=draw_weather(scenario.weather, camera_rng),
        start=_draw_start(route, start_rng, limits),
        camera_rng=camera_rng,
        traffic_rng=traffic_rng,
        simulator_rng=simulator_rng,
    )


def _draw_start(route: Route, rng: np.random.Generator, limits: StartLimits) -> Start:
    aside, turn = rng.uniform(-1.0, 1.0, 2).tolist()
    return _beside(
        route,
        aside * limits.start_lateral_m,
        turn * math.radians(limits.start_heading_deg),
        rng.uniform(0.0, limits.start_speed_mps),
    )


def _beside(route: Route, lateral_m: float, turn_rad: float, speed_mps: float) -> Start:
    """A start beside the beginning of a route."""
    yaw = float(route.yaw_rad[0])
    x, y = route.points[0].tolist()
    return Start(
        x_m=x - lateral_m * math.sin(yaw),
        y_m=y + lateral_m * math.cos(yaw),
        yaw_rad=math.remainder(yaw + turn_rad, math.tau),
        speed_mps=speed_mps,
    )
