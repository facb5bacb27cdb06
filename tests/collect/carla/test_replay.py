"""States of a CARLA world, recorded and shown again, with the real client over the wire.

No real server was asked: where the test server puts actors is exact, and its pictures depend on
nothing else.
"""

import json
import math
import os
import signal
import subprocess
import sys
from typing import Any

import carla
import numpy as np
import pytest

from avtd3.collect import CollectConfig, ScenarioConfig, collect
from avtd3.collect.carla.car import pose_of
from avtd3.collect.carla.scene import Body, CarlaRenderer, CarlaScene
from avtd3.collect.carla.session import origin_of
from avtd3.collect.rerender import check_pictures, rerender
from avtd3.collect.sim.scene import SceneChanges
from avtd3.collect.sim.streams import StreamCamera
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError, WorldLost
from avtd3.store.writer import WriterConfig
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.worlds import LOOP, drive, kinds, settings, until, world_on

GRAY: dict[str, Any] = {"height": 24, "width": 32}
STREAMS = {
    "gray": StreamCamera(**GRAY),
    "way": StreamCamera(kind="bev_route", height=64, width=64, metres_per_pixel=2.0, stack=1),
}
SCENARIO = ScenarioConfig(town="AvTown01", npcs=3, route_length_m=60.0, time_limit_s=1.0)
STEPS = 20


@pytest.fixture(scope="module")
def town():
    """A server with a green traffic light."""
    with CarlaServer(lights=[[30.0, 1.75, 0.0]]) as server:
        yield server


@pytest.fixture(scope="module")
def source(town, tmp_path_factory):
    """Three episodes, a segment each."""
    path = tmp_path_factory.mktemp("driven") / "data"
    config = CollectConfig(
        world="carla",
        carla=settings(town, walkers=2, streams=STREAMS),
        scenario=SCENARIO,
        writer=WriterConfig(segment_steps=STEPS),
    )
    collect(path, config, episodes=3)
    assert len(Dataset.open(path).segment_ids()) == 3
    return path


def first(source):
    """Return the scene and the record of the first episode."""
    record = next(iter(Dataset.open(source).episodes())).world_record
    assert record is not None
    return CarlaScene.parse(record.setup), record


def shown(server):
    """Return the poses, and the states of lights, at each tick that showed several actors."""
    return [
        ([pose for kind, *pose in poses.values() if "light" not in kind], list(states.values()))
        for _, poses, states in server.record()["poses"]
        if sum("light" not in kind for kind, *_ in poses.values()) > 1
    ]


def is_clean(server):
    """Return whether no actor is left and the server runs by itself."""
    return kinds(server) in ([], ["traffic.traffic_light"]) and not server.record()["settings"][0]


def test_the_record_says_what_there_was(source, town):
    scene, record = first(source)
    assert (record.ego.shape, record.actors.shape) == ((STEPS + 1, 3), (STEPS + 1, 12, 3))
    assert [body.kind.partition(".")[0] for body in scene.bodies] == ["vehicle"] * 3 + [
        "walker"
    ] * 2
    assert (scene.car.kind, scene.town) == ("vehicle.tesla.model3", "AvTown01")
    assert scene.lights == [[30.0, 1.75, 0.0]]
    assert record.actors[:, -1].tolist() == [[2, 0, 0]] * (STEPS + 1)
    assert len(scene.weather.values) == 14
    assert Dataset.open(source).snapshot().segments[0].map_digests() == {scene.map}
    assert [f for f in audit([source]).findings if f.severity == "error"] == []
    speed = np.hypot(*np.diff(record.ego[:, :2], axis=0).T) / scene.period_s
    assert speed.max() > 1.0


def test_actors_stand_within_a_millimetre_and_pictures_come_in_order(source, town):
    scene, record = first(source)
    before = len(shown(town))
    town.fault(light_state=0)  # red now, but green in the recorded episode
    renderer = CarlaRenderer(source, settings(town), town.port)
    try:
        frames = [pictures["gray"] for pictures in renderer.frames(scene, record)]
    finally:
        renderer.close()
    ticks = shown(town)[before:][-len(frames) :]
    count = len(scene.bodies)
    for (poses, states), car, actors in zip(ticks, record.ego, record.actors, strict=True):
        assert states == [2]
        wanted = np.vstack([car, actors[:count] / 1e6])
        heights = actors[count : 2 * count + 1, 0] / 1e6
        for (x, y, yaw), z in zip(wanted, heights, strict=True):
            off = [math.dist((x, y, z), pose[:3]) for pose in poses]
            nearest = int(np.argmin(off))
            assert off[nearest] < 1e-3
            turn = math.remainder(math.radians(poses[nearest][4]) - yaw, math.tau)
            assert abs(turn) < 1e-5
    live = next(iter(Dataset.open(source).episodes())).streams["gray"].astype(float)
    for number, frame in enumerate(frames):
        off = np.abs(live - frame).mean(axis=(1, 2, 3))
        assert off.argmin() == number
        assert off[number] < 1.0
    until(lambda: is_clean(town))
    until(lambda: list(town.record()["poses"][-1][2].values()) == [0])
    assert town.record()["problems"] == []


def test_store_render_makes_streams_and_continues_after_a_kill(source, town, tmp_path):
    new = tmp_path / "new"
    argv = [sys.executable, "-m", "avtd3.cli", "store", "render", str(source), str(new), "--json"]
    argv += ["--camera", "rgb=kind=rgb,height=16,width=20", "--camera", "way=", "--weather=night"]
    argv += ["--host", "127.0.0.1", "--port", str(town.port)]
    argv += ["--set", "collect.carla.timeout_s=20", "--set", "collect.carla.sensor_timeout_s=20"]
    argv += ["--set", "collect.carla.step_timeout_s=60"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or any(new.glob("segments/*/MANIFEST.json")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["segments"] + report["already_there"] == 3
    assert report["already_there"] >= 1
    for old, drawn in zip(
        Dataset.open(source).episodes(), Dataset.open(new).episodes(), strict=True
    ):
        assert drawn.streams["rgb"].shape == (STEPS + 1, 3, 16, 20)
        np.testing.assert_array_equal(drawn.streams["way"], old.streams["way"])
        assert drawn.actions.tobytes() == old.actions.tobytes()
        assert drawn.attributes["weather"] == "night"
        assert drawn.world_record is not None
        assert drawn.world_record.setup["weather"]["values"]["sun_altitude_angle"] < 0.0
    until(lambda: is_clean(town))
    assert check_pictures(new).differing == 0, "the views from above"


def test_views_from_above_need_no_server(source, tmp_path):
    nowhere = settings(type("Nowhere", (), {"port": 1}))
    changes = SceneChanges(streams={"way": {}, "small": {"kind": "bev", "height": 20}})
    report = rerender(source, tmp_path / "new", changes, servers=nowhere)
    assert (report.frames, report.problems) == (2 * 3 * (STEPS + 1), ())
    for old, new in zip(
        Dataset.open(source).episodes(), Dataset.open(tmp_path / "new").episodes(), strict=True
    ):
        np.testing.assert_array_equal(new.streams["way"], old.streams["way"])
        assert new.streams["way"][:, 3:5].any(), "vehicles"
        assert new.streams["way"][:, 5].any(), "the route"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"town": "AvTown02"}, "is not the one that was driven on"),
        ({"town": "Town99"}, "is not a map of CARLA server"),
        ({"car": Body("vehicle.no.such", "", 4.0, 2.0, 1.5, 0.0)}, "no blueprint vehicle.no.such"),
        ({"lights": [[30.0, 1.75, 0.0], [0.0, 0.0, 9.0]]}, "no traffic light at"),
    ],
)
def test_another_server_is_refused_and_left_as_it_was(source, town, changes, message):
    scene, record = first(source)
    renderer = CarlaRenderer(source, settings(town), town.port)
    with pytest.raises(ConfigError, match=message):
        list(renderer.frames(scene._replace(**changes), record))
    renderer.close()
    until(lambda: is_clean(town))


def test_a_lost_client_is_replaced_and_a_lost_server_reported(source, carla_server):
    scene, record = first(source)
    carla_server.fault(lights=[[30.0, 1.75, 0.0]])
    config = settings(carla_server, connect_timeout_s=1.0)
    renderer = CarlaRenderer(source, config, carla_server.port)
    frames = renderer.frames(scene, record)
    next(frames)
    assert renderer._client.pid is not None
    os.kill(renderer._client.pid, signal.SIGKILL)
    assert len(list(frames)) == STEPS
    renderer.close()
    carla_server.kill()
    renderer = CarlaRenderer(source, config, carla_server.port)
    with pytest.raises(WorldLost, match="no CARLA server at"):
        list(renderer.frames(scene, record))
    renderer.close()


def test_a_lost_world_keeps_its_record(town):
    with world_on(town) as world:
        world.reset(LOOP, 1)
        drive(world, 3)
        assert world.client.pid is not None
        os.kill(world.client.pid, signal.SIGKILL)
        with pytest.raises(WorldLost):
            drive(world, 1)
        assert world.world_record().ego.shape == (4, 3)


def test_the_origin_of_an_actor_is_behind_its_middle():
    pose, tilt = np.array([10.0, -3.0, 0.7]), np.array([1.5, 0.02, -0.01])
    found = origin_of(pose, tilt, 0.3)
    velocity = carla.Vector3D()
    actor = type("A", (), {"get_transform": lambda _: found, "get_velocity": lambda _: velocity})
    place = pose_of(actor(), 0.3).place
    np.testing.assert_allclose(place, [*pose, *tilt], atol=1e-6)
    x, y, z = (getattr(origin_of(np.array([1e7, 1e7, 0.0]), tilt, 0.0).location, k) for k in "xyz")
    assert (x, y, z) == (0.0, 0.0, -500.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("period_s", 9.0),
        ("period_s", 10**400),
        ("car", {"kind": "vehicle.a"}),
        ("weather", {"name": "x", "values": {"cloudiness": "much"}, "has_lamps": True}),
        ("weather", {"name": "x", "values": {"cloudiness": 1e300}, "has_lamps": True}),
        ("actors", [{"tilt_of": 0}]),
        ("camera", {"height": -1}),
        ("route", [[1]]),
    ],
)
def test_impossible_setups_are_refused(source, key, value):
    scene, _ = first(source)
    setup = {**scene.setup(), key: value}
    with pytest.raises(SpecError, match="the state cannot be drawn"):
        CarlaScene.parse(setup)
