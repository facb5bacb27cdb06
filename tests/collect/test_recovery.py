import dataclasses

import pytest
import yaml

from avtd3.collect.collector import CollectConfig, CollectJob, collect, run_job
from avtd3.collect.driving.task import DrivingTask, TaskConfig
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import Amount, Share, digest, lock_plan
from avtd3.collect.recovery import PROGRESS_STEPS, Recovery, RecoveryConfig, Skipped
from avtd3.collect.reports import CollectProgress
from avtd3.collect.worlds import open_world
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, RoadError, RouteError, WorldLost
from avtd3.store.spec import ImageSpec
from avtd3.tests.collect.lossy_world import LossyWorld, open_second_worker_alone_lossy
from avtd3.tests.collect.test_collector import assert_same, episodes

CONFIG = CollectConfig(
    scenario=ScenarioConfig(route_length_m=20.0, time_limit_s=5.0), min_free_mb=0, name="test"
)
SPEC = DrivingTask(TaskConfig(), 0.05).spec(ImageSpec(height=8, width=8))
EXAM = EvaluateConfig(scenario=CONFIG.scenario, episodes=3)


def gather(path, world, config=CONFIG, **options):
    return collect(path, config, open_world=lambda *_: world, **options)


def endings(path):
    return {
        index: (int(row["length"]), str(row["end_reason"]))
        for index, (_, row) in sorted(episodes(path).items())
    }


def test_an_episode_that_loses_its_world_is_kept_as_truncated_with_the_reason(tmp_path):
    world = LossyWorld(steps={40: "tick_timeout"})
    seen: list[CollectProgress] = []
    report = gather(tmp_path / "d", world, episodes=4, on_progress=seen.append)
    found = endings(tmp_path / "d")
    cut = [index for index, (_, reason) in found.items() if reason == "tick_timeout"]
    assert sorted(found) == [0, 1, 2, 3]
    assert len(cut) == 1
    assert sum(length for index, (length, _) in found.items() if index <= cut[0]) == 39
    assert episodes(tmp_path / "d")[cut[0]][0]["truncated"][-1]
    assert (report.failure, report.missing, report.tally.skipped) == ("", "", ())
    assert report.tally.end_reasons["tick_timeout"] == 1
    expected = (
        f"simulator lost 1 time, episode {cut[0]} lost its world (tick_timeout): lost at step 40"
    )
    assert any(expected in line.line() for line in seen)
    assert report.document()["losses"] == 1
    assert world.closed


def test_an_episode_lost_before_its_first_step_is_begun_again_and_is_the_same(tmp_path):
    world = LossyWorld(resets={1: "server_lost", 2: "client_crash"}, steps={1: "sensor_stall"})
    config = dataclasses.replace(CONFIG, recovery=RecoveryConfig(attempts=4))
    report = gather(tmp_path / "d", world, config, episodes=3)
    gather(tmp_path / "clean", LossyWorld(), episodes=3)
    assert world.resets == 3 + 3
    assert world.seeds[:4] == world.seeds[:1] * 4
    assert (report.failure, report.tally.episodes) == ("", 3)
    assert_same(episodes(tmp_path / "d"), episodes(tmp_path / "clean"))


def test_an_episode_that_no_server_survives_is_skipped_listed_and_resumed(tmp_path):
    healthy = LossyWorld()
    gather(tmp_path / "clean", healthy, episodes=5)
    world = LossyWorld(seeds=[healthy.seeds[2]])
    report = gather(tmp_path / "d", world, episodes=5)
    skipped = Skipped(2, "client_crash", "this road kills every server")
    assert report.tally.skipped == (skipped,)
    assert report.missing == "1 episode"
    assert "--resume" in report.failure
    assert "1 skipped" in report.failure
    assert "skipped episode 2 (client_crash): this road kills every server" in report.summary()
    assert report.document()["skipped"] == [dataclasses.asdict(skipped)]
    assert world.resets == 4 + 3
    assert sorted(episodes(tmp_path / "d")) == [0, 1, 3, 4]
    again = gather(tmp_path / "d", LossyWorld(), episodes=5, resume=True)
    assert again.failure == ""
    assert_same(episodes(tmp_path / "d"), episodes(tmp_path / "clean"))


def test_an_episode_without_a_route_is_skipped_at_once_and_listed(tmp_path):
    healthy = LossyWorld()
    gather(tmp_path / "clean", healthy, episodes=4)
    world = LossyWorld(routeless=[healthy.seeds[1]])
    report = gather(tmp_path / "d", world, episodes=4)
    skipped = Skipped(1, "no_route", "no way leads there")
    assert (report.tally.skipped, report.missing) == ((skipped,), "1 episode")
    assert "skipped episode 1 (no_route): no way leads there" in report.summary()
    assert (world.resets, report.document()["losses"]) == (4, 0)
    assert sorted(episodes(tmp_path / "d")) == [0, 2, 3]


def test_roads_without_any_route_end_the_collection_and_keep_what_there_is(tmp_path):
    healthy = LossyWorld()
    gather(tmp_path / "clean", healthy, episodes=20)
    world = LossyWorld(routeless=healthy.seeds[2:])
    with pytest.raises(RouteError, match="9 failures in a row, the last: no way leads there"):
        gather(tmp_path / "d", world, episodes=20)
    assert sorted(episodes(tmp_path / "d")) == [0, 1]


class TwoMaps(LossyWorld):
    """Has scenarios of which some have a map that is refused."""

    def __init__(self, refused):
        super().__init__()
        self.refused = refused

    def reset(self, scenario, seed):
        if scenario.number in self.refused:
            self.resets += 1
            raise RoadError(f"map {scenario.number} ends the process")
        return super().reset(scenario, seed)


def write_routes(path, count):
    path.write_text(
        yaml.safe_dump(
            {
                "avtd3_scenarios": 1,
                "routes": [
                    {"id": number, "network": {"kind": "country"}, "length_m": 20.0}
                    for number in range(count)
                ],
            }
        )
    )
    return ScenarioConfig(file=str(path))


@pytest.mark.parametrize("bad", [[0], list(range(11)), [*range(1, 12)]])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_map_that_is_refused_costs_its_own_episodes_only(tmp_path, bad, workers):
    routes = write_routes(tmp_path / "routes.yaml", 12)
    config = dataclasses.replace(CONFIG, scenario=routes)
    shares = [
        Share(amount=Amount(episodes=14), held=frozenset(), held_steps=0, worker=n, workers=workers)
        for n in range(workers)
    ]
    dataset, plan = Dataset.create(tmp_path / "d", SPEC), digest(config.plan_document())
    for share in shares:
        job = CollectJob(
            dataset=dataset.path,
            config=config,
            share=share,
            policies=None,
            open_world=lambda *_: TwoMaps(bad),
            plan_digest=plan,
        )
        with lock_plan(dataset, plan):
            tally = run_job(job, lambda: False, lambda _: None)
        wanted = [index for index in share.indices() if index % 12 in bad]
        assert [entry.index for entry in tally.skipped] == wanted
        assert {entry.reason for entry in tally.skipped} <= {"no_road"}
    assert sorted(episodes(tmp_path / "d")) == [n for n in range(14) if n % 12 not in bad]


def test_maps_of_which_none_can_be_used_end_the_collection(tmp_path):
    routes = write_routes(tmp_path / "routes.yaml", 3)
    config = dataclasses.replace(CONFIG, scenario=routes)
    world = TwoMaps(range(3))
    with pytest.raises(RoadError, match="3 failures in a row, the last: map 2 ends the process"):
        gather(tmp_path / "d", world, config, steps=100)
    one = dataclasses.replace(CONFIG, scenario=write_routes(tmp_path / "one.yaml", 1))
    world = TwoMaps([0])
    with pytest.raises(RoadError, match=r"^map 0 ends the process"):
        gather(tmp_path / "e", world, one, episodes=9)
    assert world.resets == 1


def test_an_evaluation_lists_a_map_that_is_refused(tmp_path):
    routes = write_routes(tmp_path / "routes.yaml", 3)
    config = dataclasses.replace(EXAM, scenario=routes, episodes=6)
    report = evaluate(
        "expert",
        config,
        gif=tmp_path / "a.gif",
        open_world=lambda *_: TwoMaps([0]),
    )
    assert [(entry.index, entry.reason) for entry in report.skipped] == [
        (0, "no_road"),
        (3, "no_road"),
    ]
    assert len(report.scores) == 4
    assert (tmp_path / "a.gif").exists()


def test_an_evaluation_lists_what_has_no_route():
    healthy = LossyWorld()
    examine(healthy)
    report = examine(LossyWorld(routeless=[healthy.seeds[-1]]))
    assert [(episode.index, episode.reason) for episode in report.skipped] == [(2, "no_route")]
    assert len(report.scores) == 2


def test_a_plan_of_steps_continues_with_other_episodes_than_a_skipped_one(tmp_path):
    healthy = LossyWorld()
    gather(tmp_path / "clean", healthy, steps=200)
    report = gather(tmp_path / "d", LossyWorld(seeds=[healthy.seeds[0]]), steps=200)
    assert [episode.index for episode in report.tally.skipped] == [0]
    assert (report.failure, report.missing) == ("", "")
    assert report.tally.steps >= 200


@pytest.mark.parametrize(
    ("world", "resets", "message"),
    [
        # Two episodes are tried three times and skipped, then the third: nine failures in a row.
        (LossyWorld(resets=dict.fromkeys(range(1, 99), "server_lost")), 9, "9 failures in a row"),
        (LossyWorld(resets={1: "server_away"}), 1, "lost at reset 1"),
    ],
)
def test_a_simulator_that_stays_away_ends_its_worker(tmp_path, world, resets, message):
    report = gather(tmp_path / "d", world, episodes=3)
    assert world.resets == resets
    assert report.tally.episodes == 0
    assert "worker 0 stopped: " in report.failure
    assert message in report.failure
    assert "3 episodes missing" in report.failure
    assert report.document()["lost_workers"]
    assert world.closed
    assert gather(tmp_path / "d", LossyWorld(), episodes=3, resume=True).failure == ""
    assert sorted(episodes(tmp_path / "d")) == [0, 1, 2]


def test_a_server_that_never_lives_for_a_second_does_not_fill_the_dataset(tmp_path):
    world = LossyWorld(steps=dict.fromkeys(range(3, 10**4, 3), "server_lost"))
    report = gather(tmp_path / "d", world, episodes=100)
    assert "9 failures in a row" in report.failure
    assert list(endings(tmp_path / "d").values()) == [(2, "server_lost")] * 9
    assert report.missing == "91 episodes"


def test_one_failing_server_does_not_stop_the_others(tmp_path):
    config = dataclasses.replace(CONFIG, workers=2)
    report = collect(tmp_path / "d", config, episodes=8, open_world=open_second_worker_alone_lossy)
    assert "worker 1 stopped: lost at reset 2; 3 episodes missing" in report.failure
    assert sorted(endings(tmp_path / "d")) == [0, 1, 2, 3, 4]
    assert gather(tmp_path / "d", LossyWorld(), episodes=8, resume=True).failure == ""
    gather(tmp_path / "clean", LossyWorld(), episodes=8)
    assert_same(episodes(tmp_path / "d"), episodes(tmp_path / "clean"))


def test_a_stop_ends_the_attempts(tmp_path):
    world = LossyWorld(resets=dict.fromkeys(range(1, 99), "server_lost"))
    report = gather(tmp_path / "d", world, episodes=3, should_stop=lambda: world.resets == 2)
    assert (world.resets, report.interrupted, report.failure) == (2, True, "")


def examine(world, **options):
    return evaluate("expert", EXAM, open_world=lambda *_: world, **options)


def test_an_evaluation_drives_a_lost_episode_again_from_its_start():
    clean = examine(LossyWorld())
    report = examine(LossyWorld(resets={1: "server_lost"}, steps={30: "sensor_stall"}))
    assert report.scores == clean.scores
    assert (report.failure, report.skipped, report.interrupted) == ("", (), False)


def test_an_evaluation_skips_and_lists_what_cannot_be_driven():
    healthy = LossyWorld()
    clean = examine(healthy)
    report = examine(LossyWorld(seeds=[healthy.seeds[1]]))
    assert report.scores == (clean.scores[0], clean.scores[2])
    assert [episode.index for episode in report.skipped] == [1]
    assert report.failure == "1 of the episodes skipped"
    assert "skipped episode 1 (client_crash)" in report.summary()
    assert report.document()["skipped"][0]["reason"] == "client_crash"


def test_an_evaluation_whose_server_does_not_come_back_reports_what_was_driven():
    clean = examine(LossyWorld())
    report = examine(LossyWorld(resets={3: "server_away"}))
    assert report.scores == clean.scores[:2]
    assert report.failure == "worker 0 stopped: lost at reset 3"
    with pytest.raises(WorldLost, match="stopped: lost at reset 1"):
        examine(LossyWorld(resets={1: "server_away"}))


def test_a_second_of_driving_restarts_the_count_of_failures():
    recovery = Recovery(RecoveryConfig(attempts=2, failures=3))
    error = WorldLost("gone", "server_lost")
    for index in range(10):
        steps = index * PROGRESS_STEPS
        assert recovery.record_loss(index, error, steps) is None
        assert recovery.record_loss(index, error, steps) == Skipped(index, "server_lost", "gone")
    with pytest.raises(WorldLost, match="3 failures in a row, the last: gone"):
        recovery.record_loss(10, error, steps + PROGRESS_STEPS - 1)


@pytest.mark.parametrize("field", ["attempts", "failures"])
def test_settings_of_the_recovery_are_checked(field):
    with pytest.raises(ConfigError, match=rf"recovery.{field} is 0, expected 1"):
        RecoveryConfig(**{field: 0})


def test_the_built_in_simulator_takes_the_factorys_arguments():
    world = open_world(CONFIG, 3)
    assert world.name == "road"
    world.close()
