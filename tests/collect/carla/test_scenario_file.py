"""One scenario file on both simulators: the same routes, and scores from the same events."""

import numpy as np
import pytest

from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.leaderboard import TABLES, score_route
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import episode_generator
from avtd3.collect.rollout import Rollout
from avtd3.collect.sim.world import RoadWorld
from avtd3.store.errors import ConfigError
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.worlds import world_on
from avtd3.tests.collect.maps.road_networks import straight_document

YAML = """
avtd3_scenarios: 1
defaults: {npcs: 0, weather: clear, time_limit_s: 60}
routes:
  - id: 5
    xodr: straight.xodr
    waypoints: [[20, 1.75], [70, 1.75]]
  - id: 6
    network: {kind: loop, number: 4}
    length_m: 50
  - id: 7
    town: AvTown09
  - {id: 8, town: straight, xodr: straight.xodr}
  - {id: 9, town: straight, xodr: far/straight.xodr}
"""
XML = """<routes><route id="8" town="straight"><waypoints>
<position x="20" y="1.75" z="0"/><position x="70" y="1.75" z="0"/>
</waypoints></route></routes>"""


@pytest.fixture(scope="module")
def world():
    with CarlaServer() as server, world_on(server) as world:
        yield world


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "straight.xodr").write_text(straight_document())
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "straight.xodr").write_text(straight_document(400.0))
    (tmp_path / "routes.yaml").write_text(YAML)
    (tmp_path / "routes.xml").write_text(XML)
    return tmp_path


def environment(world, path):
    scenarios = ScenarioConfig(file=str(path), npcs=0).resolve()
    return DrivingEnvironment(world, TaskConfig(), scenarios, ExpertConfig())


@pytest.mark.parametrize(
    ("name", "index", "number", "town"),
    [
        ("routes.yaml", 0, 5, "straight"),
        ("routes.yaml", 1, 6, "loop-000004"),
        ("routes.yaml", 3, 8, "straight"),
        ("routes.yaml", 4, 9, "straight"),
        ("routes.xml", 0, 8, "straight"),
    ],
)
def test_a_route_is_the_same_on_both_worlds(world, folder, name, index, number, town):
    there, here = environment(world, folder / name), environment(RoadWorld(), folder / name)
    for place in (there, here):
        start = place.reset(4, index)
        assert (start.attributes["town"], place.scenario) == (town, number)
    np.testing.assert_array_equal(there.task.route.points, here.task.route.points)
    assert there.task.frame.vehicle.x_m == pytest.approx(here.task.frame.vehicle.x_m, abs=1e-3)


def test_a_drive_over_the_wire_has_its_events_and_its_score(world, folder):
    place = environment(world, folder / "routes.yaml")
    rollout = Rollout(place, 4, 0)
    *_, last = rollout.drive(place.driver("expert"), "expert", episode_generator(4))
    assert last.end_reason == "goal"
    score = score_route(place.events(), TABLES["leaderboard-2.1"])
    assert score is not None
    assert score.driving_score == 100.0
    assert score.length_m == pytest.approx(50.0, abs=0.1)


def test_a_town_that_the_server_lacks_is_named(world, folder):
    with pytest.raises(ConfigError, match=r"AvTown09.*did you mean AvTown0"):
        environment(world, folder / "routes.yaml").reset(4, 2)
