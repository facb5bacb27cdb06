"""The built-in simulator as a Gymnasium environment, with the real libraries on the other side."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.env_util import make_vec_env

from avtd3.collect.gym_road import NETWORKS
from avtd3.store.errors import ConfigError

MODULE = "avtd3.collect.gym_road:"
NAMES = [f"avtd3/{name}{suffix}-v0" for name in NETWORKS for suffix in ("", "Vision")]
SHORT: dict[str, Any] = {
    "networks": ("country",),
    "npcs": 0,
    "route_length_m": 60.0,
    "time_limit_s": 2.0,
}


def make(name="avtd3/Country-v0", **options):
    return gymnasium.make(f"{MODULE}{name}", **{"npcs": 0, "route_length_m": 60.0} | options)


@pytest.mark.filterwarnings("ignore:.*alternative render:UserWarning")
def test_gymnasium_accepts_it():
    env = make(render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_and_sb3_accept_each(name):
    env = make(name, render_mode="rgb_array", npcs=3)
    check_env(env.unwrapped)
    check_env_of_sb3(env.unwrapped)
    env.close()


def test_sb3_accepts_it():
    env = make("avtd3/CountryVision-v0")
    check_env_of_sb3(env)
    assert env.observation_space["vector"].shape == (1,)


def drive(env, seed, steps=15):
    observation, info = env.reset(seed=seed)
    rng, seen = np.random.default_rng(0), [observation]
    seen += [env.step(rng.uniform(-1.0, 1.0, 2).astype(np.float32))[0] for _ in range(steps)]
    return info, [{key: value.tobytes() for key, value in part.items()} for part in seen]


def test_a_seed_gives_the_same_episode_and_held_out_roads_are_others():
    env, held_out = make(), make(held_out=True)
    (first, seen), (second, again) = drive(env, 3), drive(env, 3)
    assert (first, seen) == (second, again)
    assert env.reset()[1]["seed"] != first["seed"]
    assert first["seed"] % 2 == 0
    assert drive(held_out, 3, steps=1)[0]["seed"] % 2 == 1


def test_frames_are_stacked_with_the_oldest_first():
    env = make(stack=3)
    first = env.reset(seed=0)[0]["image"]
    np.testing.assert_array_equal(first[..., 0], first[..., 2])
    second = env.step(np.ones(2, np.float32))[0]["image"]
    np.testing.assert_array_equal(second[..., :2], first[..., 1:])
    assert (second[..., 2] != second[..., 1]).any()


def test_the_end_says_why_and_how_it_went():
    env = make(time_limit_s=1.0, render_mode="rgb_array")
    env.reset(seed=0)
    for number in range(20):
        *_, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert truncated == (number == 19)
    assert not terminated
    assert info["end_reason"] == "time_limit"
    assert info["is_success"] is False
    assert 0.0 <= info["route_completion"] <= 1.0
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_it_vectorises():
    envs = gymnasium.make_vec(f"{MODULE}avtd3/Country-v0", 2, vectorization_mode="sync", **SHORT)
    observation, _ = envs.reset(seed=0)
    assert observation["image"].shape == (2, 84, 84, 4)
    for _ in range(45):  # beyond the end of an episode
        observation, reward, *_ = envs.step(envs.action_space.sample())
    assert reward.shape == (2,)
    envs.close()


@pytest.mark.slow
def test_it_vectorises_in_processes():
    envs = gymnasium.make_vec(f"{MODULE}avtd3/Country-v0", 2, vectorization_mode="async", **SHORT)
    first, _ = envs.reset(seed=0)
    again, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(first["image"], again["image"])
    envs.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"render_mode": "human"}, "render_mode"),
        ({"pedestrians": 3}, "pedestrians"),
        ({"networks": ()}, "network_kinds is empty"),
        ({"npcs": -1}, "npcs is -1, expected 0 to 1000"),
    ],
)
def test_wrong_options_are_one_error(options, says):
    from avtd3.collect.gym_road import RoadEnv

    with pytest.raises(ConfigError, match=says):
        RoadEnv(**options)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [TD3, SAC])
def test_sb3_trains_on_it(algorithm):
    envs = make_vec_env(f"{MODULE}avtd3/Country-v0", 1, seed=0, env_kwargs=SHORT)
    model = algorithm(
        "MultiInputPolicy", envs, buffer_size=200, learning_starts=20, batch_size=16, seed=0
    )
    before = [p.detach().clone() for p in model.actor.parameters()]
    model.learn(60)
    changed = [bool((a != b).any()) for a, b in zip(before, model.actor.parameters(), strict=True)]
    assert any(changed)
    action, _ = model.predict(envs.reset(), deterministic=True)
    assert action.shape == (1, 2)
