"""Worlds that users bring: by name, checked, with one clear error when something is wrong."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.custom_world import (
    ENTRY_POINT_GROUP,
    CustomEnvironment,
    CustomWorld,
    as_environment,
    check_environment,
    open_custom_world,
)
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.environment import Environment, ResetResult
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.timing import DelayConfig
from avtd3.collect.worlds import EnvironmentConfig, open_environment
from avtd3.store.dataset import Dataset
from avtd3.store.errors import CheckpointError, ConfigError, WorldError, WorldLost
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.tests.collect import line_world
from avtd3.tests.collect.line_world import SPEC, Duck, Line, PointWorld
from avtd3.tests.collect.point_world import make_frame

ROOT = Path(__file__).parents[2]
HERE = line_world.__name__
HUGE = 10**400
"""A whole number that is larger than any float."""
CONFIG = CollectConfig(world=f"{HERE}:Line", driver="random", min_free_mb=0)


def opened(made):
    return as_environment(
        open_custom_world(f"{HERE}:identity", {"made": made}),
        TaskConfig(),
        ScenarioConfig(),
        ExpertConfig(),
    )


def table_of(path):
    tables = [segment.episode_table() for segment in Dataset.open(path).snapshot().segments]
    return {int(t.index[e]): t.row(e) for t in tables for e in range(len(t.index))}


def test_an_environment_is_collected_resumed_and_evaluated_by_its_name(tmp_path):
    collect(tmp_path / "d", CONFIG, episodes=3)
    with pytest.raises(ConfigError, match="already has 3 episodes of this plan"):
        collect(tmp_path / "d", CONFIG, episodes=3)
    other = CollectConfig(
        world=f"{HERE}:Line", driver="random", min_free_mb=0, world_options={"limit": 5}
    )
    assert other.plan_document() != CONFIG.plan_document()
    collect(tmp_path / "d", CONFIG, episodes=5, resume=True)
    found = table_of(tmp_path / "d")
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert {row["end_reason"] for row in found.values()} == {"truncated"}
    assert {(row["town"], row["friction"]) for row in found.values()} == {("line", 0.5)}
    (segment, *_) = Dataset.open(tmp_path / "d").snapshot().segments
    assert f"{HERE}:Line" in segment.provenance["simulator"]
    assert segment.provenance["config"]["world"] == f"{HERE}:Line"
    report = evaluate("random", EvaluateConfig(world=f"{HERE}:Line", episodes=4))
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    assert document["measures"]["distance"] == pytest.approx(
        np.mean([row["distance"] for row in document["rows"]])
    )
    assert "distance" in report.summary()
    assert "success_rate" not in document


def test_workers_import_the_module_and_get_their_number(tmp_path):
    config = CollectConfig(world=f"{HERE}:Numbered", driver="random", min_free_mb=0, workers=2)
    collect(tmp_path / "d", config, episodes=4)
    collect(tmp_path / "one", CONFIG, episodes=4)
    assert [table_of(tmp_path / "d")[i]["worker"] for i in range(4)] == [0, 0, 1, 1]
    rows = [
        np.concatenate(
            [s.read("vector") for s in Dataset.open(tmp_path / name).snapshot().segments]
        )
        for name in ("d", "one")
    ]
    one, two = (values[np.lexsort(values.T)] for values in rows)  # whatever the segments
    np.testing.assert_array_equal(one, two)


def test_an_object_with_the_three_members_will_do(tmp_path):
    environment = opened(Duck())
    assert isinstance(environment, CustomEnvironment)
    assert (environment.scenario, environment.notices, environment.events()) == (0, (), ())
    assert environment.name == f"{HERE}:identity"
    check_environment(Duck())
    environment.close()


def test_a_driving_world_gets_the_task(tmp_path):
    config = CollectConfig(
        world=f"{HERE}:PointWorld",
        scenario=ScenarioConfig(route_length_m=20.0, time_limit_s=5.0),
        min_free_mb=0,
    )
    collect(tmp_path / "d", config, episodes=2)
    assert [row["end_reason"] for row in table_of(tmp_path / "d").values()] == ["goal", "goal"]
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    assert segment.provenance["simulator"].startswith(f"point, from {HERE}:PointWorld")
    environment = opened(PointWorld())
    assert isinstance(environment, DrivingEnvironment)
    assert isinstance(environment.world, CustomWorld)
    check_environment(PointWorld(), steps=50)


def test_a_driving_world_without_surroundings_can_be_drawn():
    class Plain:
        control_period_s, image_shape = PointWorld.control_period_s, PointWorld.image_shape

        def __init__(self):
            world = PointWorld()
            self.reset, self.step = world.reset, world.step

    environment = opened(Plain())
    environment.reset(0)
    environment.step(np.zeros(2, np.float32))
    assert environment.picture(np.zeros(2, np.float32), "test").width == 672


def test_no_member_of_a_user_s_environment_is_ignored():
    class Icy(Duck):
        setting, scenario, scenario_count, has_time_limit = "on ice", 2, 3, True

    ours = opened(Icy())
    assert (ours.setting, ours.scenario, ours.scenario_count) == ("on ice", 2, 3)
    assert ours.has_time_limit
    ignored = {name for name in vars(Environment) if name not in vars(CustomEnvironment)}
    assert {name for name in ignored if name[0] != "_"} == {"name", "world_record"}


class Coloured(Duck):
    legend: object = (((255, 0, 0), "danger"),)


def test_a_legend_belongs_to_the_pictures_of_an_environment():
    assert [*opened(Duck()).legend] == []
    assert [*opened(Coloured()).legend] == [((255, 0, 0), "danger")]
    for wrong in (5, [("red", "danger")], [(1, 2, 3)]):
        environment = Coloured()
        environment.legend = wrong
        with pytest.raises(WorldError, match="expected pairs of a colour"):
            _ = opened(environment).legend


def test_an_installed_world_is_named_by_its_entry_point(tmp_path, monkeypatch):
    folder = tmp_path / "lines-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.2\n")
    (folder / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\nline = lines_module:Line\nwrong = nothing\n"
    )
    (folder / "top_level.txt").write_text("lines_module\n")
    (tmp_path / "lines_module.py").write_text(f"from {HERE} import Line\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    config = CollectConfig(world="line", driver="random", min_free_mb=0)
    collect(tmp_path / "d", config, episodes=1)
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    assert "from lines_module:Line (lines 1.2)" in segment.provenance["simulator"]
    assert table_of(tmp_path / "d")[0]["world"] == "line"
    with pytest.raises(ConfigError, match="expected one of: road, carla, line, wrong"):
        EnvironmentConfig(world="curve")
    with pytest.raises(ConfigError, match="'wrong' is 'nothing', expected MODULE:FACTORY"):
        open_custom_world("wrong", {})


@pytest.mark.parametrize(
    ("world", "options", "message"),
    [
        ("no_such_module:make", {}, "there is no module no_such_module; install its package"),
        (f"{HERE}.deeper:make", {}, f"there is no module {HERE}.deeper"),
        (f"{HERE}:nothing", {}, "has no nothing, expected a function or class"),
        (f"{HERE}:NOT_CALLABLE", {}, "NOT_CALLABLE is int, expected a function or class"),
        (f"{HERE}:Line", {"limt": 3, "spec": 0, "1": 2}, "spec"),
        (f"{HERE}:identity", {}, r"missing a required argument: 'made'.*expected \(made\)"),
        (f"{HERE}:identity", {"made": 3}, "found int, expected an environment"),
        (f"{HERE}:identity", {"made": None}, "found None, expected an environment"),
    ],
)
def test_a_name_that_leads_to_no_world_is_refused(world, options, message):
    with pytest.raises((ConfigError, WorldError), match=message):
        open_custom_world(world, options)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            type("E", (), {"spec": SPEC})(),
            r"E has no reset, expected a method reset\(",
        ),
        (type("E", (), {"spec": SPEC, "reset": 1})(), "E has reset = int, expected a method"),
        (
            type("E", (), {"spec": SPEC, "reset": lambda self: 0})(),
            r"E has reset\(\), expected a method reset\(seed, index\)",
        ),
        (
            type("E", (), {"spec": 1, "reset": lambda s, a, b: 0, "step": lambda s, a: 0})(),
            "spec is int, expected an EpisodeSpec",
        ),
        (type("W", (), {"image_shape": (1, 8, 8)})(), "W has no control_period_s, expected"),
        (
            type("W", (PointWorld,), {"control_period_s": -1.0})(),
            "control_period_s is -1.0, expected a number of seconds above 0",
        ),
        (type("W", (PointWorld,), {"image_shape": (84, 84)})(), r"image_shape is \(84, 84\)"),
    ],
)
def test_a_missing_or_wrong_member_is_named_with_its_type_and_the_docs(made, message):
    with pytest.raises(ConfigError, match=f"{message}.*see docs/worlds.md"):
        opened(made)


def use_once(made):
    environment = opened(made)
    environment.reset(0)
    environment.driver("random")
    environment.step(np.zeros(1, np.float32))
    environment.measures()


def failing(*_):
    raise KeyError("no such spring")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"reset": failing}, r"failed in reset\(\): KeyError: 'no such spring' \(.*\.py:\d+\)"),
        ({"made": failing}, r"failed in step\(\) after 0 steps: KeyError: 'no such spring' \("),
        ({"measures": failing}, r"failed in measures\(\): KeyError"),
        ({"driver": failing}, r"failed in driver\(\): KeyError"),
        ({"reset": lambda *_: (1, 2)}, r"result of reset\(\): found tuple, expected ResetResult"),
        ({"made": lambda *_: None}, r"result of step\(\).*: found None, expected Step"),
        ({"observe": lambda: None}, "observation is NoneType, expected"),
        (
            {"observe": lambda: Observation(vector=np.zeros(2))},  # type: ignore[arg-type]
            r"vector is float64 \(2,\), expected float32 \(2,\)",
        ),
        (
            {"observe": lambda: Observation(vector=np.array((np.nan, 0.0), np.float32))},
            "vector is not finite at x",
        ),
        ({"measures": lambda: {"a": np.nan}}, r"measures\(\): found .*expected finite numbers"),
        ({"measures": lambda: {"seed": 1.0}}, r"measures\(\): avtd3 sets seed itself; rename it"),
        ({"measures": lambda: {"a": HUGE}}, r"measures\(\): found .*expected finite numbers"),
    ],
)
def test_failures_of_user_code_are_one_error_with_file_and_line(parts, message):
    with pytest.raises(WorldError, match=message):
        use_once(Line(**parts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": None}, "reward is None"),
        ({"reward": float("nan")}, "reward is nan"),
        ({"reward": "high"}, "high"),
        ({"reward": HUGE}, "too large"),
        ({"action": np.array([2.0], np.float32)}, r"action\[0\] is 2\.0, expected -1\.0 to"),
        ({"action": 0.5}, "action is float, expected float32"),
        ({"terminated": 1}, "expected True or False"),
        ({"terminated": True, "truncated": True}, "both terminated and truncated are true"),
        ({"end_reason": "soon"}, "end_reason is 'soon' before the last step"),
        ({"reward_terms": np.zeros(2, np.float32)}, "reward_terms was given"),
    ],
)
def test_a_step_that_cannot_be_stored_is_refused(changes, message):
    line = Line()
    line.step = lambda action: line.made(action, **changes)  # type: ignore[method-assign]
    environment = opened(line)
    environment.reset(0)
    with pytest.raises(WorldError, match=f"invalid result of step.*{message}.*docs/worlds.md"):
        environment.step(np.zeros(1, np.float32))


def test_attributes_that_avtd3_sets_itself_are_refused():
    result = ResetResult(observation=Line().reset(0).observation, attributes={"driver": "me"})
    with pytest.raises(WorldError, match="avtd3 sets the attribute driver itself"):
        opened(Line(reset=lambda *_: result)).reset(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((8, 8), np.uint8)}, r"image is uint8 \(8, 8\), expected uint8 \(1, 36"),
        ({"image": None}, "image: found None, expected ndarray"),
        ({"collision": None}, "collision: found None, expected str"),
        ({"vehicle": None}, "vehicle: found None, expected VehicleState"),
        ({"x_m": float("nan")}, "x_m is nan, expected a finite number"),
        ({"x_m": HUGE}, "x_m is a whole number of 1329 bits, expected a finite number"),
        ({"x_m": np.complex64(1.0)}, "x_m is .*, expected a finite number"),
        ({"lead_gap_m": float("nan")}, "lead_gap_m is nan"),
        ({"collision_frame_id": "last"}, "collision_frame_id is 'last', expected a finite number"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused(changes, message):
    class Broken(PointWorld):
        def step(self, action):
            super().step(action)
            return make_frame(**{"shape": self.image_shape} | changes)

    environment = opened(Broken())
    environment.reset(0)
    with pytest.raises(WorldError, match=message):
        environment.step(np.zeros(2, np.float32))


def test_a_start_without_the_name_of_its_town_is_refused():
    class Broken(PointWorld):
        def reset(self, scenario, seed):
            return dataclasses.replace(super().reset(scenario, seed), town=5)

    with pytest.raises(WorldError, match=r"result of reset\(\), town: found int, expected str"):
        opened(Broken()).reset(0)


def test_a_lost_world_stays_a_lost_world():
    def lose(*_):
        raise WorldLost("gone")

    with pytest.raises(WorldLost, match="gone"):
        opened(Line(reset=lose)).reset(0)


def test_a_driver_of_the_user_is_guarded():
    class Expert:
        def reset(self, rng): ...

        def act(self, observation):
            return np.array([0.1, failing()], np.float32)

    driver = opened(Line(driver=lambda base: Expert())).driver("expert")
    driver.reset(np.random.default_rng(0))
    with pytest.raises(WorldError, match=r"act\(\) of driver expert: KeyError"):
        driver.act(Observation())


def test_a_world_that_is_not_reproducible_is_found():
    line = Line()
    line.reset = lambda seed, index=0: Line.reset(line, np.random.default_rng().integers(2**31))  # type: ignore[method-assign]
    with pytest.raises(WorldError, match="episode seed 0 differs in observation 0"):
        check_environment(line)
    check_environment(line, reproducible=False)


class Open(Line):
    """Counts how many of its kind are open."""

    count = 0

    def __init__(self, **parts):
        super().__init__(**parts)
        Open.count += 1

    def close(self):
        Open.count -= 1


LATE = DelayConfig(camera_s=(0.01, 0.02))  # no multiple of the period


@pytest.mark.parametrize(("parts", "settings"), [({"spec": None}, {}), ({}, {"delay": LATE})])
def test_a_world_that_cannot_be_used_is_closed(parts, settings):
    config = EnvironmentConfig(world=f"{HERE}:Line", **settings)

    def factory(config, worker):
        return open_custom_world(f"{HERE}:identity", {"made": Open(**parts)})

    with pytest.raises(ConfigError), open_environment(config, factory):
        pass
    assert Open.count == 0


def test_an_unusable_policy_of_the_world_itself_is_not_ours(tmp_path):
    def fail(action):
        raise CheckpointError("the policy of the other cart is damaged")

    with pytest.raises(CheckpointError, match="of the other cart"):
        collect(tmp_path / "d", CONFIG, episodes=1, open_world=lambda *_: Line(made=fail))


def test_failures_keep_the_steps_before(tmp_path):
    config = CollectConfig(world=f"{HERE}:FailsLater", driver="random", min_free_mb=0)
    with pytest.raises(WorldError, match=r"after 4 steps: RuntimeError: the spring broke \("):
        collect(tmp_path / "d", config, episodes=1)
    assert [(row["length"], row["end_reason"]) for row in table_of(tmp_path / "d").values()] == [
        (4, "world_error")
    ]


def test_options_belong_to_worlds_of_users(tmp_path):
    with pytest.raises(ConfigError, match=r"world_options are .* expected none for world road"):
        collect(tmp_path / "d", CollectConfig(world_options={"a": 1}), episodes=1)
    with pytest.raises(ConfigError, match="world_options must be JSON values"):
        EnvironmentConfig(world=f"{HERE}:Line", world_options={"a": {1, 2}})


def test_an_image_spec_is_checked_too():
    spec = EpisodeSpec(image=ImageSpec(height=36, width=36), action_names=("push",))
    image = np.zeros((1, 36, 37), np.uint8)
    line = Line(spec=spec, observe=lambda: Observation(image=image))
    with pytest.raises(WorldError, match=r"image is uint8 \(1, 36, 37\), expected"):
        opened(line).reset(0)


def blocks():
    """The Python modules that docs/worlds.md shows."""
    text = (ROOT / "docs" / "worlds.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(folder, *words):
    done = subprocess.run(
        [sys.executable, "-m", "avtd3.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # so that -m does not add the directory
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


def test_the_tutorial_s_environment_is_the_example():
    assert blocks()[0] == (ROOT / "examples" / "own_world.py").read_text()
    assert len(blocks()[0].splitlines()) <= 30


def test_the_tutorial_works_as_written(tmp_path):
    environment, controller, driving, check = blocks()
    (tmp_path / "own_world.py").write_text(environment)
    (tmp_path / "driven_cart.py").write_text(controller)
    (tmp_path / "own_road.py").write_text(driving)
    (tmp_path / "test_it.py").write_text(f"{check}\ntest_the_cart_is_a_valid_world()\n")
    subprocess.run([sys.executable, "test_it.py"], cwd=tmp_path, check=True, timeout=120)
    code, out, error = run(
        tmp_path, "collect", "A", "--world=own_world:Cart", "--driver=random", "--episodes=4",
        "--workers=2", "--set=collect.world_options.limit=9", "--json",
    )  # fmt: skip
    assert (code, json.loads(out)["steps"]) == (0, 36), error
    code, out, error = run(
        tmp_path, "evaluate", "random", "--world=own_world:Cart", "--episodes=2", "--json"
    )
    assert (code, len(json.loads(out)["rows"])) == (0, 2), error
    code, out, error = run(
        tmp_path, "evaluate", "expert", "--world=driven_cart:DrivenCart", "--episodes=2", "--json"
    )
    assert (code, len(json.loads(out)["rows"])) == (0, 2), error
    code, out, error = run(
        tmp_path, "evaluate", "expert", "--world=own_road:StraightRoad", "--episodes=2", "--json"
    )
    assert (code, json.loads(out)["success_rate"]) == (0, 1.0), error


@pytest.mark.parametrize(
    ("text", "world", "code", "message"),
    [
        ("", "absent:make", 2, "there is no module absent"),
        ("", "mine:make", 2, "mine has no make"),
        ("1 / 0", "mine:make", 3, "failed in its import: ZeroDivisionError: division by zero ("),
        ("def make(:", "mine:make", 3, "failed in its import: SyntaxError"),
        ("import absent", "mine:make", 3, "ModuleNotFoundError: No module named 'absent' ("),
        ("def make():\n  return [][0]", "mine:make", 3, "its factory: IndexError: list index"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(tmp_path, text, world, code, message):
    (tmp_path / "mine.py").write_text(text)
    found, _, error = run(tmp_path, "collect", "D", f"--world={world}", "--driver=random")
    assert found == code, error
    assert error[0].startswith(f"avtd3: world {world}")
    assert message in error[0]
    if code == 3:
        assert f"{tmp_path}/mine.py:" in error[0]
    assert not (tmp_path / "D").exists()
