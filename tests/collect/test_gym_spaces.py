import numpy as np
import pytest

pytest.importorskip("gymnasium")

from gymnasium import spaces

from avtd3.collect.gym_env import ObservationReader, read_bounds
from avtd3.store.errors import ConfigError, WorldError
from avtd3.tests.collect import tiny_envs


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), "expected a one-dimensional Box"),
        (spaces.Box(0.0, 1.0, (3, 4)), "expected a one-dimensional Box"),
        (spaces.Box(0, 255, (3,), np.uint8), "expected a one-dimensional Box"),
        (spaces.Dict({}), "or a Dict of these"),
        (spaces.Box(0.0, 1.0, (5000,)), "at most 4096"),
    ],
)
def test_observations_that_cannot_be_stored_are_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        ObservationReader(space, 1, "gym:Odd-v0")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "finite bounds; wrap it"),
        (spaces.MultiBinary(2), "Box of floats"),
        (spaces.Box(0, 3, (2,), np.int64), "Box of floats"),
    ],
)
def test_actions_that_cannot_be_learned_are_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        read_bounds(space, "gym:Odd-v0")


def test_values_outside_their_space_are_reported():
    reader = ObservationReader(tiny_envs.TinyImage.observation_space, 1, "gym:Odd-v0")
    with pytest.raises(WorldError, match=r"an image float64 \(40, 44, 3\), expected uint8 \(3, 40"):
        reader.read(np.zeros((40, 44, 3)))
    reader = ObservationReader(spaces.Box(-1.0, 1.0, (2,)), 1, "gym:Odd-v0")
    for odd in (
        np.zeros(3),
        np.zeros((2, 1)),
        np.float32(1.0),
        "text",
        [np.inf, 0.0],
        [1e300, 0.0],
    ):
        with pytest.raises(WorldError, match="expected 2 finite numbers"):
            reader.read(odd)


@pytest.mark.parametrize("odd", [np.zeros(3), {"pose": np.zeros(1)}], ids=["array", "dict"])
def test_a_dict_that_lacks_parts_is_refused(odd):
    reader = ObservationReader(tiny_envs.TinyDict.observation_space, 1, "gym:Odd-v0")
    with pytest.raises(WorldError, match=r"a dict of .*'clock', 'pose'"):
        reader.read(odd)
