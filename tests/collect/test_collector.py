import dataclasses
import json
import math

import numpy as np
import pytest

from avtd3.collect import collector as loop
from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.drivers import WanderingDriver
from avtd3.collect.driving.reward import RewardConfig
from avtd3.collect.driving.task import DrivingTask, ObservationConfig, TaskConfig
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.mixture import DriverPool
from avtd3.collect.plan import training_seed
from avtd3.collect.reports import CollectProgress
from avtd3.collect.worlds import open_environment
from avtd3.store.dataset import Dataset
from avtd3.store.errors import CheckpointError, ConfigError, SpecError, StorageError, WorldError
from avtd3.store.spec import ImageSpec
from avtd3.tests.collect.point_world import PointWorld

SHORT = ScenarioConfig(route_length_m=20.0, time_limit_s=5.0)
CONFIG = CollectConfig(scenario=SHORT, min_free_mb=0, name="test")
COLUMNS = ("frames", "vector", "action", "reward", "reward_terms", "terminated", "truncated")


def point_world(settings, worker):
    return PointWorld()


def gather(path, config=CONFIG, **options):
    return collect(path, config, open_world=point_world, **options)


def episodes(path):
    """Every episode's index to its columns and its row of the table."""
    found = {}
    for segment in Dataset.open(path).snapshot().segments:
        table, data = segment.episode_table(), {name: segment.read(name) for name in COLUMNS}
        for e in range(segment.episodes):
            first, count = int(table.offset[e]), int(table.length[e])
            rows = {
                name: value[first + e :][: count + 1]
                if name in ("frames", "vector")
                else value[first:][:count]
                for name, value in data.items()
            }
            assert int(table.index[e]) not in found, "an episode is there twice"
            found[int(table.index[e])] = (rows, table.row(e))
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for index, (rows, row) in one.items():
        for name in COLUMNS:
            np.testing.assert_array_equal(rows[name], other[index][0][name])
        for name in ("seed", "driver", "end_reason", "town", "episode_return"):
            assert row[name] == other[index][1][name]


def test_episodes_are_written_as_they_were_driven(tmp_path):
    report = gather(tmp_path / "d", episodes=3)
    found = episodes(tmp_path / "d")
    assert sorted(found) == [0, 1, 2]
    rows, row = found[1]
    assert row["seed"] == training_seed(0, 1)
    assert (row["driver"], row["world"], row["scenario"]) == ("expert", "point", 0)
    assert row["end_reason"] == "goal"
    assert rows["terminated"].tolist() == [False] * (row["length"] - 1) + [True]
    assert not rows["truncated"].any()
    np.testing.assert_allclose(rows["reward"], rows["reward_terms"].sum(axis=1), rtol=1e-5)
    assert report.tally.episodes == 3
    assert report.tally.steps == sum(r["length"] for _, r in found.values())
    returns = [r["episode_return"] for _, r in found.values()]
    assert report.tally.return_mean == pytest.approx(np.mean(returns), rel=1e-6)


def test_the_report_has_the_keys_that_scripts_rely_on(tmp_path):
    document = gather(tmp_path / "d", episodes=1).document()
    wanted = {"dataset", "steps", "episodes", "segments", "seconds", "steps_per_second"}
    assert wanted <= document.keys()
    assert document["segments"] == 1
    assert document["end_reasons"] == {"goal": 1}
    json.dumps(document, allow_nan=False)


def test_the_summary_is_for_people(tmp_path):
    text = gather(tmp_path / "d", episodes=1).summary()
    assert "1 episode," in text
    assert "1 goal" in text


def test_steps_are_reached_with_whole_episodes(tmp_path):
    report = gather(tmp_path / "d", steps=150)
    lengths = [row["length"] for _, row in episodes(tmp_path / "d").values()]
    assert report.tally.steps == sum(lengths) >= 150
    assert sum(lengths[:-1]) < 150
    assert gather(tmp_path / "e", dataclasses.replace(CONFIG, steps=10)).tally.episodes == 1


def test_provenance_says_where_a_segment_comes_from(tmp_path):
    report = gather(tmp_path / "d", episodes=1)
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    provenance = segment.provenance
    assert provenance["config"]["driver"] == "expert"
    assert provenance["config"]["task"]["reward"]["collision"] == 50.0
    assert provenance["plan_digest"] == report.plan_digest
    assert len(provenance["config_digest"]) == 64
    assert "point" in provenance["simulator"]
    assert "test" in segment.id


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    config = dataclasses.replace(CONFIG, driver="1:expert+noise,1:random")
    gather(tmp_path / "a", config, episodes=4)
    gather(tmp_path / "b", config, episodes=4)
    assert_same(episodes(tmp_path / "a"), episodes(tmp_path / "b"))
    gather(tmp_path / "c", dataclasses.replace(config, seed=1), episodes=4)
    other = episodes(tmp_path / "c")
    assert all(
        row["seed"] != other[i][1]["seed"] for i, (_, row) in episodes(tmp_path / "a").items()
    )


def test_mixtures_are_recorded_per_episode(tmp_path):
    config = dataclasses.replace(CONFIG, driver="1:expert+gaussian=0.1,1:random")
    gather(tmp_path / "d", config, episodes=12)
    rows = [row for _, row in episodes(tmp_path / "d").values()]
    assert {row["driver"] for row in rows} == {"expert+gaussian=0.1", "random"}
    assert {row["driver"]: round(float(row["exploration_noise"]), 3) for row in rows} == {
        "expert+gaussian=0.1": 0.1,
        "random": 0.0,
    }


def test_the_same_plan_twice_is_refused_and_resumed_without_duplicates(tmp_path):
    gather(tmp_path / "d", episodes=2)
    with pytest.raises(ConfigError, match=r"already has 2 episodes .* --resume .* --seed"):
        gather(tmp_path / "d", episodes=4)
    report = gather(tmp_path / "d", episodes=4, resume=True)
    assert report.tally.episodes == 2
    assert report.held_steps > 0
    gather(tmp_path / "whole", episodes=4)
    assert_same(episodes(tmp_path / "d"), episodes(tmp_path / "whole"))
    assert gather(tmp_path / "d", episodes=4, resume=True).tally.episodes == 0


def test_other_plans_share_a_dataset(tmp_path):
    first = gather(tmp_path / "d", episodes=1)
    second = gather(tmp_path / "d", dataclasses.replace(CONFIG, driver="random"), episodes=1)
    third = gather(tmp_path / "d", dataclasses.replace(CONFIG, seed=9), episodes=1)
    assert len({first.plan_digest, second.plan_digest, third.plan_digest}) == 3
    # What does not shape the data does not make another plan.
    same = dataclasses.replace(CONFIG, workers=3, steps=5, name="other")
    with pytest.raises(ConfigError, match="--resume"):
        gather(tmp_path / "d", same, episodes=1)


def test_resume_counts_the_steps_that_are_there(tmp_path):
    gather(tmp_path / "d", steps=100)
    before = episodes(tmp_path / "d")
    report = gather(tmp_path / "d", steps=300, resume=True)
    after = episodes(tmp_path / "d")
    assert sorted(after) == list(range(len(after)))
    assert_same({i: after[i] for i in before}, before)
    assert report.tally.steps + report.held_steps >= 300
    assert gather(tmp_path / "d", steps=300, resume=True).tally.steps == 0


class StopAfter:
    def __init__(self, calls):
        self.calls = calls

    def __call__(self):
        self.calls -= 1
        return self.calls < 0


def test_a_stop_publishes_the_running_episode_as_truncated(tmp_path):
    report = gather(tmp_path / "d", episodes=50, should_stop=StopAfter(100))
    found = episodes(tmp_path / "d")
    rows, row = found[max(found)]
    assert row["end_reason"] == "collector_stop"
    assert rows["truncated"][-1]
    assert not rows["terminated"][-1]
    assert report.interrupted
    assert report.document()["interrupted"]
    # It counts as present: the plan continues after it.
    gather(tmp_path / "d", episodes=max(found) + 2, resume=True)
    assert len(episodes(tmp_path / "d")) == max(found) + 2


def test_seconds_end_a_collection(tmp_path):
    report = gather(tmp_path / "d", seconds=0.0)
    assert report.tally.steps == 0
    assert not report.interrupted


def test_progress_is_reported(tmp_path):
    seen: list[CollectProgress] = []
    gather(tmp_path / "d", episodes=3, on_progress=seen.append)
    assert seen[-1].fraction == 1.0
    assert all(0.0 <= report.fraction <= 1.0 for report in seen)
    assert "3 episodes" in seen[-1].line()
    assert seen[-1].tally.segments == 1
    assert seen[-1].disk_free_bytes > 0


def test_what_the_world_has_to_say_is_reported(tmp_path):
    class Flat(PointWorld):
        notices: tuple[str, ...] = ("hills were removed", "3 vehicles found no room")

    seen: list[CollectProgress] = []
    collect(
        tmp_path / "d",
        CONFIG,
        episodes=1,
        open_world=lambda *_: Flat(),
        on_progress=seen.append,
    )
    assert "hills were removed; 3 vehicles" in seen[-1].line()


def test_a_failing_world_keeps_what_was_driven(tmp_path):
    world = PointWorld(fail_at=100)
    with pytest.raises(WorldError, match="failed as asked"):
        collect(tmp_path / "d", CONFIG, episodes=9, open_world=lambda *_: world)
    found = episodes(tmp_path / "d")
    assert sum(row["length"] for _, row in found.values()) == 99
    assert found[max(found)][1]["end_reason"] == "world_error"
    assert found[max(found)][0]["truncated"][-1]
    assert world.closed


def test_data_with_commands_and_data_without_do_not_mix(tmp_path):
    task = TaskConfig(observation=ObservationConfig(command=True))
    commanded = dataclasses.replace(CONFIG, task=task)
    gather(tmp_path / "d", commanded, episodes=1)
    spec = Dataset.open(tmp_path / "d").spec
    assert spec.vector_names[-4:] == tuple(
        f"command_{name}" for name in ("follow", "left", "right", "straight")
    )
    assert spec.vector_size == 27
    with pytest.raises(SpecError, match="vector"):
        gather(tmp_path / "d", episodes=1)
    assert commanded.plan_document() != CONFIG.plan_document()


def test_a_world_with_another_camera_than_the_dataset_is_refused(tmp_path):
    gather(tmp_path / "d", episodes=1)

    class Wide(PointWorld):
        image_shape = (1, 8, 16)

    with pytest.raises(SpecError, match="image"):
        collect(tmp_path / "d", CONFIG, episodes=1, open_world=lambda *_: Wide())
    other = TaskConfig(reward=RewardConfig(collision=60.0))
    assert gather(tmp_path / "d", dataclasses.replace(CONFIG, task=other), episodes=1)


def test_a_nearly_full_disk_is_an_error_before_the_episode(tmp_path):
    with pytest.raises(StorageError, match=r"MB free, less than .* --resume"):
        gather(tmp_path / "d", dataclasses.replace(CONFIG, min_free_mb=10**9), episodes=1)


class FakePolicy:
    version, digest, updates, action_limit, stack_stride = 3, "ab" * 32, 0, 1.0, 1
    spec = DrivingTask(TaskConfig(), 0.05).spec(ImageSpec(height=8, width=8))

    def act(self, frames, vector):
        assert frames.shape == (4, 8, 8)
        return np.array((0.0, 0.3), np.float32)


class FakeDirectory:
    """Publishes its first policy after some polls."""

    def __init__(self, path, polls=0, action=None):
        self.path, self.polls, self.warning = path, polls, ""

    def poll(self, current, spec):
        assert spec.vector_size == 23
        self.polls -= 1
        return current or (FakePolicy() if self.polls < 0 else None)


def with_policies(monkeypatch, directory):
    monkeypatch.setattr("avtd3.collect.mixture._open_policy_store", lambda path: directory)
    monkeypatch.setattr(loop, "POLICY_PERIOD_S", 0.0)


def test_policies_are_waited_for_and_recorded(tmp_path, monkeypatch):
    with_policies(monkeypatch, FakeDirectory(tmp_path / "p", polls=3))
    config = dataclasses.replace(CONFIG, driver="policy")
    seen: list[CollectProgress] = []
    gather(tmp_path / "d", config, episodes=2, policies=tmp_path / "p", on_progress=seen.append)
    rows = [row for _, row in episodes(tmp_path / "d").values()]
    assert [row["policy_version"] for row in rows] == [3, 3]
    assert {row["policy_digest"] for row in rows} == {"ab" * 32}
    assert {row["driver"] for row in rows} == {"policy+gaussian=0.1"}
    assert any("waiting for the first policy" in report.line() for report in seen)
    assert "policy 3" in seen[-1].line()
    assert not seen[-1].tally.waiting
    assert not any("limited" in report.line() for report in seen)


def test_a_limited_policy_is_reported_once_an_episode(tmp_path, monkeypatch):
    with_policies(monkeypatch, FakeDirectory(tmp_path / "p"))
    monkeypatch.setattr(FakePolicy, "action_limit", 0.6)
    config = dataclasses.replace(CONFIG, driver="policy")
    lines: list[str] = []

    def show(progress):
        lines.append(progress.line())

    report = gather(tmp_path / "d", config, episodes=3, policies=tmp_path / "p", on_progress=show)
    expected = [f"episode {n} with actions limited to 60% of their range" for n in (1, 2, 3)]
    assert [any(text in line for line in lines) for text in expected] == [True] * 3
    assert report.document()["limited_episodes"] == 3
    assert "3 episodes with actions limited by the learner" in report.summary()
    actions = [rows["action"] for rows, _ in episodes(tmp_path / "d").values()]
    assert np.abs(np.concatenate(actions)).max() <= np.float32(0.6)


def test_waiting_for_a_policy_holds_no_data_back_and_can_be_stopped(tmp_path, monkeypatch):
    with_policies(monkeypatch, FakeDirectory(tmp_path / "p", polls=10**9))
    config = dataclasses.replace(CONFIG, driver="1:expert,1:policy")
    waited = []

    def note(report):
        if report.tally.waiting:
            waited.append(len(Dataset.open(tmp_path / "d").segment_ids()))

    report = gather(
        tmp_path / "d",
        config,
        episodes=50,
        policies=tmp_path / "p",
        on_progress=note,
        should_stop=lambda: bool(waited),
    )
    assert report.interrupted
    assert waited[-1] == min(1, report.tally.episodes)


def test_a_policy_needs_its_directory(tmp_path):
    with pytest.raises(ConfigError, match="--policies"):
        gather(tmp_path / "d", dataclasses.replace(CONFIG, driver="policy"))
    assert not (tmp_path / "d").exists()


def test_actions_that_are_no_numbers_are_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(WanderingDriver, "act", lambda *_: np.array((math.nan, 0.0), np.float32))
    config = dataclasses.replace(CONFIG, driver="random")
    with pytest.raises(WorldError, match=r"driver random returned \[nan, 0.0\] in episode seed"):
        gather(tmp_path / "d", config, episodes=1)
    assert Dataset.open(tmp_path / "d").segment_ids() == []


def bad_answer(action):
    if isinstance(action, Exception):
        raise action
    return action


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    "answer",
    [
        np.array((math.nan, 0.0), np.float32),
        np.array((math.inf, 0.0), np.float32),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        MemoryError(),
        CheckpointError("policy 1 returned nan"),
        IndexError("no such layer"),
    ],
    ids=repr,
)
def test_a_policy_that_cannot_act_is_replaced_by_the_one_before(
    tmp_path, monkeypatch, answer, after
):
    """The newest policy drives some steps, then answers wrong; the one before drove well."""

    class Two(FakeDirectory):
        rejected: tuple[str, ...] = ()

        def poll(self, current, spec):
            if current is None:
                return Good()
            return current if self.rejected or calls[0] < 20 else Bad()

        def reject(self, policy, reason):
            assert policy.version == 4
            self.rejected = (*self.rejected, reason)

    calls = [0]

    class Good(FakePolicy):
        def act(self, frames, vector):
            calls[0] += 1
            return super().act(frames, vector)

    class Bad(FakePolicy):
        version, digest, count = 4, "cd" * 32, 0

        def act(self, frames, vector):
            self.count += 1
            return super().act(frames, vector) if self.count <= after else bad_answer(answer)

    directory = Two(tmp_path / "p")
    with_policies(monkeypatch, directory)
    config = dataclasses.replace(CONFIG, driver="policy", exploration_noise=0.1 * (after > 0))
    seen: list[CollectProgress] = []
    report = gather(
        tmp_path / "d", config, episodes=4, policies=tmp_path / "p", on_progress=seen.append
    )
    assert (report.failure, report.missing) == ("", "")
    assert len(directory.rejected) == 1
    assert any("policy 4 cannot act" in entry.tally.warning for entry in seen)
    rows = [
        row for _, row in sorted(episodes(tmp_path / "d").values(), key=lambda e: e[1]["index"])
    ]
    kept = [(row["policy_version"], row["length"]) for row in rows if row["policy_version"] == 4]
    assert kept == [(4, after)] * (after > 0)
    assert [row["end_reason"] == "policy_error" for row in rows if row["policy_version"] == 4] == [
        True
    ] * (after > 0)
    assert {row["policy_version"] for row in rows} >= {3}


def test_the_pool_keeps_the_last_good_policy(monkeypatch):
    class Truncated(FakeDirectory):
        def poll(self, current, spec):
            self.warning = "policy 4 is torn" if current else ""
            return super().poll(current, spec)

    with_policies(monkeypatch, Truncated(None))
    with open_environment(CONFIG, point_world) as environment:
        pool = DriverPool(CONFIG.mixture.parse("policy"), environment, None)
    assert pool.policy is None
    polled = [pool.poll() for _ in range(2)]
    assert [policy.version for policy in polled if policy] == [3, 3]
    assert pool.warning == "policy 4 is torn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": "moon"}, "expected one of: road"),
        ({"driver": "nobody"}, "nobody"),
        ({"workers": 0}, "workers"),
        ({"seed": -1}, "seed"),
        ({"exploration_noise": math.nan}, "exploration_noise"),
        ({"min_free_mb": -1}, "min_free_mb"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        CollectConfig(**change)
