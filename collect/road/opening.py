"""`Opening`: what an episode draws before anything moves, the same on every world with roads.

Each purpose has a random stream of its own, so that more vehicles do not change the route or the
weather, and a world that needs one stream more does not change the others.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

from avtd3.collect.road.network import RoadNetwork
from avtd3.collect.road.waypoints import scenario_route
from avtd3.collect.road.weather import Weather, draw_weather
from avtd3.collect.route import Route
from avtd3.collect.world import Scenario


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
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


def draw_opening(
    network: RoadNetwork, scenario: Scenario, seed: int, limits: StartLimits
) -> Opening:
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
    return Opening(
        route=route,
        weather=draw_weather(scenario.weather, camera_rng),
        start=_draw_start(route, start_rng, limits),
        camera_rng=camera_rng,
        traffic_rng=traffic_rng,
        simulator_rng=simulator_rng,
    )


def _draw_start(route: Route, rng: np.random.Generator, limits: StartLimits) -> Start:
    aside, turn = rng.uniform(-1.0, 1.0, 2).tolist()
    yaw = float(route.yaw_rad[0])
    lateral = aside * limits.start_lateral_m
    x, y = route.points[0].tolist()
    return Start(
        x_m=x - lateral * math.sin(yaw),
        y_m=y + lateral * math.cos(yaw),
        yaw_rad=math.remainder(yaw + turn * math.radians(limits.start_heading_deg), math.tau),
        speed_mps=rng.uniform(0.0, limits.start_speed_mps),
    )
