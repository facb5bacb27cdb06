"""Scenario files: valid files, errors, and episodes that use the routes in turn."""

import dataclasses
import os
import textwrap
from pathlib import Path

import numpy as np
import pytest

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.scenarios import GENERATED, SCENARIOS, ScenarioConfig, read_scenarios
from avtd3.collect.plan import digest
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.dataset import Dataset
from avtd3.store.errors import Avtd3Error, ConfigError, RoadError
from avtd3.tests.collect.maps.road_networks import straight_document
from avtd3.tests.collect.point_world import open_point_world

YAML = """
avtd3_scenarios: 1
defaults:
  npcs: 3
  weather: clear
routes:
  - id: 7
    name: along the straight
    xodr: maps/straight.xodr
    waypoints: [[20, 1.75], [150.0, 1.75, 0.2]]
    time_limit_s: 30
  - network: {kind: loop, number: 4}
    length_m: 60
    npcs: 0
  - town: Town01
    waypoints: [[0, 0], [10, 0]]
"""
XML = """<?xml version="1.0" encoding="UTF-8"?>
<routes>
  <route id="24211" town="straight">
    <weathers>
      <weather route_percentage="100" cloudiness="5.0" sun_altitude_angle="15.0"/>
      <weather route_percentage="0" cloudiness="80.0" sun_altitude_angle="40.0"/>
    </weathers>
    <waypoints>
      <position x="20.0" y="1.75" z="0"/>
      <position x="150.0" y="1.75" z="0"/>
    </waypoints>
    <scenarios>
      <scenario name="ControlLoss_1" type="ControlLoss">
        <trigger_point x="50.0" y="1.75" z="0" yaw="0"/>
      </scenario>
    </scenarios>
  </route>
  <route id="3" town="Town05">
    <waypoint pitch="0" roll="0" x="1.5" y="-2.5" yaw="0" z="0"/>
    <waypoint pitch="0" roll="0" x="90" y="-2.5" yaw="0" z="0"/>
  </route>
</routes>
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "maps").mkdir()
    for path in (tmp_path / "maps" / "straight.xodr", tmp_path / "straight.xodr"):
        path.write_text(straight_document())
    return tmp_path


def write(folder, text, name="routes.yaml"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def test_a_yaml_file_gives_one_scenario_a_route(folder):
    straight, loop, town = read_scenarios(write(folder, YAML))
    assert (straight.number, straight.name, straight.npcs) == (7, "along the straight", 3)
    assert straight.town == str(folder / "maps" / "straight.xodr")
    assert straight.waypoints == ((20.0, 1.75), (150.0, 1.75))
    assert (straight.time_limit_s, straight.time_per_m_s) == (30.0, 0.0)
    assert (loop.number, loop.town, loop.network_kinds, loop.network) == (
        1,
        GENERATED,
        ("loop",),
        4,
    )
    assert (loop.npcs, loop.weather, loop.route_length_m) == (0, "clear", 60.0)
    assert (loop.time_limit_s, loop.time_per_m_s) == (5.0, 0.8)
    assert (town.number, town.town, town.xodr) == (2, "Town01", "")


def test_the_leaderboards_xml_is_read(folder):
    first, second = read_scenarios(write(folder, XML, "routes.xml"))
    assert (first.number, first.town, first.weather) == (24211, "straight", "overcast")
    assert first.xodr == str(folder / "straight.xodr")
    assert first.waypoints == ((20.0, 1.75), (150.0, 1.75))
    assert len(first.remarks) == 2
    assert "its 1 scenarios (ControlLoss) are ignored" in first.remarks[1]
    assert (second.number, second.town, second.xodr) == (3, "Town05", "")
    assert second.waypoints == ((1.5, -2.5), (90.0, -2.5))
    assert second.remarks == ()


@pytest.mark.parametrize(
    ("look", "name"),
    [
        ('sun_altitude_angle="-10" fog_density="90"', "night"),
        ('sun_altitude_angle="20" fog_density="60"', "fog"),
        ('sun_altitude_angle="20" precipitation="80"', "rain"),
        ('sun_altitude_angle="5"', "dusk"),
        ('cloudiness="90"', "overcast"),
        ('cloudiness="10"', "clear"),
    ],
)
def test_weather_parameters_become_the_nearest_named_weather(folder, look, name):
    text = XML.replace('cloudiness="80.0" sun_altitude_angle="40.0"', look)
    assert read_scenarios(write(folder, text, "routes.xml"))[0].weather == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("avtd3_scenarios: 1", "avtd3_scenarios: 2"), "avtd3_scenarios is 2, expected 1"),
        (("avtd3_scenarios: 1", ""), "avtd3_scenarios is None"),
        (("npcs: 3", "npc: 3"), r"defaults has the unknown key 'npc'; did you mean npcs\?"),
        (("weather: clear", "weather: cleer"), r"weather is 'cleer'; did you mean clear\?"),
        (("id: 7", "id: 1"), "another route has the id 1"),
        (("id: 7", "id: seven"), "route 'seven': id is 'seven', expected an integer"),
        (("[20, 1.75]", "[20]"), r"route 7: waypoint 1 is \[20\], expected \[x, y\]"),
        (("[20, 1.75]", "[.nan, 1]"), r"waypoint 1 is \[nan, 1\]"),
        (("[20, 1.75]", "[true, 1]"), r"waypoint 1 is \[True, 1\]"),
        (("[20, 1.75]", "[1e9, 1]"), r"waypoint 1 is \['1e9', 1\]"),
        (("[20, 1.75], ", ""), "expected at least two"),
        (("kind: loop", "kind: lop"), r"network kind is 'lop'; did you mean loop\?"),
        (("kind: loop", "kin: loop"), r"did you mean kind\?"),
        (("network: {kind: loop, number: 4}", "name: b"), "it has no roads, expected one of"),
        (("length_m: 60", "town: Town01"), "town and network, expected network alone"),
        (("length_m: 60", "length_m: 2"), "length_m is 2, expected 15"),
        (("length_m: 60", "waypoints: [[0, 0], [9, 9]]\n    length_m: 60"), "one of them"),
        (
            ("number: 4}\n    length_m: 60", "}\n    waypoints: [[0, 0], [9, 9]]"),
            "expected a number for its network",
        ),
        (("town: Town01", "town: ../Town01.xodr"), "for a file use xodr: FILE"),
        (("maps/straight", "../straight"), "directory of the scenario file or below it"),
        (("maps/straight", "/etc/straight"), "directory of the scenario file or below it"),
        (("maps/straight", "maps/none"), "none.xodr does not exist"),
        (("time_limit_s: 30", "time_limit_s: soon"), "time_limit_s is 'soon', expected a number"),
        (("time_limit_s: 30", "time_limit_s: -1"), "time_limit_s is -1"),
        (("time_limit_s: 30", f"time_limit_s: {10**400}"), "time_limit_s is a whole number of 13"),
        (("network: {kind: loop, number: 4}", "network:"), "network is None, expected keys"),
        (("[20, 1.75]", f"[{10**400}, 1.75]"), "waypoint 1 is .*, expected"),
        (("routes:", "routes: 5\nroute:"), "unknown key 'route'; did you mean routes"),
    ],
)
def test_an_error_names_the_place_of_the_mistake(folder, change, message):
    assert change[0] in YAML
    with pytest.raises(ConfigError, match=message) as caught:
        read_scenarios(write(folder, YAML.replace(change[0], change[1], 1)))
    assert str(caught.value).startswith(f"scenario file {folder / 'routes.yaml'}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is None, expected keys"),
        ("[1, 2]", r"the file is \[1, 2\]"),
        ("avtd3_scenarios: 1", "routes is None, expected a list"),
        ("avtd3_scenarios: 1\nroutes: []", "it contains no routes"),
        ("a: [", "not valid YAML"),
        ("a: 2027-13-45", "not valid YAML"),
        ("[" * 100 + "]" * 100, "nested more than 8"),
        ("[" * 1_000_000, "nest"),
        ("a: &a [1, 1]\nb: [*a, *a]", "YAML alias .* use 'defaults'"),
        ("a: !!python/object/apply:os.system [ls]", r"YAML tag \(tag:.*expected none"),
        ('a: !!int ""', "YAML tag"),
        ("a: !!timestamp b", "YAML tag"),
    ],
)
def test_other_files_are_rejected(folder, text, message):
    with pytest.raises(ConfigError, match=message):
        read_scenarios(write(folder, text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<routes>", '<!DOCTYPE r [<!ENTITY a "b">]><routes>'), "declares a DOCTYPE"),
        (("</routes>", ""), "not valid XML"),
        (("routes>", "roads>"), "XML of <roads>, expected <routes>"),
        (('id="3"', 'id="three"'), "route 'three': its id is not an integer"),
        (('town="Town05"', ""), "it has no town"),
        (('x="90"', 'x="east"'), "route '3', waypoint 2: x is 'east', expected a number"),
        (('<waypoint pitch="0" roll="0" x="90" y="-2.5" yaw="0" z="0"/>', ""), "at least two"),
        (('town="Town05"', 'town="../Town05"'), "expected the name of a map"),
    ],
)
def test_mistakes_in_xml_are_named(folder, change, message):
    with pytest.raises(ConfigError, match=message):
        read_scenarios(write(folder, XML.replace(*change), "routes.xml"))


def test_missing_huge_and_crowded_files_are_refused(folder):
    with pytest.raises(ConfigError, match=r"does not exist, expected YAML"):
        read_scenarios(folder / "none.yaml")
    with (folder / "huge.yaml").open("wb") as file:
        os.truncate(file.fileno(), 17 * 1024 * 1024)
    with pytest.raises(ConfigError, match="split it"):
        read_scenarios(folder / "huge.yaml")
    point = '<position x="1" y="2"/>'
    text = (
        f'<routes><route id="1" town="a"><waypoints>{100_001 * point}</waypoints></route></routes>'
    )
    with pytest.raises(ConfigError, match="split the file"):
        read_scenarios(write(folder, text, "many.xml"))


def test_a_town_with_a_long_name_of_many_bytes_is_a_town_without_a_file(folder):
    town = "道" * 200
    text = f"avtd3_scenarios: 1\nroutes: [{{town: {town}, waypoints: [[0, 0], [99, 0]]}}]"
    assert read_scenarios(write(folder, text))[0].town == town
    with pytest.raises(RoadError, match="no map"):
        RoadWorld().reset(read_scenarios(write(folder, text))[0], 2)


def test_300_000_routes_are_counted_before_they_are_read(folder):
    route = '<route id="1" town="a">'
    for name, text in (
        ("many.xml", "<routes>" + f"{route}</route>" * 300_000 + "</routes>"),
        ("many.yaml", "avtd3_scenarios: 1\nroutes: [" + "{}," * 20_000 + "]"),
        ("deep.xml", "<routes>" + route * 99_999 + "</route>" * 99_999 + "</routes>"),
    ):
        with pytest.raises(ConfigError, match=r"0 routes and 0 waypoints|nested more than"):
            read_scenarios(write(folder, text, name))


@pytest.mark.parametrize("encoding", ["undefined", "punycode", "idna", "zlib", "utf-7"])
def test_xml_in_an_encoding_that_is_not_one_of_text_is_refused(folder, encoding):
    with pytest.raises(ConfigError, match=f"{encoding}.*save it as utf-8"):
        read_scenarios(write(folder, XML.replace("UTF-8", encoding), "odd.xml"))


def test_pipes_and_devices_are_refused_at_once(folder):
    os.mkfifo(folder / "pipe.xml")
    for path in (folder / "pipe.xml", folder, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="regular file"):
            read_scenarios(path)


def test_a_link_does_not_lead_out_of_the_folder(folder):
    inner = folder / "in"
    inner.mkdir()
    (inner / "out.xodr").symlink_to(folder / "straight.xodr")
    text = YAML.replace("maps/straight", "out")
    with pytest.raises(ConfigError, match="symbolic link"):
        read_scenarios(write(inner, text))


def test_a_file_and_a_number_exclude_each_other(folder):
    path = str(write(folder, YAML))
    for wrong in ({"number": 2}, {"town": "a.xodr"}, {"route_length_m": 50.0}, {"networks": 2}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ScenarioConfig(file=path, **wrong)
    quiet = ScenarioConfig(file=path, npcs=0, weather="fog", time_limit_s=9.0).resolve()
    assert {(s.npcs, s.weather, s.time_limit_s, s.time_per_m_s) for s in quiet} == {
        (0, "fog", 9.0, 0.0)
    }


def test_a_plan_is_named_by_its_routes_and_not_by_where_they_lie(folder, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "maps").symlink_to(folder / "maps")
    (other / "maps").unlink()
    (other / "maps").mkdir()
    (other / "maps" / "straight.xodr").write_text(straight_document())
    plans = [
        CollectConfig(scenario=ScenarioConfig(file=str(path))).plan_document()
        for path in (
            write(folder, YAML),
            write(other, YAML),
            write(other, YAML.replace("150.0", "151.0"), "b.yaml"),
        )
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert CollectConfig().plan_document()["scenario"] == {
        key: value
        for key, value in dataclasses.asdict(SCENARIOS[0]).items()
        if key not in ("time_per_m_s", "waypoints", "network", "xodr", "remarks")
    }


def test_a_file_that_changes_while_it_is_collected_does_not_rename_the_plan(folder, tmp_path):
    def edit_and_open(config, worker):
        write(folder, YAML.replace("npcs: 3", "npcs: 4"))
        return open_point_world(config, worker)

    given = ScenarioConfig(file=str(write(folder, YAML)))
    config = CollectConfig(scenario=given, min_free_mb=0)
    report = collect(tmp_path / "d", config, episodes=1, open_world=edit_and_open)
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    assert segment.provenance["plan_digest"] == report.plan_digest


def test_plans_of_numbered_scenarios_keep_the_name_that_they_had_before_there_were_files():
    """Otherwise, a collection of an older version could not be resumed."""
    assert digest(CollectConfig().plan_document()).startswith("743e981a37a2081c")
    given = ScenarioConfig(number=3, npcs=2, town="a.xodr")
    plan = CollectConfig(scenario=given, driver="random").plan_document()
    assert digest(plan).startswith("70ef5e808f20a242")


def environment_of(path, world=None):
    scenarios = ScenarioConfig(file=str(path)).resolve()
    return DrivingEnvironment(world or RoadWorld(), TaskConfig(), scenarios, ExpertConfig())


def test_the_built_in_simulator_drives_the_routes_in_turn(folder):
    pytest.importorskip("carla")
    environment = environment_of(write(folder, YAML))
    first = environment.reset(11, 0)
    assert (*first.attributes.values(), environment.scenario) == ("straight", "clear", 7)
    assert environment.task.route.points[0] == pytest.approx([20.0, 1.75], abs=0.02)
    assert environment.task.route.length_m == pytest.approx(130.0, abs=0.1)
    assert environment.reset(11, 4).attributes["town"] == "loop-000004"
    assert (environment.task.route.length_m, environment.scenario) == (
        pytest.approx(60.0, abs=1.0),
        1,
    )
    again = environment.reset(11, 3)
    assert (environment.scenario, again.observation.image.tobytes()) == (
        7,
        first.observation.image.tobytes(),
    )
    with pytest.raises(RoadError, match=r"no map 'Town01', expected.*Town01\.xodr beside"):
        environment.reset(11, 2)
    environment.close()


def test_the_leaderboards_routes_run_on_the_built_in_simulator(folder):
    pytest.importorskip("carla")
    environment = environment_of(write(folder, XML, "routes.xml"))
    start = environment.reset(2, 0)
    assert (*start.attributes.values(), environment.scenario) == ("straight", "overcast", 24211)
    assert any("ControlLoss" in notice for notice in environment.notices)
    for _ in range(5):
        environment.step(np.array([0.0, 0.5], np.float32))
    environment.close()


def test_collected_episodes_take_the_routes_by_turns_and_resume_alike(folder, tmp_path):
    path = write(folder, YAML)
    config = CollectConfig(scenario=ScenarioConfig(file=str(path), time_limit_s=2.0))
    collect(tmp_path / "whole", config, episodes=7, open_world=open_point_world)
    collect(tmp_path / "parts", config, episodes=3, open_world=open_point_world)
    collect(tmp_path / "parts", config, episodes=7, resume=True, open_world=open_point_world)
    tables = []
    for name in ("whole", "parts"):
        rows: list[tuple[int, int]] = []
        for segment in Dataset.open(tmp_path / name).snapshot().segments:
            table = segment.episode_table()
            rows += zip(table.index.tolist(), table.numbers("scenario").tolist(), strict=True)
        tables.append(sorted(rows))
    assert tables[0] == tables[1] == list(enumerate([7, 1, 2, 7, 1, 2, 7]))


def test_a_route_off_the_lanes_costs_its_own_episodes_alone(folder, tmp_path):
    text = YAML.replace("[150.0, 1.75, 0.2]", "[150.0, 90.0]")
    text = text.replace("town: Town01", "xodr: maps/straight.xodr")
    text = text.replace("[[0, 0], [10, 0]]", "[[20, 1.75], [80, 1.75]]")
    config = CollectConfig(scenario=ScenarioConfig(file=str(write(folder, text))), min_free_mb=0)
    report = collect(tmp_path / "d", config, episodes=6)
    assert [(skipped.index, skipped.reason) for skipped in report.tally.skipped] == [
        (0, "no_route"),
        (3, "no_route"),
    ]
    assert "waypoint 2 (150, 90) is more than 5 m" in report.tally.skipped[0].error
    assert (report.tally.episodes, report.missing) == (4, "2 episodes")


def test_an_evaluation_names_the_route_of_each_episode(folder):
    config = EvaluateConfig(scenario=ScenarioConfig(file=str(write(folder, YAML))), episodes=4)
    report = evaluate("expert", config, open_world=open_point_world)
    assert [row["scenario"] for row in report.document()["rows"]] == [7, 1, 2, 7]
    assert "3 scenarios in turn (7, 1, 2), 4 episodes of " in report.summary()


def test_generated_networks_in_files_are_those_of_their_number(folder):
    pytest.importorskip("carla")
    world = RoadWorld(RoadConfig())
    (setting,) = read_scenarios(
        write(folder, "avtd3_scenarios: 1\nroutes: [{network: {kind: loop, number: 9}, npcs: 0}]")
    )
    assert {world.reset(setting, seed).town for seed in (0, 1, 8)} == {"loop-000009"}
    assert "loop-000009" in generate_network("loop", 9)
    world.close()


def test_every_error_is_one_of_ours(folder):
    """Reading a truncated file raises an error of avtd3, wherever it is truncated."""
    data = XML.encode()
    for stop in range(0, len(data), 37):
        (folder / "cut.xml").write_bytes(data[:stop])
        with pytest.raises(Avtd3Error):
            read_scenarios(folder / "cut.xml")
