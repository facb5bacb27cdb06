"""What a simulator must offer: `World`, and the frames it answers with.

Coordinates are CARLA's: metres, x forward (east), y to the right (south), yaw clockwise in
radians from +x. A positive lateral deviation lies to the right of the route.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.route import Route

GENERATED = "generated"
"""Town of the scenarios whose road networks are made up by kind and number."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The numbered setting of an episode, apart from its seed."""

    number: int
    """Number by which datasets and the command line name it."""
    name: str
    """What a person calls it."""
    town: str
    """``generated`` for seeded networks, else the path of an .xodr file, or the name of a map that
    the simulator has."""
    network_kinds: tuple[str, ...]
    """Kinds of generated network to draw from; ignored for an .xodr file."""
    networks: int
    """How many different generated networks the scenario draws from."""
    npcs: int
    """Other vehicles around the car."""
    weather: str
    """Name of a weather, or ``random`` to draw one for each episode."""
    route_length_m: float
    """Length of the route to the goal, in metres; shorter where the roads end sooner."""
    time_limit_s: float
    """Simulated seconds after which the episode is truncated."""
    time_per_m_s: float = 0.0
    """Simulated seconds that each metre of the route adds to the time limit."""
    waypoints: tuple[tuple[float, float], ...] = ()
    """Positions x, y in metres that the route leads through; empty for a random route."""
    network: int | None = None
    """Number of the generated network, of the first kind; None to draw one for each episode."""
    xodr: str = ""
    """Path of the town's .xodr file, for worlds that have no map of that name; empty for none."""
    remarks: tuple[str, ...] = ()
    """What a person should know about how the setting was read, in sentences."""

    def document(self) -> dict[str, Any]:
        """The setting as JSON values; what a field's default says is left out."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VehicleState:
    """The car at one instant, in world coordinates, at its centre."""

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float
    """Speed along the car's axis; negative when it rolls backwards."""
    acceleration_mps2: float
    """Change of `speed_mps`, per second, over the last control period."""
    lateral_acceleration_mps2: float
    """Acceleration across the car's axis, positive to the right."""
    steer: float
    """Steering wheel as it is (not as commanded), in [-1, 1], positive to the right."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorldFrame:
    """One synchronous frame: picture, state and what happened since the frame before."""

    frame_id: int
    """The simulator's number of this frame, the same for the picture and the state."""
    sim_time_s: float
    """Simulated seconds since the world's start."""
    image: NDArray[np.uint8]
    """uint8 (C, H, W), the camera's frame."""
    vehicle: VehicleState
    collision: str
    """What the car hit since the frame before (``vehicle``), or an empty string."""
    off_road: bool
    """Whether the car's centre has left every driving lane and paved shoulder."""
    wrong_way: bool
    """Whether the car stands in a lane of the opposite direction."""
    lane_invasions: int
    """Lane markings that the car's wheels crossed since the frame before."""
    lead_gap_m: float
    """Free metres to the next vehicle on the route ahead; infinite if there is none within 60 m.
    Privileged: only the expert may use it."""
    lead_speed_mps: float
    """Speed of that vehicle along the route; 0 if there is none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorldStart:
    """What a reset answers."""

    route: Route
    """The way to the goal."""
    frame: WorldFrame
    """The first frame, before any action."""
    town: str
    """Name of the road network, unique to its geometry."""
    weather: str
    """Name of the weather that was drawn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What lies around the car, for maps; never for a driver."""

    lanes: tuple[NDArray[np.float64], ...]
    """Centre lines of the road network's lanes, each float64 (N, 2) in metres."""
    others: NDArray[np.float64]
    """float64 (N, 3): x, y in metres and yaw in radians of each other vehicle."""


class World(Protocol):
    """A simulator with one car to drive, at a fixed control period."""

    name: str
    """Name recorded with every episode (``road``)."""
    control_period_s: float
    """Simulated seconds per step."""
    image_shape: tuple[int, int, int]
    """Shape of every frame's image, ``(C, H, W)``."""
    notices: tuple[str, ...]
    """What a person should know about the running episode's roads and traffic, in sentences."""

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Begin an episode; the same scenario and seed give the same bytes.

        Raises:
            RoadError: The scenario's road network cannot be used.
            WorldError: The simulator failed.
        """
        ...

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Apply float32 (2,) = (steer, throttle or brake) in [-1, 1] for one control period.

        Raises:
            WorldError: The simulator failed, or the action is not finite.
        """
        ...

    def surroundings(self) -> Surroundings:
        """What lies around the car now; only for pictures, not called while collecting."""
        ...

    def close(self) -> None:
        """Release the simulator; safe to call twice."""
        ...
