"""The leaderboard's score of made-up events, against numbers worked out by hand."""

import math

import pytest

from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.leaderboard import (
    COLLISIONS,
    INFRACTIONS,
    TABLES,
    penalty_table,
    score_route,
    summarise_routes,
)
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.store.errors import ConfigError
from avtd3.store.events import Event
from avtd3.tests.collect.point_world import open_point_world


def event(kind, value=0.0, step=0, subject="", x=0.0, y=0.0):
    return Event(step=step, kind=kind, subject=subject, value=value, x_m=x, y_m=y)


def drive(*events, length=200.0, done=100.0):
    return (event("route", length), *events, event("completion", done, step=99))


def score(*events, version="leaderboard-2.1", **way):
    found = score_route(drive(*events, **way), penalty_table(version))
    assert found is not None
    return found


def hit(subject, speed=5.0, x=0.0):
    return event("collision", speed, step=9, subject=subject, x=x)


def test_nothing_but_way_costs_nothing_but_way():
    half = score()
    assert (half.completion, half.penalty, half.driving_score) == (50.0, 1.0, 50.0)
    assert half.driven_km == pytest.approx(0.1)


def test_the_published_coefficients():
    """Leaderboard 2.1 adds (pedestrian 1.0, vehicle 0.7, layout 0.6), 1.0 and 2.0 multiply."""
    for subject, added, factor in (
        ("walker.pedestrian.0001", 1.0, 0.5),
        ("vehicle.tesla.model3", 0.7, 0.6),
        ("static.wall", 0.6, 0.65),
        ("traffic.traffic_light", 0.6, 0.65),
        ("vehicle", 0.7, 0.6),
    ):
        assert score(hit(subject)).penalty == pytest.approx(1.0 / (1.0 + added))
        assert score(hit(subject), version="leaderboard-1.0").penalty == pytest.approx(factor)
        assert score(hit(subject), version="leaderboard-2.0").penalty == pytest.approx(factor)


def test_several_infractions_by_hand():
    blows = [hit("vehicle.a"), hit("vehicle.b", x=50.0), hit("static.pole", x=100.0)]
    assert score(*blows).penalty == pytest.approx(1.0 / (1.0 + 0.7 + 0.7 + 0.6))
    assert score(*blows, version="leaderboard-2.0").penalty == pytest.approx(0.6 * 0.6 * 0.65)
    assert score(*blows).infractions["collisions_vehicle"] == 2


def test_a_car_that_stands_is_not_to_blame_and_a_second_blow_nearby_is_the_first():
    assert score(hit("vehicle", speed=0.05)).penalty == 1.0
    assert score(hit("vehicle"), hit("vehicle", x=4.9)).infractions["collisions_vehicle"] == 1
    assert score(hit("vehicle"), hit("vehicle", x=5.1)).infractions["collisions_vehicle"] == 2
    assert score(hit("static.sidewalk")).penalty == 1.0


def test_a_red_light_costs_what_it_costs_on_the_leaderboard():
    passed = event("red_light", 5.0)
    assert score(passed, passed).penalty == pytest.approx(1.0 / 1.8)
    assert score(passed, passed, version="leaderboard-1.0").penalty == pytest.approx(0.7 * 0.7)
    assert score(passed).infractions["red_light"] == 1


def test_metres_outside_the_lanes_are_taken_off_the_way():
    found = score(event("off_road", 10.0, 1), event("wrong_way", 15.0, 5), hit("vehicle"))
    assert found.outside_m == 25.0
    assert found.penalty == pytest.approx((1.0 - 0.25) / 1.7)
    assert found.infractions["outside_route_lanes"] == 2
    assert score(event("off_road", 500.0)).penalty == 0.0
    assert score(event("off_road", 0.0), done=0.0).driving_score == 0.0


@pytest.mark.parametrize(
    ("done", "length", "goal", "completion"),
    [
        (57.0, 60.0, True, 100.0),
        (57.0, 60.0, False, 95.0),
        (199.0, 200.0, False, 100.0),
        (198.0, 200.0, False, 99.0),
        (2985.0, 3000.0, False, 99.5),
        (210.0, 200.0, False, 100.0),
    ],
)
def test_a_route_is_complete_at_its_goal_or_close_to_its_end(done, length, goal, completion):
    events = [event("goal", step=98)] if goal else []
    assert score(*events, done=done, length=length).completion == pytest.approx(completion)


def test_ends_are_counted_and_cost_nothing_but_the_way():
    found = score(event("blocked", 10.0, 50), event("timeout", 60.0, 50))
    assert found.penalty == 1.0
    assert found.row()["infractions"] == {"route_timeout": 1, "vehicle_blocked": 1}
    assert score(event("route_deviation", 8.2)).row()["infractions"] == {"route_dev": 1}


@pytest.mark.parametrize(
    "events",
    [
        (),
        (event("route", 10.0),),
        (event("completion", 10.0),),
        (event("route", 0.0), event("completion", 0.0)),
        (hit("vehicle"),),
    ],
)
def test_episodes_without_a_record_have_no_score(events):
    assert score_route(events, TABLES["leaderboard-2.1"]) is None


def test_unknown_kinds_are_skipped():
    assert score(event("sneeze", 3.0)).driving_score == 50.0


def test_all_together_are_means_and_rates_by_the_kilometre():
    found = summarise_routes([score(hit("vehicle")), score(done=200.0), score()])
    assert found["penalties"] == "leaderboard-2.1"
    assert found["driving_score"] == pytest.approx((50.0 / 1.7 + 100.0 + 50.0) / 3)
    assert found["completion_percent"] == pytest.approx(200.0 / 3)
    assert found["infraction_penalty"] == pytest.approx((1.0 / 1.7 + 2.0) / 3)
    assert found["driven_km"] == pytest.approx(0.4)
    assert found["infractions_per_km"]["collisions_vehicle"] == pytest.approx(2.5)
    assert found["infractions_per_km"].keys() == set(INFRACTIONS)
    assert "stop_infraction" in found["not_observed"]
    nowhere = summarise_routes([score(hit("vehicle"), done=0.0)])
    assert math.isfinite(nowhere["infractions_per_km"]["collisions_vehicle"])


def test_every_table_prices_every_collision_between_nothing_and_all():
    for version, table in TABLES.items():
        assert table.version == version
        for name in COLLISIONS:
            prices = [table.penalty({name: count}, 0.0) for count in range(4)]
            assert prices[0] == 1.0
            assert prices == sorted(prices, reverse=True)
            assert prices[-1] > 0.0


def test_an_unknown_version_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"penalties is '3', expected one of: leaderboard-1\.0"):
        EvaluateConfig(penalties="3")


def test_an_evaluation_reports_the_leaderboards_scores():
    setting = ScenarioConfig(route_length_m=30.0, time_limit_s=6.0)
    config = EvaluateConfig(scenario=setting, episodes=3)
    expert = evaluate("expert", config, open_world=open_point_world)
    found = expert.document()["scores"]
    assert (found["driving_score"], found["episodes"]) == (100.0, 3)
    assert found["penalties"] == "leaderboard-2.1"
    assert expert.document()["rows"][0]["driving_score"] == 100.0
    assert "driving score   100.0 of 100 (CARLA leaderboard-2.1)" in expert.summary()
    chance = evaluate("random", config, open_world=open_point_world).document()
    assert chance["scores"]["driving_score"] < found["driving_score"]
    for row in chance["rows"]:
        assert row["driving_score"] == pytest.approx(
            row["completion_percent"] * row["infraction_penalty"]
        )
