"""Collisions again and again, and rewards whose scale changes."""

import numpy as np
import pytest

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.audit.checks import CheckLimits
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

SPEC = EpisodeSpec(vector_names=("x",), action_names=("push",))
SYNC = AuditConfig(scheduler="sync")


def write(path, segments, *, steps=4):
    """Write segments of episodes, each a driver, an end reason and a reward."""
    rng = np.random.default_rng(0)
    with SegmentWriter(Dataset.create(path, SPEC)) as writer:
        for segment in segments:
            for driver, reason, reward in segment:
                first = Observation(vector=rng.normal(size=1).astype(np.float32))
                writer.begin(first, world="w", driver=driver)
                for step in range(1, steps + 1):
                    after = Observation(vector=rng.normal(size=1).astype(np.float32))
                    action = rng.uniform(-1.0, 1.0, 1).astype(np.float32)
                    writer.step(action, reward, after, terminated=step == steps)
                writer.end(reason)
            writer.flush()
    return path


HIT, GOAL = ("policy", "collision", 1.0), ("policy", "goal", 1.0)
RANDOM_HIT = ("random", "collision", 1.0)


def streaks(path, **limits):
    config = AuditConfig(scheduler="sync", limits=CheckLimits(**limits))
    report = audit([path], config)
    assert report.verdict == "ok"  # a pattern is no fault of the data
    found = [f for f in report.findings if f.check == "collision-streak"]
    return [(finding.episode, finding.message.split(" in a row")[0]) for finding in found]


@pytest.mark.parametrize(
    ("episodes", "expected"),
    [
        ([HIT] * 5, [(0, "5 episodes of 'policy'")]),
        ([HIT] * 4 + [GOAL] + [HIT] * 4, []),
        ([GOAL, *[HIT] * 6, GOAL], [(1, "6 episodes of 'policy'")]),
        ([HIT, RANDOM_HIT] * 3, []),  # each driver by itself
        (
            [GOAL, HIT, RANDOM_HIT, GOAL] + [HIT, RANDOM_HIT] * 5,
            [(2, "6 episodes of 'random'"), (4, "5 episodes of 'policy'")],
        ),
    ],
)
def test_a_streak_of_collisions_is_named_by_its_first_episode(tmp_path, episodes, expected):
    assert sorted(streaks(write(tmp_path / "data", [episodes]))) == expected


def test_the_length_of_a_streak_is_a_setting(tmp_path):
    path = write(tmp_path / "data", [[HIT] * 3])
    assert streaks(path, collision_streak=3) == [(0, "3 episodes of 'policy'")]
    with pytest.raises(ConfigError, match="collision_streak is 1, expected 2 or more"):
        CheckLimits(collision_streak=1)


@pytest.mark.parametrize(
    ("rewards", "changed"),
    [((1.0, 1.2, 0.9), []), ((1.0, 1.0, 5.0, 5.0), [2]), ((-6.0, 1.0, 1.0), [1]), ((0.0, 5.0), [])],
)
def test_a_change_of_the_reward_scale_is_reported_once(tmp_path, rewards, changed):
    segments = [[("policy", "goal", reward)] for reward in rewards]
    path = write(tmp_path / "data", segments, steps=100)
    report = audit([path], SYNC)
    names = Dataset.open(path).segment_ids()
    found = [names.index(f.segment) for f in report.findings if f.check == "reward-scale"]
    assert found == changed
    scale = report.total.document()["reward_scale"]
    assert scale == pytest.approx(np.mean(np.abs(rewards)))


def test_few_steps_have_no_scale(tmp_path):
    path = write(tmp_path / "data", [[GOAL], [("policy", "goal", 50.0)]])
    assert "reward-scale" not in audit([path], SYNC).log.counts
