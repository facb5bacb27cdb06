"""Code that is not ours may do anything: the episode so far is kept, with one clear error."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from avtd3.collect import foreign  # noqa: E402 - only where gymnasium is installed
from avtd3.collect.collector import CollectConfig, collect  # noqa: E402
from avtd3.collect.custom_world import check_environment  # noqa: E402
from avtd3.collect.evaluator import EvaluateConfig, evaluate  # noqa: E402
from avtd3.collect.foreign import ForeignCode, check_images  # noqa: E402
from avtd3.collect.gym_env import GymConfig, open_gym  # noqa: E402
from avtd3.collect.rollout import MAX_EPISODE_STEPS  # noqa: E402
from avtd3.learn.networks import MIN_IMAGE_SIDE  # noqa: E402
from avtd3.store.dataset import Dataset  # noqa: E402
from avtd3.store.errors import ConfigError, RoadError, WorldError  # noqa: E402
from avtd3.store.events import Event  # noqa: E402
from avtd3.store.spec import EpisodeSpec, ImageSpec  # noqa: E402
from avtd3.tests.collect import tiny_envs  # noqa: E402
from avtd3.tests.collect.line_world import Line  # noqa: E402

HERE = __name__


class OwnError(Exception):
    """As simulators have: mujoco.FatalError, pybullet.error."""


class OwnExit(BaseException):
    """Not even an Exception."""


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("even this fails")


ERRORS = [
    EOFError("the pipe closed"),
    OwnError("physics diverged"),
    OwnExit("left"),
    SystemExit("licence server away"),
    GeneratorExit(),
    MemoryError(),
    SilentError(),
    ConfigError("not now"),
]
PLACES = {"__init__": 0, "reset": 0, "step": 4}


def fail_at(odd, place, count):
    if place == odd.place and count == PLACES.get(place, 0):
        raise odd.error


class Odd(tiny_envs.Tiny):
    """Raises an error in one of its methods, at some call."""

    def __init__(self, place, render_mode=None):
        super().__init__(render_mode)
        self.place, self.error = place, CASE["error"]  # Gymnasium would copy an argument
        self.check("__init__")

    def check(self, place, count=0):
        fail_at(self, place, count)

    def reset(self, **options):
        found = super().reset(**options)
        self.check("reset")
        return found

    def step(self, action):
        self.check("step", self.steps)
        return super().step(action)

    def render(self):
        self.check("render")
        return super().render()

    def close(self):
        self.check("close")


class OddLine(Line):
    def __init__(self, place, error):
        super().__init__()
        self.place, self.error = place, error
        self.check("__init__")

    def check(self, place, count=0):
        fail_at(self, place, count)

    def reset(self, seed, index=0):
        self.check("reset")
        return super().reset(seed)

    def step(self, action):
        self.check("step", self.steps)
        return super().step(action)

    def close(self):
        self.check("close")


CASE: dict[str, Any] = {}


def make_line():
    return OddLine(**CASE)


def make():
    """Make what the test put here."""
    return MAKERS[-1]()


MAKERS: list[Any] = [Line]
LATE = Event(step=99, kind="crash", x_m=0.0, y_m=0.0)


def world_of(kind, place, error):
    CASE.update(place=place, error=error)
    if kind == "custom":
        return f"{HERE}:make_line"
    gymnasium.register("Odd-v0", Odd, kwargs={"place": place})
    return "gym:Odd-v0"


@pytest.fixture(autouse=True)
def no_odd_environment():
    yield
    gymnasium.registry.pop("Odd-v0", None)


def config_of(world, **changes):
    return CollectConfig(world=world, driver="random", min_free_mb=0, **changes)


def rows(path):
    tables = [segment.episode_table() for segment in Dataset.open(path).snapshot().segments]
    return [(int(t.length[e]), t.end_reason[e]) for t in tables for e in range(len(t.index))]


@pytest.mark.parametrize("kind", ["gym", "custom"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_is_one_error_and_the_steps_before_are_kept(
    tmp_path, kind, place, error
):
    config = config_of(world_of(kind, place, error))
    is_refusal = (kind, place) == ("custom", "__init__") and isinstance(error, ConfigError)
    with pytest.raises(ConfigError if is_refusal else WorldError) as caught:
        collect(tmp_path / "d", config, episodes=2)
    if not is_refusal:
        assert type(error).__name__ in str(caught.value)
        assert "test_foreign.py:" in str(caught.value)
    if place != "__init__":
        assert rows(tmp_path / "d") == [(4, "world_error")] * (place == "step")


@pytest.mark.parametrize("kind", ["gym", "custom"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failing_close_is_only_a_warning(tmp_path, kind, error):
    config = config_of(world_of(kind, "close", error))
    with pytest.warns(RuntimeWarning, match=r"failed in close\(\): "):
        report = collect(tmp_path / "d", config, episodes=2)
    assert report.failure == ""
    assert len(rows(tmp_path / "d")) == report.tally.episodes == 2


def test_a_failing_close_does_not_hide_the_error_before_it(tmp_path):
    class Twice(Line):
        def step(self, action):
            raise OwnError("first")

        def close(self):
            raise OwnError("second")

    MAKERS.append(Twice)
    with pytest.warns(RuntimeWarning, match="second"), pytest.raises(WorldError, match="first"):
        collect(tmp_path / "d", config_of(f"{HERE}:make"), episodes=1)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failing_render_is_one_error(tmp_path, error):
    config = EvaluateConfig(world=world_of("gym", "render", error), episodes=1)
    with pytest.raises(WorldError, match=r"failed in render\(\)"):
        evaluate("random", config, gif=tmp_path / "a.gif")


def test_ctrl_c_is_the_user_s_under_the_handler_of_python_only(monkeypatch):
    code = ForeignCode("odd", HERE)

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        code.call("step()", interrupt)
    monkeypatch.setattr(signal, "getsignal", lambda _: print)
    with pytest.raises(WorldError, match="KeyboardInterrupt"):
        code.call("step()", interrupt)


def test_what_a_user_s_world_may_say_by_our_errors_is_kept():
    def refuse():
        raise RoadError("this road is closed")

    with pytest.raises(RoadError, match="closed"):
        ForeignCode("odd", HERE).call("reset()", refuse)


@pytest.mark.parametrize(
    ("rate", "period_s"),
    [("20", 0.05), ("fast", 1.0), (None, 1.0), (0, 1.0), (float("inf"), 1.0), ([], 1.0)],
)
def test_a_rate_that_is_no_rate_is_ignored(rate, period_s):
    class Rated(tiny_envs.Tiny):
        metadata = {"render_modes": [], "render_fps": rate}  # noqa: RUF012 - as gymnasium

    gymnasium.register("Odd-v0", Rated)
    assert open_gym("Odd-v0", GymConfig()).spec.control_period_s == period_s


@pytest.mark.parametrize("shape", [(3, 64, 96), (8, 8), (64, 15), (15, 64, 3)])
def test_images_that_no_network_accepts_are_refused_by_collect(tmp_path, shape):
    class Odd(tiny_envs.Tiny):
        observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)

    gymnasium.register("Odd-v0", Odd)
    with pytest.raises(ConfigError, match=r"check the channel order .*\(rows, columns, channels\)"):
        collect(tmp_path / "d", config_of("gym:Odd-v0"), episodes=1)
    assert not (tmp_path / "d").exists()


def test_a_channel_last_spec_of_a_user_is_refused():
    spec = EpisodeSpec(image=ImageSpec(channels=64, height=96, width=3), action_names=("push",))
    with pytest.raises(ConfigError, match=r"channel order .*\(channels, rows, columns\)"):
        check_environment(Line(spec=spec))


def test_the_learner_s_least_image_is_known_here():
    assert foreign.LEARNER_SIDE == MIN_IMAGE_SIDE
    (notice,) = check_images("world", {"image": ImageSpec(height=35, width=84)}, "any order")
    assert "avtd3 learn needs at least 36" in notice
    assert check_images("world", {"image": ImageSpec(height=36, width=36)}, "any order") == ()


def test_bounds_without_bounds_are_refused(tmp_path):
    class Wide(tiny_envs.Tiny):
        most = np.finfo(np.float32).max
        action_space = gymnasium.spaces.Box(-most, most, (2,), np.float32)

    gymnasium.register("Odd-v0", Wide)
    with pytest.raises(ConfigError, match="RescaleAction"):
        collect(tmp_path / "d", config_of("gym:Odd-v0"), episodes=1)
    spec = EpisodeSpec(
        vector_names=("x", "t"), action_names=("a",), action_low=(-3e38,), action_high=(3e38,)
    )
    MAKERS.append(lambda: Line(spec=spec))
    with pytest.raises(ConfigError, match="expected finite bounds"):
        collect(tmp_path / "d", config_of(f"{HERE}:make"), episodes=1)


class Endless(tiny_envs.Tiny):
    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


def test_an_environment_that_never_ends_is_cut_at_the_limit(tmp_path):
    gymnasium.register("Odd-v0", Endless)
    report = collect(tmp_path / "d", config_of("gym:Odd-v0"), steps=150)
    assert report.tally.steps == 150
    assert rows(tmp_path / "d") == [(150, "step_limit")]
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    assert segment.read("truncated").tolist() == [False] * 149 + [True]
    assert collect(tmp_path / "d", config_of("gym:Odd-v0"), steps=200, resume=True).missing == ""
    assert rows(tmp_path / "d") == [(150, "step_limit"), (50, "step_limit")]


def test_an_environment_that_never_ends_has_a_longest_episode(tmp_path, monkeypatch):
    assert MAX_EPISODE_STEPS > 100_000
    monkeypatch.setattr("avtd3.collect.collector.MAX_EPISODE_STEPS", 70)
    gymnasium.register("Odd-v0", Endless)
    collect(tmp_path / "d", config_of("gym:Odd-v0"), episodes=2)
    assert rows(tmp_path / "d") == [(70, "step_limit")] * 2


def test_whole_episodes_are_driven_where_there_is_a_time_limit(tmp_path):
    config = config_of(f"gym:{tiny_envs.__name__}:TinyBoth-v0")
    collect(tmp_path / "d", config, steps=tiny_envs.LIMIT + 1)
    assert rows(tmp_path / "d") == [(tiny_envs.LIMIT, "terminated")] * 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"events": lambda: 3}, r"failed in events\(\): TypeError"),
        ({"events": lambda: ["crash"]}, r"result of events\(\): found str, expected Event"),
        (
            {"events": lambda: [Event(step=99, kind="crash", x_m=0.0, y_m=0.0)]},
            r"events\(\): .* is of step 99",
        ),
    ],
)
def test_events_that_cannot_be_stored_keep_the_episode(tmp_path, parts, message):
    MAKERS.append(lambda: Line(**parts))
    with pytest.raises(WorldError, match=message):
        collect(tmp_path / "d", config_of(f"{HERE}:make"), episodes=1)
    assert rows(tmp_path / "d") == [(12, "world_error")]


TALKER = """
import ctypes, os, gymnasium, numpy as np
print("printed on import")

class Talker(gymnasium.Env):
    metadata = {"render_fps": 20}
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, seed=None, options=None):
        print("printed in reset")
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        ctypes.CDLL(None).puts(b"native print in step")
        os.write(1, b"written in step\\n")
        self.steps += 1
        return np.zeros(2, np.float32), 0.0, self.steps == 5, False, {}

gymnasium.register("Talker-v0", Talker)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("collect", "D", "--driver=random", "--episodes=2"),
        ("collect", "D", "--driver=random", "--episodes=2", "--workers=2"),
        ("evaluate", "random", "--episodes=2"),
    ],
    ids=["collect", "two workers", "evaluate"],
)
def test_what_an_environment_prints_does_not_spoil_the_answer(tmp_path, words):
    (tmp_path / "talker.py").write_text(TALKER)
    done = subprocess.run(
        [sys.executable, "-m", "avtd3.cli", *words, "--world=gym:talker:Talker-v0", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes"] == 2
    for text in ("printed on import", "printed in reset", "native print", "written in step"):
        assert text in done.stderr
