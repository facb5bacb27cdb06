import dataclasses
import json
import re
import sys

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from PIL import Image  # noqa: E402 - only where gymnasium is installed

from avtd3.collect.collector import CollectConfig, collect  # noqa: E402
from avtd3.collect.evaluator import EvaluateConfig, evaluate  # noqa: E402
from avtd3.collect.gym_env import GymConfig, open_gym  # noqa: E402
from avtd3.collect.rollout import Rollout  # noqa: E402
from avtd3.store.dataset import Dataset  # noqa: E402
from avtd3.store.errors import ConfigError, WorldError, install_command  # noqa: E402
from avtd3.tests.collect import tiny_envs  # noqa: E402

HERE = tiny_envs.__name__
TINY = f"gym:{HERE}:Tiny-v0"
CONFIG = CollectConfig(world=TINY, driver="random", min_free_mb=0)
COLUMNS = ("vector", "action", "reward", "reward_terms", "terminated", "truncated", "sim_time")


def tiny(name="Tiny", **settings):
    return open_gym(f"{HERE}:{name}-v0", GymConfig(**settings))


def drive(environment, seed=0):
    rollout = Rollout(environment, seed)
    return rollout.start, list(
        rollout.drive(environment.driver("random"), "random", np.random.default_rng(seed))
    )


def columns(path, names=COLUMNS):
    """Every column of a dataset of one segment, and its table of episodes."""
    (segment,) = Dataset.open(path).snapshot().segments
    return {name: segment.read(name) for name in names}, segment.episode_table(), segment


def test_a_vector_environment_is_described_as_it_is():
    environment = tiny()
    spec = environment.spec
    assert spec.image is None
    assert spec.vector_names == ("observation_0", "observation_1")
    assert spec.vector_scales == (1.0, 1.0)
    assert (spec.action_low, spec.action_high) == ((-2.0, 0.0), (2.0, 1.0))
    assert spec.reward_terms == ("reward",)
    assert spec.control_period_s == pytest.approx(0.1)
    assert environment.name == TINY
    assert "gymnasium" in environment.simulator


def test_observations_and_rewards_are_the_environment_s_own():
    environment = tiny()
    start, steps = drive(environment, seed=5)
    env = gymnasium.make(f"{HERE}:Tiny-v0")
    seen, _ = env.reset(seed=5)
    np.testing.assert_array_equal(start.observation.vector, seen.astype(np.float32))
    for step in steps:
        seen, reward, _, _, _ = env.step(step.action)
        np.testing.assert_array_equal(step.observation.vector, seen.astype(np.float32))
        np.testing.assert_array_equal(step.reward_terms, np.array([reward], np.float32))


@pytest.mark.parametrize("name", ["Image", "Gray", "Dict"])
def test_images_become_planes(name):
    environment = tiny(f"Tiny{name}", stack=2)
    assert environment.spec.image is not None
    channels = 1 if name == "Gray" else 3
    assert environment.spec.image.observation_shape == (2 * channels, 40, 44)
    start, steps = drive(environment)
    for seen in (start.observation, steps[0].observation):
        assert seen.image is not None
        assert (seen.image.shape, seen.image.dtype) == ((channels, 40, 44), np.uint8)
    if name != "Gray":
        image = steps[0].observation.image
        assert image is not None
        column = int(image[0].any(axis=0).argmax())
        assert image[:, 7, column].tolist() == [10, 20, 1]


def test_a_dict_is_an_image_and_its_vectors_joined():
    environment = tiny("TinyDict")
    assert environment.spec.vector_names == ("clock_0", "pose_0")
    _, steps = drive(environment)
    assert steps[2].observation.vector is not None
    assert steps[2].observation.vector[0] == 3.0
    assert steps[2].observation.vector.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "settings", "end"),
    [
        ("Tiny", {"time_limit": 2}, (False, True, "time_limit")),
        ("TinyCut", {}, (False, True, "truncated")),
        ("TinyBoth", {}, (True, False, "terminated")),
    ],
)
def test_ends_are_kept_apart(name, settings, end):
    _, steps = drive(tiny(name, **settings), seed=1)
    last = steps[-1]
    assert (last.terminated, last.truncated, last.end_reason) == end
    assert all(not step.end_reason for step in steps[:-1])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    collect(tmp_path / "a", CONFIG, episodes=6)
    collect(tmp_path / "b", CONFIG, episodes=6)
    collect(tmp_path / "c", dataclasses.replace(CONFIG, seed=1), episodes=6)
    (one, table, _), (two, _, _), (other, _, _) = (columns(tmp_path / name) for name in "abc")
    for name in COLUMNS:
        np.testing.assert_array_equal(one[name], two[name])
    assert not np.array_equal(one["action"][:3], other["action"][:3])
    assert set(table.texts("world")) == {TINY}
    assert set(table.texts("driver")) == {"random"}
    assert (one["action"] >= (-2.0, 0.0)).all()
    assert (one["action"] <= (2.0, 1.0)).all()
    assert len(np.unique(one["vector"][table.offset, 0])) == 6  # each starts elsewhere


def test_workers_and_resume_add_up_to_the_same_episodes(tmp_path):
    whole = tmp_path / "whole"
    collect(whole, CONFIG, episodes=5)
    two = dataclasses.replace(CONFIG, workers=2)
    collect(tmp_path / "d", CONFIG, episodes=3)
    collect(tmp_path / "d", two, episodes=5, resume=True)
    found = {}
    for segment in Dataset.open(tmp_path / "d").snapshot().segments:
        table, rows = segment.episode_table(), segment.read("action")
        for index, first, count in zip(table.index, table.offset, table.length, strict=True):
            assert int(index) not in found
            found[int(index)] = rows[first:][:count]
    rows, table, _ = columns(whole)
    for index, first, count in zip(table.index, table.offset, table.length, strict=True):
        np.testing.assert_array_equal(found[int(index)], rows["action"][first:][:count])


def test_what_has_no_car_is_another_plan_without_one(tmp_path):
    document = CONFIG.plan_document()
    assert document["gym"] == {"stack": 4, "time_limit": None}
    assert "road" not in document
    assert "scenario" not in document
    assert "random_steps" not in CollectConfig().plan_document()  # plans of before keep their name


def test_evaluation_reports_returns_and_lengths(tmp_path):
    config = EvaluateConfig(world=TINY, episodes=6)
    report = evaluate("random", config)
    document = report.document()
    assert json.loads(json.dumps(document, allow_nan=False))["world"] == TINY
    returns = [row["episode_return"] for row in document["rows"]]
    assert document["return_mean"] == pytest.approx(np.mean(returns))
    low, high = document["length_interval"]
    assert low <= document["episode_length"] <= high
    assert "success_rate" not in document
    assert "collisions" not in report.summary()
    assert "6 held-out episodes" in report.summary()
    assert evaluate("random", dataclasses.replace(config, workers=2)).scores == report.scores


def test_the_first_episode_can_be_animated(tmp_path):
    evaluate("random", EvaluateConfig(world=TINY, episodes=1), gif=tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.size == (44, 40)


@pytest.mark.parametrize(
    ("world", "driver", "message"),
    [
        ("gym:Nowhere-v7", "random", "Nowhere"),
        ("gym:no.such.module:Tiny-v0", "random", "no.such"),
        ("gym:CartPole-v1", "random", r"Discrete\(2\), expected a Box of floats"),
        (TINY, "expert", "has no driver 'expert'"),
        (TINY, "policy", "--policies"),
    ],
)
def test_what_cannot_be_collected_in_is_one_clear_error(tmp_path, world, driver, message):
    config = dataclasses.replace(CONFIG, world=world, driver=driver)
    with pytest.raises(ConfigError, match=message):
        collect(tmp_path / "d", config, episodes=1)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("world", ["gym:", "gym: ", "gymPendulum-v1", "moon"])
def test_worlds_that_cannot_be_are_refused(world):
    with pytest.raises(ConfigError, match="expected one of: road, carla; or gym:ID"):
        CollectConfig(world=world)


def test_failures_keep_what_was_whole(tmp_path):
    config = dataclasses.replace(CONFIG, world=f"gym:{HERE}:TinyFailing-v0")
    message = r"failed in step\(\) after 2 steps: RuntimeError: the spring is broken"
    with pytest.raises(WorldError, match=message):
        collect(tmp_path / "d", config, episodes=1)
    rows, table, _ = columns(tmp_path / "d")
    assert table.end_reason[0] == "world_error"
    assert rows["truncated"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TinyBroken", r"returned the observation \[nan, 0.0\], expected 2 finite numbers"),
        ("TinyBoundless", r"returned a reward of 1e\+300 at step 1, expected one finite number"),
        ("TinyOld", r"returns ndarray from reset\(\), expected a tuple of 2"),
    ],
)
def test_values_that_cannot_be_stored_are_reported(name, message):
    with pytest.raises(WorldError, match=message):
        drive(tiny(name))


def test_an_action_never_leaves_a_space_of_doubles():
    environment = tiny("TinyPrecise")
    largest = np.array(environment.spec.action_high, np.float32)
    environment.reset(0)
    environment.step(largest)  # the environment asserts that it is within its space


def test_without_gymnasium_its_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=re.escape(install_command("gym"))):
        open_gym("Pendulum-v1", GymConfig())


def test_without_mujoco_its_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)  # they import it once only
    with pytest.raises(ConfigError, match=r"Hopper-v5 cannot be made.*\[gym\]'"):
        open_gym("Hopper-v5", GymConfig())


@pytest.mark.parametrize("name", ["Hopper-v5", "HalfCheetah-v5"])
def test_mujoco_s_tasks_are_reproducible(name):
    pytest.importorskip("mujoco")
    runs = []
    for _ in range(2):
        environment = open_gym(name, GymConfig(time_limit=20))
        drive(environment, seed=1)  # what ran before must leave no trace
        runs.append([t.observation.vector for t in drive(environment, seed=2)[1]])
        environment.close()
    np.testing.assert_array_equal(runs[0], runs[1])
