"""Pitfalls of the real client also occur with the test server, so that tests cover them."""

import contextlib

import pytest

from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.own_process import own_process

with contextlib.suppress(ImportError):
    import carla

    from avtd3.tests.collect.carla import client as real


def started(server):
    """Return a synchronous world and a car on its first spawn point."""
    world = real.synchronous(real.connect(server).get_world())
    return world, real.spawn(world, real.MODEL3, world.get_map().get_spawn_points()[0])


def controls(server):
    return [list(by_car.values()) for _, by_car in server.record()["controls"]]


@own_process
def test_a_control_like_the_last_one_is_not_sent():
    with CarlaServer() as server:
        world, car = started(server)
        driving, braking = carla.VehicleControl(throttle=0.5), carla.VehicleControl(brake=1.0)

        def sent():
            return server.record()["calls"].get("apply_control_to_vehicle", 0)

        car.apply_control(carla.VehicleControl())
        world.tick()
        assert sent() == 0
        for control in (driving, driving, braking, driving):
            car.apply_control(control)
            world.tick()
        assert sent() == 3
        # Another handle of the car does not know what this one sent.
        other = world.get_actor(car.id)
        other.apply_control(braking)
        car.apply_control(driving)
        world.tick()
        assert car.get_control().brake == 1.0


@own_process
def test_a_car_without_sticky_control_sends_each():
    with CarlaServer() as server:
        world = real.synchronous(real.connect(server).get_world())
        place = world.get_map().get_spawn_points()[0]
        car = real.spawn(world, real.MODEL3, place, sticky_control="false")
        for _ in range(4):
            car.apply_control(carla.VehicleControl())
            world.tick()
        assert server.record()["calls"]["apply_control_to_vehicle"] == 4


@own_process
def test_a_control_is_in_force_from_the_very_next_tick():
    with CarlaServer() as server:
        world, car = started(server)
        for number in range(1, 21):
            car.apply_control(carla.VehicleControl(throttle=number / 32.0))
            world.tick()
        throttles = [control[0] for (control,) in controls(server)[-20:]]
        assert throttles == [number / 32.0 for number in range(1, 21)]


@own_process
def test_a_new_actor_is_garbage_until_a_tick():
    with CarlaServer() as server:
        world, car = started(server)
        assert car.get_transform().location.distance(carla.Location()) == 0.0
        assert car.id not in [actor.id for actor in world.get_actors()]
        world.tick()
        place = world.get_map().get_spawn_points()[0].location
        assert car.get_location().distance_2d(place) < 0.1
        assert car.get_speed_limit() == 50.0


@own_process
def test_settings_take_one_or_two_ticks():
    with CarlaServer() as server:
        world = real.synchronous(real.connect(server).get_world())
        before = server.record()
        world.apply_settings(world.get_settings())
        middle = server.record()
        settings = world.get_settings()
        settings.fixed_delta_seconds = 0.1
        answer = world.apply_settings(settings)
        after = server.record()
        ticks = [record["calls"]["tick_cue"] for record in (before, middle, after)]
        assert ticks[1] - ticks[0] == 1
        assert 1 <= ticks[2] - ticks[1] <= 2
        assert answer < after["frame"]
        assert world.get_snapshot().timestamp.delta_seconds - 0.1 < 1e-6


@own_process
def test_a_new_client_of_a_synchronous_server_sees_nothing_until_a_tick():
    with CarlaServer() as server:
        _, car = started(server)
        second = real.connect(server).get_world()
        assert second.get_snapshot().frame == 0
        assert list(second.get_actors()) == []
        real.first_tick(second)
        assert sorted(actor.id for actor in second.get_actors()) == [10, car.id]


@own_process
def test_the_first_picture_may_be_lost():
    with CarlaServer() as server:
        world, car = started(server)
        for _ in range(100):
            with real.camera(world, car) as camera:
                first = world.tick()
                if camera.first(world).frame > first:
                    return
        raise AssertionError("a hundred cameras lost no first picture")


@own_process
def test_a_destroyed_vehicle_leaves_its_sensors():
    with CarlaServer() as server:
        world, car = started(server)
        collision = real.spawn(world, "sensor.other.collision", carla.Transform(), car)
        world.tick()
        assert car.destroy()
        with pytest.raises(RuntimeError, match="destroyed actor"):
            car.destroy()
        world.tick()
        assert real.kinds(world) == ["sensor.other.collision", "spectator"]
        assert collision.destroy()


@own_process
def test_an_old_client_does_not_find_a_restarted_server():
    with CarlaServer() as server:
        port = server.port
        client = real.connect(server)
        client.get_world()
        server.kill()
    with CarlaServer(port=port) as server:
        client.set_timeout(1.0)
        with contextlib.suppress(RuntimeError):
            client.get_server_version()
            raise AssertionError("an old client reached the new server")
        assert real.connect(server).get_world().get_map()


@own_process
def test_a_batched_control_hides_a_repeated_one():
    with CarlaServer() as server:
        world, car = started(server)
        control = carla.VehicleControl(throttle=0.5)
        car.apply_control(control)
        world.tick()
        batched = carla.command.ApplyVehicleControl(car, carla.VehicleControl(brake=1.0))
        real.connect(server).apply_batch_sync([batched])
        car.apply_control(control)
        world.tick()
        assert car.get_control().brake == 1.0


@own_process
def test_a_destroyed_camera_leaves_no_subscription():
    """A subscription that ended leaves nothing on the server."""
    with CarlaServer() as server:
        world, car = started(server)
        for _ in range(10):
            with real.camera(world, car) as camera:
                camera.first(world)
        world.tick()
        record = server.record_when(lambda record: set(record["streams"]) == {"1"})
        assert [actor["type"] for actor in record["actors"]] == ["spectator", real.MODEL3]
