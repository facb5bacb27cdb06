"""Drive a published policy as an agent of CARLA leaderboard 1.0 or 2.x.

    leaderboard_evaluator.py --agent examples/leaderboard_agent.py --agent-config run/policies ...

The agent needs Python 3.11 or later with avtd3, the packages `leaderboard` and `scenario_runner`,
and the CARLA client of the server's version. It follows the
dense route that the leaderboard plans, and
finds its place on it by GNSS, compass and speedometer. It is tested against a stand-in of the
leaderboard's interface; it has not been tried on a simulator yet.
"""

import itertools
import math

import carla
import numpy as np
from leaderboard.autoagents.autonomous_agent import AutonomousAgent, Track

from avtd3.collect import Route, Turn, VehicleState
from avtd3.collect.carla.car import gray
from avtd3.collect.carla.config import CarlaCamera
from avtd3.collect.driving.task import ObservationConfig, VectorBuilder, heading_error
from avtd3.collect.maps.route import distance_along, resample
from avtd3.learn import Policy, PolicyActor
from avtd3.store import Observation

EARTH_RADIUS_M = 6_378_137.0
GNSS_GAIN = 0.2
"""Share of the difference between GNSS and dead reckoning that is corrected in a step."""
LANE_WIDTH_M = 3.5


def get_entry_point():
    """Return the name of the agent's class, for the leaderboard."""
    return "PolicyAgent"


class PolicyAgent(AutonomousAgent):
    """Acts with a policy; `--agent-config` is a policy file or a directory of policies."""

    def setup(self, path_to_conf_file):
        """Load the policy."""
        self.track = Track.SENSORS
        self.actor = PolicyActor(Policy.load(path_to_conf_file))
        spec = self.actor.policy.spec
        _, height, width = spec.image.frame_shape
        self.camera = CarlaCamera(height=height, width=width)
        points = sum(name.startswith("waypoint_") for name in spec.vector_names) // 2
        self.observation = ObservationConfig(
            vector="full" if points > 0 else "speed",
            command="command_follow" in spec.vector_names,
            waypoints=max(points, 1),
            waypoint_spacing_m=spec.vector_scales[3] / points if points > 0 else 2.5,
        )
        self.actor.reset()
        self.route, self.place, self.before_s, self.yaw, self.along_m = None, None, 0.0, 0.0, 0.0

    def sensors(self):
        """Return the sensors: the camera of the training data, and what locates the car."""
        camera, no_turn = self.camera, {"roll": 0.0, "pitch": 0.0, "yaw": 0.0}
        middle = {"x": 0.0, "y": 0.0, "z": 1.6}
        view = {"x": camera.forward_m, "y": 0.0, "z": camera.height_m, "roll": 0.0, "yaw": 0.0}
        size = {name: getattr(camera, name) * camera.supersample for name in ("width", "height")}
        return [
            {"type": "sensor.camera.rgb", "id": "camera", "fov": camera.field_of_view_deg}
            | {**view, **size, "pitch": -camera.pitch_deg},
            {"type": "sensor.other.gnss", "id": "gnss", **middle, **no_turn},
            {"type": "sensor.other.imu", "id": "imu", **middle, **no_turn},
            {"type": "sensor.speedometer", "id": "speed", "reading_frequency": 20},
        ]

    def set_global_plan(self, global_plan_gps, global_plan_world_coord):
        """Keep the route at its full resolution; the leaderboard thins it out."""
        super().set_global_plan(global_plan_gps, global_plan_world_coord)
        places = [transform.location for transform, _ in global_plan_world_coord]
        points = np.array([(place.x, place.y) for place in places])
        is_new = np.append(True, np.hypot(*np.diff(points, axis=0).T) > 1e-3)
        options = [getattr(option, "name", "").lower() for _, option in global_plan_world_coord]
        self.route = Route(
            points=resample(points[is_new]),
            lane_width_m=np.array(LANE_WIDTH_M),
            turns=tuple(turns(distance_along(points).tolist(), options)),
        )
        self.builder = VectorBuilder(self.observation, self.route)
        self.origin = (global_plan_gps[0][0], places[0])

    def run_step(self, input_data, timestamp):
        """Return the control of the policy for the newest data."""
        state = self.locate(input_data, timestamp)
        at = self.route.project(state.x_m, state.y_m, self.along_m)
        self.along_m = at.distance_m
        heading = heading_error(state.yaw_rad, at.yaw_rad)
        pixels = np.ascontiguousarray(input_data["camera"][1][..., :4])
        steer, pedal = self.actor.act(
            Observation(
                image=gray(pixels, self.camera.supersample),
                vector=self.builder.build(state, at, heading),
            )
        ).tolist()
        return carla.VehicleControl(steer=steer, throttle=max(pedal, 0.0), brake=max(-pedal, 0.0))

    def locate(self, input_data, timestamp):
        """Return the state of the car: dead reckoning, corrected by GNSS."""
        speed, compass = float(input_data["speed"][1]["speed"]), float(input_data["imu"][1][-1])
        if math.isfinite(compass):  # the first values may not be
            self.yaw = math.remainder(compass - 0.5 * math.pi, math.tau)
        seen = self.to_metres(*input_data["gnss"][1][:2])
        if self.place is None:
            self.place, self.before_s = seen, timestamp
        passed_s, self.before_s = timestamp - self.before_s, timestamp
        self.place += speed * passed_s * complex(math.cos(self.yaw), math.sin(self.yaw))
        self.place += GNSS_GAIN * (seen - self.place)
        return VehicleState(
            x_m=self.place.real, y_m=self.place.imag, yaw_rad=self.yaw, speed_mps=speed
        )

    def to_metres(self, latitude, longitude):
        """Return x + iy on the map: CARLA's Mercator projection, relative to the route's start."""
        start, place = self.origin
        scale = EARTH_RADIUS_M * math.cos(math.radians(start["lat"]))
        east = scale * math.radians(longitude - start["lon"])
        return complex(place.x + east, place.y - scale * (north(latitude) - north(start["lat"])))


def turns(distance_m, options):
    """Yield the junctions of a plan: its stretches with the road option left, right or straight."""
    groups = itertools.groupby(zip(distance_m, options, strict=True), lambda place: place[1])
    for option, places in groups:
        if option in ("left", "right", "straight"):
            along = [place[0] for place in places]
            yield Turn(command=option, from_m=along[0], to_m=along[-1])


def north(latitude):
    """Return the northing of a latitude in degrees on a globe of radius 1."""
    return math.log(math.tan(math.radians(90.0 + latitude) / 2.0))
