"""Pictures drawn again from states equal the live ones, byte for byte."""

import dataclasses
import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.sim.boxes import visible_boxes
from avtd3.collect.sim.camera import Camera, CameraConfig
from avtd3.collect.sim.scene import (
    Scene,
    SceneChanges,
    SceneRenderer,
    pose_steps,
)
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.world_record import ANGLE_STEPS_PER_RAD, POSITION_STEPS_PER_M, publish_map

pytestmark = pytest.mark.usefixtures("maps_without_own_process")

WEATHERS = ("clear", "overcast", "rain", "fog", "dusk", "night")


def drive(world, number, seed, steps, **changes):
    """The pictures of an episode that wanders, and its record as it is read from a dataset."""
    rng = np.random.default_rng(seed)
    start = world.reset(scenario(number, **changes), seed)
    frames = [start.frame.image]
    steer = 0.0
    for _ in range(steps):
        steer = float(np.clip(0.9 * steer + rng.normal(0.0, 0.05), -1.0, 1.0))
        frames.append(world.step(np.array([steer, 0.4], np.float32)).image)
    record = world.world_record()
    return frames, dataclasses.replace(record, setup=json.loads(json.dumps(record.setup)))


def redraw(folder, record, changes=None, seed=0):
    scene = Scene.parse(record.setup)
    scene = scene if changes is None else scene.changed(changes, seed)
    return [drawn["image"] for drawn in SceneRenderer(folder).frames(scene, record)]


@pytest.fixture(scope="module")
def world():
    return RoadWorld()


@pytest.fixture(scope="module")
def episode(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    frames, record = drive(world, 0, 8, 30, networks=1)
    publish_map(folder, record.map_text)
    return folder, frames, record


def test_two_thousand_pictures_are_drawn_again_without_a_differing_byte(world, tmp_path):
    count = 0
    renderer = SceneRenderer(tmp_path)
    for n, weather in enumerate((*WEATHERS, "random")):
        # Mixed and empty roads, towns, dense traffic.
        number = (0, 1, 2, 4)[n % 4]
        frames, record = drive(world, number, 2 * n, 299, weather=weather, networks=1)
        publish_map(tmp_path, record.map_text)
        drawn = renderer.frames(Scene.parse(record.setup), record)
        for live, again in zip(frames, drawn, strict=True):
            assert live.tobytes() == again["image"].tobytes()
            count += 1
    assert count >= 2000


def test_a_wide_camera_sees_the_vehicles_beside_it(tmp_path):
    camera = CameraConfig(field_of_view_deg=140.0, height=32, width=48)
    wide = RoadWorld(RoadConfig(camera=camera))
    frames, record = drive(wide, 4, 0, 40, networks=1)
    publish_map(tmp_path, record.map_text)
    assert [f.tobytes() for f in redraw(tmp_path, record)] == [f.tobytes() for f in frames]
    aside = pose_steps(np.array([5.0 + 12.0j]), np.array([1.0 + 0.0j])).tolist()
    shapes = [(4.5, 1.8, 1.5, 0.5)]
    here = (0.0, 0.0, 0.0)
    assert visible_boxes(here, aside, shapes, [0], Camera(camera).slope)
    assert not visible_boxes(here, aside, shapes, [0], Camera(CameraConfig()).slope)


def test_the_live_picture_does_not_depend_on_the_record(world):
    first, _ = drive(world, 4, 6, 20, networks=1)
    for _ in range(2):
        again, record = drive(world, 4, 6, 20, networks=1)
        assert [f.tobytes() for f in again] == [f.tobytes() for f in first]
    assert len(record.ego) == 21


@hypothesis.given(
    st.complex_numbers(max_magnitude=1e7, allow_nan=False), st.floats(-math.pi, math.pi)
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_poses_are_rounded_to_the_nearest_step(at, yaw):
    steps = pose_steps(np.array([at]), np.array([complex(math.cos(yaw), math.sin(yaw))]))
    ((x, y, angle),) = steps.tolist()
    assert abs(x / POSITION_STEPS_PER_M - at.real) <= 0.51 / POSITION_STEPS_PER_M
    assert abs(y / POSITION_STEPS_PER_M - at.imag) <= 0.51 / POSITION_STEPS_PER_M
    turn = math.remainder(angle / ANGLE_STEPS_PER_RAD - yaw, math.tau)
    assert abs(turn) <= 0.51 / ANGLE_STEPS_PER_RAD


@hypothesis.given(
    st.lists(st.tuples(*[st.integers(-(10**8), 10**8)] * 3), max_size=8),
    st.tuples(st.floats(-500, 500), st.floats(-500, 500), st.floats(-3.2, 3.2)),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_any_choice_of_candidates_that_holds_the_near_ones_gives_the_same_boxes(poses, car):
    shapes = [(4.5, 1.8, 1.5, 0.5)] * len(poses)
    every = visible_boxes(car, poses, shapes, range(len(poses)), 1.2)
    near = [
        n
        for n, (x, y, _) in enumerate(poses)
        if math.hypot(x / POSITION_STEPS_PER_M - car[0], y / POSITION_STEPS_PER_M - car[1]) < 80.0
    ]
    assert visible_boxes(car, poses, shapes, near, 1.2) == every


def test_changes_of_the_camera_change_the_pictures_alone(episode):
    folder, frames, record = episode
    drawn = redraw(folder, record, SceneChanges(camera={"height": 40, "width": 64}))
    assert [frame.shape for frame in drawn] == [(1, 40, 64)] * len(frames)
    scene = Scene.parse(record.setup)
    changed = scene.changed(SceneChanges(camera={"forward_m": 0.0}), 8)
    mounting, before = changed.setup()["mounting"], scene.setup()["mounting"]
    assert mounting == before | {"forward_m": 0.0}
    assert changed._replace(camera=scene.camera) == scene


def test_another_weather_is_the_same_for_the_same_seed(episode):
    folder, frames, record = episode
    night = SceneChanges(weather="night")
    one, two, other = (redraw(folder, record, night, seed) for seed in (3, 3, -4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.mean(one) < 0.5 * np.mean(frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": {"wdth": 3}}, "camera has no 'wdth', expected one of: height, width"),
        ({"camera": {"width": 9.5}}, "camera.width is 9.5, expected a whole number"),
        ({"camera": {"width": 4}}, "camera.width"),
        ({"camera": {"width": 10**400}}, "camera.width"),
        ({"camera": {"noise": True}}, "camera.noise is True, expected 1.5 or the like"),
        ({"camera": {"noise": None}}, "camera.noise is None, expected 1.5 or the like"),
        ({"streams": {"front": {"kind": [1]}}}, "camera.kind is .*, expected 'gray' or the like"),
        ({"weather": "snow"}, "weather is 'snow'"),
    ],
)
def test_changes_that_are_impossible_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SceneChanges(**changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("world", "carla"),
        ("camera", {"lens": 2}),
        ("camera", {"height": 10**9}),
        ("weather", {"name": 3}),
        ("weather", None),
        ("random", {}),
        ("random", {"state": "zz", "inc": "1", "has_uint32": 0, "uinteger": 0}),
        ("pixel_m", 0.0),
        ("pixel_m", "0.1"),
        ("actors", [[1.0]]),
        ("actors", [["a", 1, 1, 1]]),
        ("actors", [[math.inf, 1, 1, 1]]),
        ("actors", [[10**400, 1, 1, 1]]),
        ("weather", {"name": "clear", "light": 1e300}),
        ("random", {"state": "-1", "inc": "1", "has_uint32": 0, "uinteger": 0}),
        ("random", {"state": "1", "inc": "1", "has_uint32": 0, "uinteger": 10**400}),
        ("camera", {"height_m": 1e308}),
        ("camera", {"height": 10**400}),
        ("route", [[0, 2**39], [0, 0]]),
        ("route", [[2**39] * 500, [0] * 500]),
    ],
)
def test_a_setup_that_cannot_be_drawn_is_one_error(episode, key, value):
    _, _, record = episode
    with pytest.raises(SpecError, match="the state"):
        Scene.parse({**record.setup, key: value})
