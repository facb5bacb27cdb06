"""Each semantic check: silent on clean arrays, and reports its fault by name when it is planted."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from avtd3.store.audit.checks import (
    FRAME_CHECKS,
    SEGMENT_CHECKS,
    CheckLimits,
    check_values,
    episode_bounds,
)
from avtd3.store.audit.findings import CHECKS
from avtd3.store.audit.segment_data import BLOCK_BYTES, FrameFeatures, SegmentData, scan_frames
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.tests.store.segments import episode_table

LIMITS = CheckLimits(black_level=2.0, frozen_frames=5, stutter_share=1.0)
LENGTHS = (3, 12, 7)
SPEC = EpisodeSpec(
    image=ImageSpec(height=4, width=4, stack=2),
    vector_names=("lateral_m", "speed_mps"),
    vector_scales=(2.0, 10.0),
    action_names=("steer", "throttle"),
    action_low=(-1.0, 0.0),
    action_high=(1.0, 1.0),
    reward_terms=("progress", "comfort"),
    control_period_s=0.05,
)


def make_table(lengths=LENGTHS, **columns):
    length = np.array(lengths, np.int64)
    episodes = len(lengths)
    values = {
        "offset": np.cumsum(length) - length,
        "length": length,
        "index": np.arange(episodes),
        "seed": np.arange(episodes),
        **{name: ["x"] * episodes for name in ("world", "town", "weather", "driver")},
        "end_reason": ["goal"] * episodes,
    }
    return episode_table(**{**values, **columns})


@pytest.fixture
def data():
    """Three clean episodes of a car that moves."""
    rng = np.random.default_rng(0)
    steps, observations = sum(LENGTHS), sum(LENGTHS) + len(LENGTHS)
    terms = rng.normal(size=(steps, 2)).astype(np.float32)
    reward = terms.astype(np.float64).sum(axis=1).astype(np.float32)
    table = make_table()
    terminated, truncated = np.zeros(steps, bool), np.zeros(steps, bool)
    last = table.offset + table.length - 1
    terminated[last[:2]] = True
    truncated[last[2]] = True
    within = np.concatenate([np.arange(length + 1) for length in LENGTHS])
    returns = np.add.reduceat(reward.astype(np.float64), table.offset)
    return SegmentData(
        spec=SPEC,
        vector=np.linspace(0.5, 0.6, 2 * observations, dtype=np.float32).reshape(-1, 2),
        streams={
            "image": FrameFeatures(
                mean=np.full(observations, 90.0, np.float32),
                spread=np.full(observations, 200, np.uint8),
                repeated=np.zeros(observations, bool),
            )
        },
        frame_id=100 + 2 * np.arange(observations),
        sim_time=1e6 + 0.05 * within,
        action=rng.uniform(0.0, 1.0, (steps, 2)).astype(np.float32),
        reward=reward,
        reward_terms=terms,
        terminated=terminated,
        truncated=truncated,
        episodes=dataclasses.replace(table, episode_return=returns),
    )


def faults_of(data, spec=SPEC):
    return list(check_values(dataclasses.replace(data, spec=spec), LIMITS))


def test_clean_arrays_have_no_faults(data):
    assert faults_of(data) == []


def set_at(name, row, value):
    def plant(data):
        getattr(data, name)[row] = value

    return plant


def set_episode(name, row, value):
    def plant(data):
        getattr(data.episodes, name)[row] = value

    return plant


def set_feature(name, row, value):
    def plant(data):
        getattr(data.streams["image"], name)[row] = value

    return plant


def move_reward(data):
    """A reward off its terms, with the return moved along."""
    data.reward[5] += 1.0
    data.episodes.episode_return[1] += 1.0


def lose_frames(data):
    data.frame_id[9:17] += 2


def repeat_frame_number(data):
    data.frame_id[9] = data.frame_id[8]


def freeze(data):
    data.streams["image"].repeated[7:11] = True  # 4 repetitions: 5 equal frames


# Episode 1 has steps 3..14 and observations 4..16.
FAULTS = {
    "step-after-end": (set_at("terminated", 7, True), 1, "step 4 "),
    "end-unmarked": (set_at("terminated", 14, False), 1, "last step 11 "),
    "end-twice": (set_at("truncated", 14, True), 1, "step 11 "),
    "not-finite": (set_at("vector", (5, 0), np.nan), 1, "first 1;"),
    "action-bounds": (set_at("action", (4, 1), -0.1), 1, "throttle is -0.1 at step 1,"),
    "reward-sum": (move_reward, 1, "at step 2,"),
    "return-sum": (set_episode("episode_return", 1, 1e4), 1, "return 10000,"),
    "frame-order": (repeat_frame_number, 1, "at observation 5,"),
    "frame-gap": (lose_frames, 1, "at observation 5,"),
    "sim-time": (set_at("sim_time", slice(10, 17), 7.0), 1, "observation 6,"),
    "policy-digest": (set_episode("policy_version", 1, 4), 1, "version 4 "),
    "black-frames": (set_feature("mean", 6, 1.0), 1, "1 of 13 frames, first at observation 2"),
    "uniform-frames": (set_feature("spread", 6, 1), 1, "1 of 13 frames, first at observation 2"),
    "frozen-frames": (freeze, 1, "5 equal frames from observation 2 while the car moves"),
}


@pytest.mark.parametrize("check", FAULTS)
def test_planted_fault_is_reported(data, check):
    plant, episode, says = FAULTS[check]
    plant(data)
    reported = [fault for fault in faults_of(data) if fault.check == check]
    assert [fault.episode for fault in reported] == [episode]
    assert says in reported[0].message


@pytest.mark.parametrize("check", [c for c in FAULTS if c not in ("frame-order", "sim-time")])
def test_planted_fault_is_the_only_one(data, check):
    FAULTS[check][0](data)
    assert {fault.check for fault in faults_of(data)} == {check}


def test_every_fault_has_its_entry_in_the_catalogue():
    assert FAULTS.keys() <= CHECKS.keys()
    names = {check.__name__.replace("_", "-") for check in (*SEGMENT_CHECKS, *FRAME_CHECKS)}
    assert FAULTS.keys() <= names <= CHECKS.keys()


@pytest.mark.parametrize(
    "name",
    ["sim_time", "action", "reward", "reward_terms", "episode_return", "exploration_noise"],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_reported_wherever_they_are(data, name, value):
    owner = data if hasattr(data, name) else data.episodes
    getattr(owner, name)[1] = value
    assert "not-finite" in {fault.check for fault in faults_of(data)}


def test_a_rounded_action_is_within_its_bounds(data):
    data.action[0] = np.float32(1.0) + np.finfo(np.float32).eps
    assert faults_of(data) == []


def test_a_still_picture_of_a_standing_car_is_fine(data):
    freeze(data)
    data.vector[:, 1] = 0.04  # 0.4 m/s
    assert faults_of(data) == []


def test_a_still_picture_without_a_speed_is_reported(data):
    freeze(data)
    spec = dataclasses.replace(SPEC, vector_names=("a", "b"))
    assert [fault.check for fault in faults_of(data, spec)] == ["frozen-frames"]


def test_a_still_picture_does_not_run_over_from_one_episode_to_the_next(data):
    data.streams["image"].repeated[14:20] = True  # 3 equal frames in episode 1 and 3 in episode 2
    assert {fault.check for fault in faults_of(data)} == {"frame-stale"}


def test_a_black_picture_is_reported_once(data):
    data.streams["image"].mean[4:17] = 0.0
    data.streams["image"].spread[4:17] = 0
    data.streams["image"].repeated[5:17] = True
    assert [fault.check for fault in faults_of(data)] == ["black-frames"]


def test_vector_only_data_without_terms_is_checked(data):
    plain = dataclasses.replace(data, streams={}, reward_terms=None)
    assert faults_of(plain, dataclasses.replace(SPEC, image=None, reward_terms=())) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"length": [3, 0, 7]}, "length 0"),
        ({"length": [3, -2, 7]}, "length -2"),
        ({"length": [3, 12, 8]}, "add up to 23, expected the 22 steps"),
        ({"offset": [0, 4, 15]}, "offset 4, expected 3"),
        ({"offset": [1, 3, 15]}, "offset 1, expected 0"),
    ],
)
def test_episodes_that_do_not_tile_are_reported(change, says):
    columns = {"offset": [0, 3, 15], "length": list(LENGTHS), **change}
    arrays = {name: np.array(values) for name, values in columns.items()}
    faults = episode_bounds(**arrays, steps=22, observations=25)
    assert any(says in message for _, message in faults)


def test_observations_are_one_more_than_steps_in_each_episode():
    offset, length = np.array([0, 3]), np.array([3, 4])
    assert not list(episode_bounds(offset, length, steps=7, observations=9))
    assert list(episode_bounds(offset, length, steps=7, observations=8))


def test_frames_are_scanned_in_bounded_blocks_equal_to_the_whole():
    image = ImageSpec(channels=2, height=60, width=50)
    frames = np.random.default_rng(1).integers(0, 256, (700, *image.frame_shape), np.uint8)
    frames[650] = frames[649]
    frames[9] = 7
    largest = 0

    def read(start, stop, out):
        nonlocal largest
        largest = max(largest, out.nbytes)
        out[:] = frames[start:stop]

    features = scan_frames(read, len(frames), image)
    flat = frames.reshape(len(frames), -1)
    np.testing.assert_allclose(features.mean, flat.mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(features.spread, np.ptp(flat, axis=1))
    assert np.flatnonzero(features.repeated).tolist() == [650]
    assert largest <= BLOCK_BYTES < frames.nbytes


def test_frames_equal_across_a_block_border_are_seen():
    image = ImageSpec(height=512, width=512)
    frames = np.random.default_rng(2).integers(0, 256, (40, *image.frame_shape), np.uint8)
    frames[16] = frames[15]

    def read(start, stop, out):
        out[:] = frames[start:stop]

    features = scan_frames(read, len(frames), image)
    assert np.flatnonzero(features.repeated).tolist() == [16]


def test_every_check_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs/audit.md").read_text()
    for name, check in CHECKS.items():
        assert f"| `{name}` | {check.severity} | {check.title} | {check.fix} |" in text
    for field in dataclasses.fields(CheckLimits):
        assert f"`{field.name}`" in text
