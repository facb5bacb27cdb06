"""The same roads, seed and actions give the same drive on both simulators."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import CarlaWorld
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.own_process import own_process
from avtd3.tests.collect.maps.road_networks import straight_document
from avtd3.tests.collect.plain import STEADY

with contextlib.suppress(ImportError):
    import carla

    from avtd3.tests.collect.carla import client as real

EMPTY = scenario(1, networks=4, weather="clear")
STEPS = 150


def actions(seed):
    """Return smooth steering and pedals, float32 (STEPS, 2) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time_s = 0.05 * np.arange(STEPS)
    waves = rng.uniform(0.5, 2.0, (2, 1)) * time_s + rng.uniform(0.0, math.tau, (2, 1))
    steer, pedal = np.sin(waves)
    return np.stack([0.1 * steer, 0.4 + 0.5 * pedal], axis=1).astype(np.float32)


def state(vehicle):
    return [vehicle.x_m, vehicle.y_m, math.degrees(vehicle.yaw_rad), vehicle.speed_mps]


def driven(car):
    """Return the same four numbers for a car of the client."""
    pose, ahead = car.get_transform(), car.get_transform().get_forward_vector()
    return [pose.location.x, pose.location.y, pose.rotation.yaw, car.get_velocity().dot(ahead)]


def assert_same_drive(builtin, wire):
    """Check positions to a millimetre: float32 resolves 0.03 mm at 500 m, and errors add up."""
    difference = np.abs(np.array(builtin) - np.array(wire))
    difference[:, 2] = np.minimum(difference[:, 2], 360.0 - difference[:, 2])
    assert difference[:, :2].max() < 1e-3
    assert difference[:, 2].max() < 1e-2
    assert difference[:, 3].max() < 1e-3


@own_process
def test_the_servers_car_and_camera_are_those_of_the_built_in_simulator():
    with CarlaServer() as server:
        world = RoadWorld(RoadConfig(camera=STEADY))
        first = world.reset(EMPTY, 2).frame
        client = real.connect(server)
        there = real.synchronous(
            client.generate_opendrive_world(
                world._current().network.map.to_opendrive(), carla.OpendriveGenerationParameters()
            )
        )
        place = carla.Transform(
            carla.Location(first.vehicle.x_m, first.vehicle.y_m),
            carla.Rotation(yaw=math.degrees(first.vehicle.yaw_rad)),
        )
        car = real.spawn(there, real.MODEL3, place)
        car.set_simulate_physics(False)
        wide = {"image_size_x": 168, "image_size_y": 168}
        with real.camera(there, car, **wide) as camera:
            pictures = [(first.image[0], gray(camera.first(there)))]
            car.set_simulate_physics(True)
            car.set_target_velocity(first.vehicle.speed_mps * place.get_forward_vector())
            builtin, wire = [], []
            for steer, pedal in actions(3):
                frame = world.step(np.array([steer, pedal]))
                control = carla.VehicleControl(steer=float(steer))
                control.throttle, control.brake = max(float(pedal), 0.0), max(-float(pedal), 0.0)
                car.apply_control(control)
                picture = camera.until(there.tick())
                builtin.append(state(frame.vehicle))
                wire.append(driven(car))
                pictures.append((frame.image[0], gray(picture)))
    assert_same_drive(builtin, wire)
    assert math.dist(builtin[0][:2], builtin[-1][:2]) > 20.0
    # The brightness of ground and sky differs; their positions are the same.
    for ours, theirs in pictures[::10]:
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("number", "seed", "weather"),
    [
        (2, 5, "rain"),
        pytest.param(1, 2, "clear", marks=pytest.mark.slow),
        pytest.param(0, 9, "overcast", marks=pytest.mark.slow),
    ],
)
def test_an_episode_is_the_same_on_both_simulators(number, seed, weather):
    assert_same_episode(scenario(number, networks=4, npcs=0, weather=weather), seed)


def assert_same_episode(setting, seed):
    """Check that routes, drives and the values of each frame are the same on both."""
    with CarlaServer() as server:
        config = CarlaConfig(host="127.0.0.1", ports=(server.port,))
        there, here = CarlaWorld(config, server.port), RoadWorld()
        wire, builtin = there.reset(setting, seed), here.reset(setting, seed)
        try:
            np.testing.assert_allclose(wire.route.points, builtin.route.points, atol=1e-4)
            assert (wire.town, wire.weather) == (builtin.town, builtin.weather)
            pairs = [(builtin.frame, wire.frame)]
            pairs += [(here.step(action), there.step(action)) for action in actions(seed)]
        finally:
            there.close()
    assert_same_drive(
        *([state(frame.vehicle) for frame in frames] for frames in zip(*pairs, strict=True))
    )
    first = pairs[0][1]
    for ours, theirs in pairs:
        assert theirs.frame_id - first.frame_id == ours.frame_id
        assert theirs.sim_time_s == pytest.approx(ours.sim_time_s, abs=1e-6)
        assert (theirs.off_road, theirs.wrong_way) == (ours.off_road, ours.wrong_way)
        assert theirs.lead_gap_m == ours.lead_gap_m == math.inf


@pytest.mark.slow
def test_hills_change_nothing_but_heights(tmp_path):
    """The built-in simulator removes hills; a server has the file unchanged."""
    rise = '<elevationProfile><elevation s="0" a="3" b="0.05" c="0" d="0"/></elevationProfile>'
    hilly = straight_document(length=400.0).replace("<lanes>", f"{rise}<lanes>")
    path = tmp_path / "hills.xodr"
    path.write_text(hilly)
    assert_same_episode(dataclasses.replace(EMPTY, town=str(path)), seed=4)


def gray(picture):
    """Return a picture of the client, averaged over squares of 2 x 2 pixels."""
    pixels = np.frombuffer(picture.raw_data, np.uint8).reshape(picture.height, picture.width, 4)
    return pixels[..., 0].reshape(picture.height // 2, 2, -1, 2).mean(axis=(1, 3))
