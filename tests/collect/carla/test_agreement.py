"""The same road, seed and actions: the same drive, embedded and over the wire."""

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
    """Smooth steering and pedals, float32 (STEPS, 2) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time_s = 0.05 * np.arange(STEPS)
    waves = rng.uniform(0.5, 2.0, (2, 1)) * time_s + rng.uniform(0.0, math.tau, (2, 1))
    steer, pedal = np.sin(waves)
    return np.stack([0.1 * steer, 0.4 + 0.5 * pedal], axis=1).astype(np.float32)


def state(vehicle):
    return [vehicle.x_m, vehicle.y_m, math.degrees(vehicle.yaw_rad), vehicle.speed_mps]


def driven(car):
    """The same four numbers of a car of the client."""
    pose, ahead = car.get_transform(), car.get_transform().get_forward_vector()
    return [pose.location.x, pose.location.y, pose.rotation.yaw, car.get_velocity().dot(ahead)]


def assert_same_drive(embedded, wire):
    """Positions to a millimetre: single precision holds 0.03 mm at 500 m, and errors add up."""
    difference = np.abs(np.array(embedded) - np.array(wire))
    difference[:, 2] = np.minimum(difference[:, 2], 360.0 - difference[:, 2])
    assert difference[:, :2].max() < 1e-3
    assert difference[:, 2].max() < 1e-2
    assert difference[:, 3].max() < 1e-3


@own_process
def test_the_servers_car_and_camera_are_the_road_worlds():
    with CarlaServer() as server:
        world = RoadWorld(RoadConfig(camera=STEADY))
        first = world.reset(EMPTY, 2).frame
        client = real.connect(server)
        there = real.synchronous(
            client.generate_opendrive_world(
                world.network.map.to_opendrive(), carla.OpendriveGenerationParameters()
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
            embedded, wire = [], []
            for steer, pedal in actions(3):
                frame = world.step(np.array([steer, pedal]))
                control = carla.VehicleControl(steer=float(steer))
                control.throttle, control.brake = max(float(pedal), 0.0), max(-float(pedal), 0.0)
                car.apply_control(control)
                picture = camera.until(there.tick())
                embedded.append(state(frame.vehicle))
                wire.append(driven(car))
                pictures.append((frame.image[0], gray(picture)))
    assert_same_drive(embedded, wire)
    assert math.dist(embedded[0][:2], embedded[-1][:2]) > 20.0
    # Ground and sky are as bright as each likes; what is where is the same.
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
def test_an_episode_is_the_same_embedded_and_over_the_wire(number, seed, weather):
    assert_same_episode(scenario(number, networks=4, npcs=0, weather=weather), seed)


def assert_same_episode(setting, seed):
    """Routes, drives and what is said of each frame are the same in both worlds."""
    with CarlaServer() as server:
        config = CarlaConfig(host="127.0.0.1", ports=(server.port,))
        there, here = CarlaWorld(config, server.port), RoadWorld()
        wire, embedded = there.reset(setting, seed), here.reset(setting, seed)
        try:
            np.testing.assert_allclose(wire.route.points, embedded.route.points, atol=1e-4)
            assert (wire.town, wire.weather) == (embedded.town, embedded.weather)
            pairs = [(embedded.frame, wire.frame)]
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
    """The embedded world lays roads flat; a server has the file as it is."""
    rise = '<elevationProfile><elevation s="0" a="3" b="0.05" c="0" d="0"/></elevationProfile>'
    hilly = straight_document(length=400.0).replace("<lanes>", f"{rise}<lanes>")
    path = tmp_path / "hills.xodr"
    path.write_text(hilly)
    assert_same_episode(dataclasses.replace(EMPTY, town=str(path)), seed=4)


def gray(picture):
    """A picture of the client, every 2 x 2 pixels averaged."""
    pixels = np.frombuffer(picture.raw_data, np.uint8).reshape(picture.height, picture.width, 4)
    return pixels[..., 0].reshape(picture.height // 2, 2, -1, 2).mean(axis=(1, 3))
