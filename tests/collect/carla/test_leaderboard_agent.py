"""`examples/leaderboard_agent.py` against a stand-in of the leaderboard's interface."""

import importlib.util
import math
import sys
import types

import numpy as np
import pytest

from avtd3.collect import Route, VehicleState
from avtd3.collect.driving.task import (
    DrivingTask,
    ObservationConfig,
    TaskConfig,
    VectorBuilder,
    heading_error,
)
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store.spec import ImageSpec
from avtd3.tests.project.source import ROOT

LAT_REF, LON_REF = 48.99, 8.0
RADIUS_M = 6_378_137.0


class AutonomousAgent:
    """What the leaderboard's class offers to its agents, in versions 1.0 and 2.x."""

    def __init__(self, carla_host, carla_port, debug=False):
        self.track = None
        self._global_plan = self._global_plan_world_coord = None

    def set_global_plan(self, global_plan_gps, global_plan_world_coord):
        self._global_plan_world_coord = global_plan_world_coord[::50]
        self._global_plan = global_plan_gps[::50]


@pytest.fixture
def module(monkeypatch):
    """The example as the leaderboard loads it."""
    stand_in = types.ModuleType("leaderboard.autoagents.autonomous_agent")
    vars(stand_in)["AutonomousAgent"] = AutonomousAgent
    vars(stand_in)["Track"] = types.SimpleNamespace(SENSORS="SENSORS")
    for name in ("leaderboard", "leaderboard.autoagents"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    path = ROOT / "examples" / "leaderboard_agent.py"
    spec = importlib.util.spec_from_file_location("leaderboard_agent", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def policies(tmp_path):
    """A directory with a policy of the driving task."""
    return publish(tmp_path / "policies", TaskConfig())


def publish(path, task):
    config = NetworkConfig()
    spec = DrivingTask(task, 0.05).spec(ImageSpec(channels=1, height=84, width=84, stack=4))
    PolicyStore(path).publish(Actor(spec, config), spec, config, updates=0)
    return path


def to_gps(x, y):
    """Return what the simulator's GNSS sensor measures, as route_manipulation.py computes it."""
    scale = math.cos(math.radians(LAT_REF)) * RADIUS_M
    east = scale * math.radians(LON_REF) + x
    north = scale * math.log(math.tan(math.radians(90.0 + LAT_REF) / 2.0)) - y
    latitude = 360.0 * math.atan(math.exp(north / scale)) / math.pi - 90.0
    return {"lat": latitude, "lon": math.degrees(east / scale), "z": 0.0}


def plan():
    """Return a curve of 120 m as the leaderboard gives it, a point per metre and one twice."""
    angle = np.linspace(0.0, 2.0, 121)
    points = np.stack([60.0 * np.sin(angle), -80.0 + 60.0 * (1.0 - np.cos(angle))], axis=1)
    points = np.concatenate([points, points[-1:]])
    places = [types.SimpleNamespace(x=x, y=y, z=0.0) for x, y in points.tolist()]
    world = [(types.SimpleNamespace(location=place), None) for place in places]
    return [(to_gps(place.x, place.y), None) for place in places], world, points[:-1]


def data(agent, vehicle, gray):
    camera = agent.sensors()[0]
    picture = np.full((camera["height"], camera["width"], 4), gray, np.uint8)
    gps = to_gps(vehicle.x_m, vehicle.y_m)
    imu = [0.0, 0.0, 9.8, 0.0, 0.0, 0.0, vehicle.yaw_rad + 0.5 * math.pi]
    return {
        "camera": (1, picture),
        "gnss": (1, np.array([gps["lat"], gps["lon"], 0.0])),
        "imu": (1, np.array(imu)),
        "speed": (1, {"speed": vehicle.speed_mps}),
    }


def test_the_agent_sees_what_the_policy_was_trained_on(module, policies):
    agent = getattr(module, module.get_entry_point())("localhost", 2000)
    agent.setup(str(policies))
    gps, world, points = plan()
    agent.set_global_plan(gps, world)
    kinds = [sensor["type"] for sensor in agent.sensors()]
    assert kinds[0] == "sensor.camera.rgb"
    assert all({"type", "id"} <= sensor.keys() for sensor in agent.sensors())
    seen, act = [], agent.actor.act

    def record(observation):
        seen.append(observation)
        return act(observation)

    agent.actor.act = record
    route = Route(points=points, lane_width_m=np.array(3.5))
    builder, along = VectorBuilder(ObservationConfig(), route), 0.0
    for number in range(40):
        yaw = float(route.yaw_rad[number])  # it moves where it points, beside the route
        x, y = points[number] + 0.4 * np.array([-math.sin(yaw), math.cos(yaw)])
        vehicle = VehicleState(x_m=x, y_m=y, yaw_rad=yaw, speed_mps=5.0)
        control = agent.run_step(data(agent, vehicle, 100), 0.2 * number)
        at = route.project(x, y, along)
        along = at.distance_m
        expected = builder.build(vehicle, at, heading_error(yaw, at.yaw_rad))
        np.testing.assert_allclose(seen[-1].vector, expected, atol=0.06)
        assert seen[-1].image.shape == (1, 84, 84)
        assert set(np.unique(seen[-1].image)) == {100}
        assert -1.0 <= control.steer <= 1.0
        assert min(control.throttle, control.brake) == 0.0
    assert agent.along_m == pytest.approx(39.0, abs=0.5)


def test_the_agent_passes_the_commands_of_the_plan_on(module, tmp_path):
    command = ObservationConfig(vector="speed", command=True)
    agent = module.PolicyAgent("localhost", 2000)
    agent.setup(str(publish(tmp_path / "policies", TaskConfig(observation=command))))
    gps, world, points = plan()
    names = ["LANEFOLLOW"] * 40 + ["LEFT"] * 21 + ["LANEFOLLOW"] * 30 + ["STRAIGHT"] * 31
    world = [
        (place, types.SimpleNamespace(name=name))
        for (place, _), name in zip(world, names, strict=True)
    ]
    agent.set_global_plan(gps, world)
    assert [(turn.command, round(turn.from_m), round(turn.to_m)) for turn in agent.route.turns] == [
        ("left", 40, 60),
        ("straight", 91, 120),
    ]
    seen, act = [], agent.actor.act

    def act_and_note(observation):
        seen.append(observation.vector)
        return act(observation)

    agent.actor.act = act_and_note
    for number in (10, 30, 50, 63):
        yaw = float(agent.route.yaw_rad[number])
        x, y = points[number].tolist()
        agent.place, agent.along_m = complex(x, y), float(number)
        vehicle = VehicleState(x_m=x, y_m=y, yaw_rad=yaw, speed_mps=5.0)
        agent.run_step(data(agent, vehicle, 100), 0.05 * number)
    assert [vector[1:].tolist().index(1.0) for vector in seen] == [0, 1, 1, 0]


def test_a_compass_without_a_value_keeps_the_last_heading(module, policies):
    agent = module.PolicyAgent("localhost", 2000)
    agent.setup(str(policies))
    gps, world, points = plan()
    agent.set_global_plan(gps, world)
    vehicle = VehicleState(x_m=points[0, 0], y_m=points[0, 1], yaw_rad=0.4, speed_mps=0.0)
    agent.run_step(data(agent, vehicle, 1), 0.0)
    without = data(agent, vehicle, 1)
    without["imu"][1][-1] = math.nan
    agent.run_step(without, 0.05)
    assert agent.yaw == pytest.approx(0.4)
