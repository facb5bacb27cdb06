"""What the recorder writes down, step by step, and that collections store it."""

import dataclasses

import pytest

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.driving.driving_env import DrivingEnvironment, EventRecorder
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.evaluator import EvaluateConfig, Evaluator
from avtd3.collect.leaderboard import TABLES, score_route
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.store.dataset import Dataset
from avtd3.store.errors import WorldError
from avtd3.tests.collect.plain import CRUISE
from avtd3.tests.collect.point_world import PointWorld, make_frame, open_point_world

FACTS = dataclasses.replace(CRUISE, progress_m=0.5, speed_mps=5.0, lateral_m=-8.5)
SHORT = ScenarioConfig(route_length_m=30.0, time_limit_s=6.0)


def record(*steps, length_m=100.0, facts=FACTS):
    """Events of steps given as (reason, best_m, frame values)."""
    recorder = EventRecorder(length_m, 0.5, make_frame(speed_mps=5.0))
    for number, (reason, best_m, values) in enumerate(steps, start=1):
        frame = make_frame(frame_id=number, x_m=best_m, **{"speed_mps": 5.0, **values})
        recorder.record(frame, facts, reason, best_m, 10.05)
    return recorder.events()


def recorded(events):
    return [(event.step, event.kind, event.value) for event in events]


def test_an_uneventful_drive_records_its_route():
    events = record(("", 1.0, {}), ("", 2.0, {}))
    assert recorded(events) == [(0, "route", 100.0), (1, "completion", 2.0)]
    assert (events[-1].x_m, events[-1].y_m) == (2.0, 0.0)


def test_before_the_first_step_nothing_is_recorded():
    assert record() == ()


@pytest.mark.parametrize(
    ("reason", "kind", "value"),
    [
        ("off_route", "route_deviation", 8.5),
        ("stuck", "blocked", 10.05),
        ("time_limit", "timeout", 0.1),
        ("goal", "goal", 0.0),
    ],
)
def test_ends_are_events(reason, kind, value):
    events = record(("", 1.0, {}), (reason, 2.0, {}))
    assert recorded(events)[1:-1] == [(1, kind, pytest.approx(value))]


def test_a_collision_says_what_was_hit_and_how_fast():
    events = record(
        ("", 1.0, {"speed_mps": 7.0}),
        ("collision", 1.2, {"speed_mps": 0.0, "collision": "vehicle.audi.tt"}),
    )
    assert recorded(events)[1:-1] == [(1, "collision", 7.0)]
    assert events[1].subject == "vehicle.audi.tt"
    (stood,) = record(("collision", 0.5, {"speed_mps": 0.0, "collision": "vehicle"}))[1:-1]
    assert stood.value == 5.0  # it still moved in the frame before


def test_a_collision_that_is_reported_late_is_an_event_of_its_own_frame():
    """After the impact the car may stand, which would not count as its fault."""
    still = {"speed_mps": 0.0}
    events = record(
        ("", 1.0, {"speed_mps": 7.0}),
        ("", 1.2, still),
        ("", 1.2, still),
        ("collision", 1.2, {**still, "collision": "static", "collision_frame_id": 2}),
    )
    assert recorded(events)[1:-1] == [(1, "collision", 7.0)]
    assert events[1].x_m == 1.2
    # Before the first step there is none; and a frame of the future is this one.
    for frame_id, found in ((0, (0, "collision", 7.0)), (9, (0, "collision", 7.0))):
        values = {"speed_mps": 7.0, "collision": "static", "collision_frame_id": frame_id}
        assert recorded(record(("collision", 1.0, values)))[1:-1] == [found]


def test_red_lights_and_other_controls_are_events():
    events = record(
        ("", 1.0, {"other_control": True}),
        ("", 2.0, {"ran_red_light": True}),
        ("", 3.0, {"other_control": True}),
    )
    assert recorded(events)[1:-1] == [(0, "other_control", 2.0), (1, "red_light", 5.0)]


def test_stretches_outside_the_lanes_are_one_event_each():
    events = record(
        ("", 1.0, {}),
        ("", 2.0, {"wrong_way": True}),
        ("", 3.5, {"wrong_way": True}),
        ("", 4.5, {"wrong_way": True, "off_road": True}),
        ("", 5.0, {}),
        ("", 6.0, {"wrong_way": True}),
    )
    assert recorded(events)[1:-1] == [
        (1, "wrong_way", 2.5),
        (3, "off_road", 1.0),
        (5, "wrong_way", 1.0),
    ]


@pytest.mark.parametrize(
    ("lateral_m", "heading_rad", "kinds"),
    [
        (0.5, 0.2, []),
        (-1.7, 0.0, []),
        (-1.8, 0.0, ["wrong_way"]),
        (0.0, 3.1, ["wrong_way"]),
    ],
)
def test_who_follows_the_routes_lane_is_in_no_wrong_one(lateral_m, heading_rad, kinds):
    facts = dataclasses.replace(FACTS, lateral_m=lateral_m, heading_rad=heading_rad)
    events = record(("", 1.0, {"wrong_way": True}), facts=facts)
    assert [event.kind for event in events[1:-1]] == kinds


def test_events_lie_in_the_order_of_their_steps():
    events = record(
        ("", 1.0, {"wrong_way": True}),
        ("", 2.0, {"wrong_way": True, "lane_invasions": 2}),
        ("", 3.0, {}),
    )
    assert recorded(events)[1:-1] == [(0, "wrong_way", 1.5), (1, "lane_invasion", 2.0)]
    assert [event.step for event in events] == sorted(event.step for event in events)


def collected(path, **options):
    config = CollectConfig(driver="1:expert,1:random", scenario=SHORT)
    collect(path, config, **{"open_world": open_point_world, "episodes": 6, **options})
    return Dataset.open(path)


def episodes(dataset):
    for segment in dataset.snapshot().segments:
        table, events = segment.episode_table(), segment.events()
        assert events is not None
        for number in range(segment.episodes):
            yield table, number, events.of_episode(number)


def test_every_collected_episode_has_its_events(tmp_path):
    ends = {"goal": "goal", "time_limit": "timeout", "off_route": "route_deviation"}
    seen = set()
    for table, number, events in episodes(collected(tmp_path / "d")):
        kinds = [event.kind for event in events]
        assert (kinds[0], kinds[-1]) == ("route", "completion")
        assert events[-1].step == table.length[number] - 1
        reason = table.end_reason[number]
        seen.add(reason)
        if reason in ends:
            assert kinds[-2] == ends[reason]
    assert "goal" in seen


def test_an_episode_cut_by_a_failing_world_keeps_the_events_up_to_there(tmp_path):
    with pytest.raises(WorldError):
        collected(tmp_path / "d", open_world=lambda settings, worker: PointWorld(fail_at=20))
    table, number, events = list(episodes(Dataset.open(tmp_path / "d")))[-1]
    assert (table.end_reason[number], table.length[number]) == ("world_error", 19)
    assert (events[0].kind, events[-1].kind, events[-1].step) == ("route", "completion", 18)


def test_an_episode_cut_by_a_stop_keeps_its_events(tmp_path):
    asked = iter(range(1000))
    dataset = collected(tmp_path / "d", should_stop=lambda: next(asked) > 25)
    table, number, events = list(episodes(dataset))[-1]
    assert table.end_reason[number] == "collector_stop"
    assert (events[-1].kind, events[-1].step) == ("completion", table.length[number] - 1)


def test_driving_the_stored_actions_again_gives_the_stored_events(tmp_path):
    environment = DrivingEnvironment(PointWorld(), TaskConfig(), SHORT.resolve(), ExpertConfig())
    for segment in collected(tmp_path / "d").snapshot().segments:
        table, actions, stored = segment.episode_table(), segment.read("action"), segment.events()
        assert stored is not None
        for number in range(segment.episodes):
            environment.reset(int(table.seed[number]))
            start = int(table.offset[number])
            for action in actions[start : start + int(table.length[number])]:
                environment.step(action)
            assert environment.events() == stored.of_episode(number)
            score = score_route(stored.of_episode(number), TABLES["leaderboard-2.1"])
            assert score is not None
            is_goal = table.end_reason[number] == "goal"
            assert (score.completion == 100.0) == is_goal


def test_an_examination_has_a_score_for_each_episode():
    environment = DrivingEnvironment(PointWorld(), TaskConfig(), SHORT.resolve(), ExpertConfig())
    evaluator = Evaluator(environment, EvaluateConfig(scenario=SHORT), "random")
    score = evaluator.score(0, lambda: False)
    assert score is not None
    assert score.route == score_route(environment.events(), TABLES["leaderboard-2.1"])
    again = dataclasses.replace(EvaluateConfig(scenario=SHORT), penalties="leaderboard-2.0")
    old = Evaluator(environment, again, "random").score(0, lambda: False)
    assert old is not None
    assert old.route is not None
    assert old.route.version == "leaderboard-2.0"
