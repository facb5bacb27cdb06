import dataclasses
import math

import numpy as np
import pytest

from avtd3.collect.maps.raster import PAINT, Raster
from avtd3.collect.maps.weather import WEATHER_GROUPS, WEATHERS, Weather, draw_weather
from avtd3.collect.sim.boxes import Box
from avtd3.collect.sim.camera import Camera, CameraConfig
from avtd3.store.errors import ConfigError
from avtd3.store.format.codec import FrameCodec
from avtd3.tests.collect.maps.road_networks import straight_network
from avtd3.tests.collect.plain import STEADY

PLAIN = Weather(
    name="plain",
    grip=1.0,
    light=1.0,
    contrast=1.0,
    sky_top=0.5,
    sky_horizon=0.9,
    fog_per_m=0.0,
    headlights=0.0,
    noise=0.0,
)
AHEAD = Box(12.0, 0.0, 0.0, 4.5, 1.8, 1.5, 1.0)


@pytest.fixture(scope="module")
def raster():
    return Raster.paint(straight_network(middle="solid"), 0.1)


def begun(raster, config=STEADY, weather=PLAIN, seed=0):
    camera = Camera(config)
    camera.reset(raster, weather, np.random.default_rng(seed))
    return camera


def test_frame_has_the_configured_shape_and_is_new_every_time(raster):
    camera = begun(raster, dataclasses.replace(STEADY, height=40, width=60))
    frame = camera.render(50.0, 1.75, 0.0, [])
    assert (frame.shape, frame.dtype) == ((1, 40, 60), np.uint8)
    assert camera.render(50.0, 1.75, 0.0, []) is not frame


@pytest.mark.parametrize("fine", [2, 3])
@pytest.mark.parametrize("yaw", [0.0, 0.1, -0.2])
def test_lines_appear_where_they_project(raster, fine, yaw):
    # An independent projection of the solid lines at y = 0 and y = 3.5, seen from y = 1.75.
    camera = begun(raster, dataclasses.replace(STEADY, supersample=fine))
    frame = camera.render(100.0, 1.75, yaw, [])[0]
    config = camera.config
    focal = config.width / 2.0 / math.tan(math.radians(config.field_of_view_deg / 2.0))
    pitch = math.radians(config.pitch_deg)
    seen, asphalt = 0, np.median(frame[-4:])
    for line_y in (0.0, 3.5):
        for x in np.arange(105.0, 114.0, 0.5):
            forward = (x - 100.0) * math.cos(yaw) + (line_y - 1.75) * math.sin(yaw)
            right = (line_y - 1.75) * math.cos(yaw) - (x - 100.0) * math.sin(yaw)
            forward -= config.forward_m
            depth = forward * math.cos(pitch) + config.height_m * math.sin(pitch)
            down = config.height_m * math.cos(pitch) - forward * math.sin(pitch)
            column = int(config.width / 2 + focal * right / depth)
            row = int(config.height / 2 + focal * down / depth)
            if 1 <= column < config.width - 1 and 0 <= row < config.height:
                seen += 1
                assert frame[row, column - 1 : column + 2].max() > asphalt + 20
    assert seen > 10


def test_the_ground_moves_by_whole_pixels_with_the_car(raster):
    # The texture repeats after 51.2 m, so the picture of a straight road does, too.
    camera = begun(raster)
    first = camera.render(60.0, 1.75, 0.0, [])
    second = camera.render(60.0 + 51.2, 1.75, 0.0, [])
    assert (first != second).mean() < 0.01


def test_brightness_is_the_mean_of_the_rays(raster):
    # All codes are equally bright: each ground pixel has that brightness.
    camera = begun(raster)
    camera._table = bytes([100] * 256)
    frame = camera.render(60.0, 1.75, 0.3, [])[0]
    assert set(frame[camera._rays.horizon :].ravel().tolist()) == {100}


def test_sky_grows_brighter_towards_the_horizon(raster):
    camera = begun(raster)
    sky = camera.render(60.0, 1.75, 0.0, [])[0, : camera._rays.horizon].mean(axis=1)
    assert (np.diff(sky) >= 0).all()
    assert sky[-1] > sky[0] + 20


def test_horizon_follows_the_pitch(raster):
    level = begun(raster, dataclasses.replace(STEADY, pitch_deg=0.0))
    assert level._rays.horizon == 42
    tilted = begun(raster, dataclasses.replace(STEADY, pitch_deg=6.0))
    assert tilted._rays.horizon == pytest.approx(42 - 42 * math.tan(math.radians(6.0)), abs=1.0)


def changed(raster, boxes, **weather):
    camera = begun(raster, weather=dataclasses.replace(PLAIN, **weather))
    empty = camera.render(60.0, 1.75, 0.0, [])[0].astype(int)
    return camera.render(60.0, 1.75, 0.0, boxes)[0].astype(int) - empty


def test_a_vehicle_ahead_covers_the_pixels_of_its_end(raster):
    rows, columns = np.nonzero(changed(raster, [AHEAD]))
    focal, ahead = 42.0, 12.0 - 4.5 / 2 - STEADY.forward_m
    assert columns.max() - columns.min() + 1 == pytest.approx(focal * 1.8 / ahead, abs=1.5)
    assert rows.max() - rows.min() + 1 == pytest.approx(focal * 1.5 / ahead, abs=1.5)
    assert columns.mean() == pytest.approx(41.5, abs=0.6)


def test_a_vehicle_to_the_right_is_drawn_on_the_right_and_larger_when_near(raster):
    right = np.nonzero(changed(raster, [AHEAD._replace(right_m=3.5)]))[1]
    assert right.min() > 42
    far = (changed(raster, [AHEAD._replace(forward_m=40.0)]) != 0).sum()
    near = (changed(raster, [AHEAD._replace(forward_m=8.0)]) != 0).sum()
    assert 2 <= far < near / 10


def test_nearer_vehicles_hide_farther_ones(raster):
    dark, bright = AHEAD._replace(reflectance=0.1), AHEAD._replace(forward_m=18.0)
    both = changed(raster, [dark, bright])
    np.testing.assert_array_equal(both, changed(raster, [bright, dark]))
    assert both.max() < 60  # the bright one behind is hardly visible


@pytest.mark.parametrize("forward", [-3.0, -1.0, 0.0, 1.5, 3.0, 6.0])
@pytest.mark.parametrize("yaw", [0.0, 0.8, 1.6, 3.1])
def test_vehicles_beside_the_car_are_cut_at_the_camera(raster, forward, yaw):
    seen = changed(raster, [Box(forward, 2.6, yaw, 4.6, 1.8, 1.5, 0.9)])
    assert not seen[:, :30].any()
    if forward > 2.0:
        assert seen[:, 60:].any()


def test_vehicles_behind_the_camera_are_not_drawn(raster):
    assert not changed(raster, [AHEAD._replace(forward_m=-6.0)]).any()


def test_lamps_shine_at_night(raster):
    night = {"light": 0.1, "headlights": 0.8, "sky_horizon": 0.05, "sky_top": 0.01}
    oncoming = AHEAD._replace(yaw_rad=math.pi, forward_m=25.0, right_m=-3.5, reflectance=0.3)
    lit = changed(raster, [oncoming], **night)
    assert (lit > 150).sum() >= 2
    assert (changed(raster, [oncoming]) > 150).sum() == 0


def test_headlights_fall_off_with_distance_and_to_the_sides(raster):
    night = dataclasses.replace(PLAIN, light=0.1, headlights=0.8)
    factor = begun(raster, weather=night).light.factor
    assert (np.diff(factor[:, 42]) > 0).all()  # rows run from the horizon towards the car
    assert factor[-10, 42] > 1.4 * factor[-10, 0]
    assert factor[2, 42] < 0.6 * factor[-1, 42]


def test_fog_hides_what_is_far_and_keeps_what_is_near(raster):
    foggy = dataclasses.replace(PLAIN, fog_per_m=0.05)
    camera, clear = begun(raster, weather=foggy), begun(raster)
    light = camera.light
    assert light.summand[2].mean() > 0.7 * 0.9 * 255
    assert light.factor[-1].mean() > 0.7 * clear.light.factor[-1].mean()


def deviation(camera):
    frames = [camera.render(60.0, 1.75, 0.0, [])[0].astype(float) for _ in range(30)]
    return np.std(frames, axis=0).mean()


def test_noise_has_the_asked_deviation_and_differs_between_frames(raster):
    weather = dataclasses.replace(PLAIN, noise=2.0)
    config = dataclasses.replace(STEADY, noise=3.0, noisy_share=1.0)
    found = [deviation(begun(raster, config, weather, seed)) for seed in range(12)]
    assert 2.0 <= min(found) < 3.0
    assert 5.0 < max(found) < 6.4


def test_half_of_the_sensors_are_clean(raster):
    weather = dataclasses.replace(PLAIN, noise=1.0)
    cameras = [begun(raster, CameraConfig(), weather, seed) for seed in range(20)]
    clean = sum(deviation(camera) == 0.0 for camera in cameras)
    assert 5 <= clean <= 15


def test_pictures_of_clean_sensors_compress(raster):
    camera = begun(raster, dataclasses.replace(STEADY, noisy_share=0.0))
    frames = [camera.render(60.0 + 0.4 * step, 1.75, 0.02, []) for step in range(4)]
    assert len(FrameCodec().encode(np.stack(frames))) < 0.5 * 4 * 84 * 84


def test_no_ray_leaves_the_window_before_it_follows_the_car(raster):
    # A gather fails beyond the last row. The first row of this picture is almost horizontal, and
    # its outer rays reach farthest.
    camera = begun(raster, dataclasses.replace(STEADY, pitch_deg=5.19))
    assert camera._rays.ahead_m[0] > 500.0
    for y in np.arange(0.0, 40.0, 0.2):
        for side in (-1.0, 1.0):
            for turn in np.radians((43.0, 45.0, 47.0)):
                camera.render(50.0, y, math.pi / 2 + side * turn, [])


def test_near_rows_have_one_ray_across_and_far_ones_all(raster):
    count = begun(raster)._rays.count[:, 0]
    reach = 1.6 / (np.arange(84)[-len(count) :] + 0.5 - 42.0 + 4.4) * 42.0  # to within the pitch
    assert set(count[reach > 5.0]) == {4.0}
    assert set(count[reach < 3.5]) == {2.0}


def test_same_seed_gives_the_same_pictures_whatever_came_before(raster):
    config = CameraConfig()
    fresh, used = Camera(config), Camera(config)
    used.reset(raster, PLAIN, np.random.default_rng(9))
    used.render(150.0, 0.0, 2.0, [AHEAD])
    pictures = []
    for camera in (fresh, used):
        rng = np.random.default_rng(4)
        camera.reset(raster, draw_weather("random", rng), rng)
        pictures.append([camera.render(x, 1.75, 0.1, [AHEAD]) for x in (20.0, 21.0, 60.0)])
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_mountings_differ_between_episodes(raster):
    views = [begun(raster, CameraConfig(), seed=seed).view for seed in range(20)]
    heights = [view.height_m for view in views]
    assert 1.5 <= min(heights) < 1.55 < 1.65 < max(heights) <= 1.7
    assert len({view.sin_pitch for view in views}) == 20


def test_paint_stands_out_in_every_weather(raster):
    for name in WEATHERS:
        for seed in range(5):
            rng = np.random.default_rng(seed)
            weather = draw_weather(name, rng)
            camera = Camera(CameraConfig())
            camera.reset(raster, weather, rng)
            table = np.frombuffer(camera._table, np.uint8).reshape(16, 16)
            assert table[PAINT].min() > table[3].max() + 30
            frame = camera.render(60.0, 1.75, 0.0, [])[0].astype(int)
            assert np.ptp(frame[70:]) > 12


def test_groups_draw_all_their_weathers_and_unknown_ones_are_errors():
    rng = np.random.default_rng(0)
    for group, members in WEATHER_GROUPS.items():
        assert {draw_weather(group, rng).name for _ in range(80)} == set(members)
    with pytest.raises(ConfigError, match=r"'hail'.*clear.*random"):
        draw_weather("hail", rng)


@pytest.mark.parametrize(
    "values", [{"height": 4}, {"supersample": 0}, {"pitch_deg": 80.0}, {"height_m": 0.05}]
)
def test_impossible_cameras_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        CameraConfig(**values)
