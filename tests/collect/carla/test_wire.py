"""The test server behaves like CARLA for the real client."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys

import pytest

from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.own_process import (
    own_process,
    own_process_with_traffic_manager,
)
from avtd3.tests.collect.maps.road_networks import straight_document

with contextlib.suppress(ImportError):
    import carla

    from avtd3.tests.collect.carla import client as real


@own_process
def test_the_client_finds_a_world():
    with CarlaServer() as server:
        client = real.connect(server)
        world = client.get_world()
        assert client.get_server_version() == client.get_client_version()
        world_map = world.get_map()
        assert world_map.name == "Carla/Maps/AvTown01"
        assert len(world_map.get_spawn_points()) > 40
        assert len(world_map.get_topology()) == 8
        assert world.get_blueprint_library().find(real.MODEL3).has_attribute("role_name")
        first = world.wait_for_tick(real.WAIT_S).frame
        assert world.wait_for_tick(real.WAIT_S).frame > first
        assert not world.get_settings().synchronous_mode
        assert real.kinds(world) == ["spectator"]
        assert server.record()["problems"] == []


@own_process
def test_pictures_come_with_every_frame():
    with CarlaServer() as server:
        world = real.synchronous(real.connect(server).get_world())
        car = real.spawn(world, real.MODEL3, world.get_map().get_spawn_points()[0])
        with real.camera(world, car, fov=80) as camera:
            camera.first(world)
            for _ in range(5):
                frame = world.tick()
                picture = camera.until(frame)
                assert picture.frame == frame
            assert (picture.width, picture.height, picture.fov) == (40, 30, 80.0)
            pixels = bytes(picture.raw_data)
            assert pixels[0::4] == pixels[1::4] == pixels[2::4]
            assert set(pixels[3::4]) == {255}
            assert len(set(pixels[0::4])) > 20
            # The reported position of the sensor: 1.4 m ahead of the car.
            assert car.get_location().distance(picture.transform.location) == pytest.approx(
                math.hypot(1.4, 1.6), abs=1e-4
            )
        assert server.record()["problems"] == []


@own_process
def test_a_slow_sensor_sends_in_its_own_time():
    with CarlaServer() as server:
        world = real.synchronous(real.connect(server).get_world())
        car = real.spawn(world, real.MODEL3, world.get_map().get_spawn_points()[0])
        with real.camera(world, car, sensor_tick=0.15) as camera:
            first = camera.first(world).frame
            for _ in range(7):
                world.tick()
            assert camera.until(first + 1).frame == first + 3
            assert camera.until(first + 4).frame == first + 6


@own_process
def test_a_car_is_driven_into_another():
    with CarlaServer() as server:
        world = real.synchronous(real.connect(server).get_world())
        first, second = world.get_map().get_spawn_points()[:2]
        car = real.spawn(world, real.MODEL3, first)
        other = real.spawn(world, real.TT, second)
        with pytest.raises(RuntimeError, match="Spawn failed because of collision at spawn pos"):
            real.spawn(world, real.TT, first)
        with real.sensor(world, car, "collision") as collision:
            car.apply_control(carla.VehicleControl(throttle=0.6))
            frame, contact = world.tick(), None
            for _ in range(200):
                frame = world.tick()
                if car.get_location().distance(other.get_location()) < 3.0:
                    contact = collision.until(0)
                    break
            assert contact is not None
            assert (contact.actor.id, contact.other_actor.id) == (car.id, other.id)
            assert contact.frame <= frame
            assert car.get_velocity().length() > 3.0
        assert other.bounding_box.extent.x == pytest.approx(2.1)
        assert car.destroy()
        assert other.destroy()
        world.tick()
        assert real.kinds(world) == ["spectator"]
        assert server.record()["problems"] == []


@own_process
def test_the_car_is_where_it_was_put_and_as_fast_as_it_was_made():
    with CarlaServer() as server:
        world = real.synchronous(real.connect(server).get_world())
        car = real.spawn(world, real.MODEL3, world.get_map().get_spawn_points()[0])
        world.tick()
        car.set_simulate_physics(False)
        car.set_transform(carla.Transform(carla.Location(40.0, 1.5), carla.Rotation(yaw=10.0)))
        world.tick()
        assert car.get_location().distance(carla.Location(40.0, 1.5)) < 1e-5
        assert car.get_velocity().length() == 0.0
        car.set_simulate_physics(True)
        ahead = car.get_transform().get_forward_vector()
        car.set_target_velocity(6.0 * ahead)
        world.tick()
        assert car.get_velocity().length() == pytest.approx(6.0, abs=0.05)
        moved = car.get_location() - carla.Location(40.0, 1.5)
        assert moved.dot(ahead) == pytest.approx(0.3, abs=0.01)
        assert car.get_acceleration().length() < 1.0


@own_process
def test_lines_are_crossed_as_the_map_has_them():
    with CarlaServer() as server:
        world = real.synchronous(real.connect(server).get_world())
        right = [p for p in world.get_map().get_spawn_points() if abs(p.rotation.yaw) < 1e-3][2]
        car = real.spawn(world, real.MODEL3, right)
        world.tick()
        with real.sensor(world, car, "lane_invasion") as lines:
            world.tick()
            for aside, kind in ((-2.5, "Broken"), (3.0, "Solid")):
                place = carla.Transform(right.location, right.rotation)
                world.tick()
                while lines.has_any(0.3):
                    pass
                place.location.y += aside
                car.set_transform(place)
                frame = world.tick()
                crossed = {str(mark.type) for mark in lines.until(frame).crossed_lane_markings}
                assert crossed == {kind}
                car.set_transform(right)


@own_process_with_traffic_manager
def test_traffic_drives_along_its_lanes():
    with CarlaServer() as server:
        client = real.connect(server)
        world = real.synchronous(client.get_world())
        manager = client.get_trafficmanager(0)
        manager.set_synchronous_mode(True)
        manager.set_random_device_seed(7)
        blueprint = world.get_blueprint_library().find(real.TT)
        places = world.get_map().get_spawn_points()[::5][:8]
        answers = client.apply_batch_sync(
            [
                carla.command.SpawnActor(blueprint, place).then(
                    carla.command.SetAutopilot(carla.command.FutureActor, True, manager.get_port())
                )
                for place in places
            ],
            True,
        )
        assert [answer.error for answer in answers] == [""] * 8
        cars = list(world.get_actors([answer.actor_id for answer in answers]))
        for _ in range(300):
            world.tick()
        for car in cars:
            speed = car.get_velocity().length()
            lane = world.get_map().get_waypoint(car.get_location())
            assert lane.transform.location.distance_2d(car.get_location()) < 0.6
            assert speed < 50 / 3.6
        assert sum(car.get_velocity().length() > 5.0 for car in cars) >= 4
        manager.shut_down()
        client.apply_batch_sync([carla.command.DestroyActor(car) for car in cars], True)
        assert real.kinds(world) == ["spectator"]
        assert server.record()["problems"] == []


@own_process
def test_maps_are_loaded_and_generated():
    with CarlaServer() as server:
        client = real.connect(server)
        world = client.get_world()
        car = real.spawn(world, real.MODEL3, world.get_map().get_spawn_points()[0])
        world.wait_for_tick(real.WAIT_S)
        assert car.is_alive
        loaded = client.load_world("AvTown02")
        assert loaded.get_map().name == "Carla/Maps/AvTown02"
        assert loaded.id != world.id
        assert real.kinds(loaded) == ["spectator"]
        assert not car.is_alive
        with pytest.raises(RuntimeError, match="not found"):
            client.load_world("Nowhere")
        xodr = straight_document(length=400.0)
        generated = client.generate_opendrive_world(xodr, carla.OpendriveGenerationParameters())
        assert generated.get_map().name.endswith("OpenDriveMap")
        assert generated.get_map().to_opendrive() == xodr
        assert client.reload_world().get_map().name.endswith("OpenDriveMap")
        assert "/Game/Carla/Maps/AvTown01" in client.get_available_maps()
        assert server.record()["problems"] == []


@own_process
def test_cars_stand_on_hills():
    rise = '<elevation s="0" a="5" b="0.1" c="0" d="0"/>'
    flat = straight_document()
    xodr = flat.replace("<lanes>", f"<elevationProfile>{rise}</elevationProfile><lanes>")
    with CarlaServer() as server:
        client = real.connect(server)
        world = client.generate_opendrive_world(xodr, carla.OpendriveGenerationParameters())
        real.synchronous(world)
        assert world.get_map().to_opendrive() == xodr
        place = world.get_map().get_spawn_points()[2]
        car = real.spawn(world, real.MODEL3, place)
        world.tick()
        assert car.get_location().z == pytest.approx(5.0 + 0.1 * place.location.x, abs=0.01)


def test_the_server_ends_with_the_process_that_started_it(carla_server):
    os.kill(carla_server.pid, 0)
    carla_server.hang_up()
    assert carla_server.wait() == 0


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\xc1\xc1", b"\x80"])
def test_invalid_data_ends_only_its_own_connection(carla_server, junk):
    with socket.create_connection(("127.0.0.1", carla_server.port), timeout=60) as connection:
        connection.sendall(junk)
        assert connection.recv(1) == b""
    assert carla_server.is_alive
    assert "no message" in carla_server.record()["problems"][0]


def test_a_server_without_input_serves_while_another_process_lives(tmp_path):
    """Like a server that a command starts: its standard input is not open."""
    command = [sys.executable, "-m", "avtd3.tests.collect.carla.server"]
    master = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with master, (tmp_path / "out").open("wb") as out:
        server = subprocess.Popen(
            [*command, "-carla-rpc-port=0", f"--serve-while={master.pid}"],
            stdin=subprocess.DEVNULL,
            stdout=out,
        )
        hello = b""
        while not hello.endswith(b"\n"):
            hello = (tmp_path / "out").read_bytes()
            assert server.poll() is None
        socket.create_connection(("127.0.0.1", json.loads(hello)["port"]), timeout=60).close()
        master.communicate(b"\n")
    assert server.wait(60) == 0
