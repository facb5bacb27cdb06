"""`World`: what a driving simulator must offer, and the frames that it returns.

Coordinates are CARLA's: metres, x forward (east), y to the right (south), yaw clockwise in
radians from +x. A positive lateral deviation is to the right of the route. docs/worlds.md shows how
to bring a world of your own.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.errors import WorldError
from avtd3.store.spec import ImageSpec
from avtd3.store.world_record import WorldRecord


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VehicleState:
    """The car at one instant, in world coordinates, at its centre.

    Example:
        >>> VehicleState(x_m=1.0, y_m=2.0, yaw_rad=0.0, speed_mps=8.0).steer
        0.0
    """

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float
    """Speed along the car's axis; negative when it rolls backwards."""
    acceleration_mps2: float = 0.0
    """Change of `speed_mps`, per second, over the last control period."""
    lateral_acceleration_mps2: float = 0.0
    """Acceleration across the car's axis, positive to the right."""
    steer: float = 0.0
    """Actual (not commanded) position of the steering wheel, in [-1, 1], positive to the right."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorldFrame:
    """One synchronous frame: image, state, and what happened since the frame before.

    Example:
        >>> car = VehicleState(x_m=0.0, y_m=0.0, yaw_rad=0.0, speed_mps=0.0)
        >>> image = np.zeros((1, 84, 84), np.uint8)
        >>> WorldFrame(frame_id=0, sim_time_s=0.0, image=image, vehicle=car).lead_gap_m
        inf
    """

    frame_id: int
    """The simulator's number of this frame, the same for the image and the state."""
    sim_time_s: float
    """Simulated seconds since the world's start."""
    image: NDArray[np.uint8]
    """uint8 (C, H, W), the camera's frame; with `streams`, one of them, for people."""
    vehicle: VehicleState
    """The car."""
    collision: str = ""
    """What the car hit since the frame before (``vehicle``), or an empty string."""
    collision_frame_id: int | None = None
    """Frame in which it was hit, if the simulator reported it later; None for this frame."""
    off_road: bool = False
    """Whether the car's centre has left every driving lane and paved shoulder."""
    wrong_way: bool = False
    """Whether the car is in a lane of the opposite direction."""
    lane_invasions: int = 0
    """Lane markings that the car's wheels crossed since the frame before."""
    lead_gap_m: float = math.inf
    """Free metres to the next vehicle or closed stop line on the route ahead; infinite if there is
    none within 60 m. Only the expert uses it; policies never see it."""
    lead_speed_mps: float = 0.0
    """Speed of that vehicle along the route; 0 if there is none."""
    ran_red_light: bool = False
    """Whether the car passed a red traffic light since the frame before."""
    streams: Mapping[str, NDArray[np.uint8]] | None = None
    """uint8 (C, H, W) of each named stream; None in a world with one image, see `StreamWorld`."""
    other_control: bool = False
    """Whether the simulator drove to this frame with another action than the one it was given."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorldStart:
    """The start of an episode, as `World.reset` returns it.

    Example:
        >>> from avtd3.collect.maps.route import Route
        >>> car = VehicleState(x_m=0.0, y_m=0.0, yaw_rad=0.0, speed_mps=0.0)
        >>> frame = WorldFrame(
        ...     frame_id=0, sim_time_s=0.0, image=np.zeros((1, 84, 84), np.uint8), vehicle=car
        ... )
        >>> route = Route(points=np.array([[0.0, 0.0], [50.0, 0.0]]), lane_width_m=np.array(3.5))
        >>> WorldStart(route=route, frame=frame).route.length_m
        50.0
    """

    route: Route
    """The way to the goal."""
    frame: WorldFrame
    """The first frame, before any action."""
    town: str = ""
    """Name of the road network, unique to its geometry."""
    weather: str = ""
    """Name of the weather."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Roads and vehicles around the car, for pictures; drivers never see it.

    Example:
        >>> lane = np.array([[0.0, 0.0], [50.0, 0.0]])
        >>> Surroundings(lanes=(lane,), others=np.array([[20.0, 3.5, 0.0]])).others.shape
        (1, 3)
    """

    lanes: tuple[NDArray[np.float64], ...]
    """Centre lines of the road network's lanes, each float64 (N, 2) in metres."""
    others: NDArray[np.float64]
    """float64 (N, 3): x, y in metres and yaw in radians of each other vehicle."""


class World(Protocol):
    """A simulator with one car to drive, at a fixed control period.

    The driving task adds route following, observation, reward and episode ends. For your own world
    only `control_period_s`, `image_shape`, `reset` and `step` are required, see docs/worlds.md.

    Example:
        >>> from avtd3.collect import RoadWorld
        >>> world: World = RoadWorld()
        >>> world.name, world.control_period_s, world.image_shape
        ('road', 0.05, (1, 84, 84))
    """

    name: str
    """Name recorded with every episode (``road``)."""
    control_period_s: float
    """Simulated seconds per step."""
    image_shape: tuple[int, int, int]
    """Shape of every frame's image, ``(C, H, W)``."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences to show to the user about the current episode's roads and traffic."""
        ...

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode; the same scenario and seed give the same bytes.

        Raises:
            RoadError: If the scenario's road network cannot be used.
            WorldError: If the simulator failed.
        """
        ...

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Apply float32 (2,) = (steer, throttle or brake) in [-1, 1] for one control period.

        Raises:
            WorldError: If the simulator failed or the action is not finite.
        """
        ...

    def surroundings(self) -> Surroundings:
        """Return what is around the car now; called for pictures only, not while collecting."""
        ...

    def close(self) -> None:
        """Release the simulator; safe to call twice."""
        ...


def action_values(action: NDArray[np.float32]) -> tuple[float, float]:
    """Return steering and pedal; raise WorldError if an action is not these two, both finite."""
    values = action.tolist()
    if len(values) != 2 or not all(map(math.isfinite, values)):
        raise WorldError(
            f"action is {values}, expected two finite numbers (steer, throttle or brake); "
            "check the driver"
        )
    return values[0], values[1]


@runtime_checkable
class StreamWorld(Protocol):
    """A `World` whose frames may have named streams instead of one image."""

    @property
    def streams(self) -> Mapping[str, ImageSpec]:
        """The streams of every frame by name; empty if frames have only an image."""
        ...


@runtime_checkable
class RecordingWorld(Protocol):
    """A `World` that records its states, so that its pictures can be drawn again."""

    def world_record(self) -> WorldRecord:
        """Return the state in each observation of the episode so far."""
        ...
