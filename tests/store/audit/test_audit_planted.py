"""Semantic faults, planted one by one behind right checksums, are found by name; clean data is not.

The segment is one of a car that drives: smooth, with pictures, so that each fault stands alone.
"""

import dataclasses
import json

import numpy as np
import pytest

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.audit.checks import CheckLimits
from avtd3.store.audit.findings import CHECKS
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.format.codec import seal
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.audit.test_audit import only_segment, reseal, rewrite, set_row

SPEC = EpisodeSpec(
    image=ImageSpec(height=8, width=8, stack=2),
    vector_names=("lateral_m", "speed_mps"),
    vector_scales=(2.0, 10.0),
    action_names=("steer", "throttle"),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    reward_terms=("progress", "comfort"),
    control_period_s=0.05,
)
LENGTHS = (60, 70, 80)
CONFIG = AuditConfig(scheduler="sync", limits=CheckLimits(frozen_actions=30))


def drive(path, spec=SPEC, lengths=LENGTHS):
    """One segment of episodes with these lengths, the last one cut off by its time limit."""
    rng = np.random.default_rng(3)
    dataset = Dataset.create(path, spec)

    def observation(step):
        vector = rng.normal(0.0, 0.1, 2)
        vector[1] += 0.8 + 0.002 * step
        frame = None
        if spec.image is not None:
            frame = rng.integers(60, 120, spec.image.frame_shape).astype(np.uint8)
        return Observation(image=frame, vector=vector.astype(np.float32))

    with SegmentWriter(dataset, collector="test", provenance={"plan_digest": "p"}) as writer:
        for index, length in enumerate(lengths):
            writer.begin(
                observation(0),
                index=index,
                seed=index,
                scenario=0,
                world="road",
                town=f"loop-{index:06d}",
                weather="clear",
                driver="policy",
                policy_version=index,
                policy_digest=f"{index}" * 64,
            )
            for step in range(1, length + 1):
                end, late = step == length, index == len(lengths) - 1
                terms = rng.normal(size=2).astype(np.float32)
                writer.step(
                    rng.uniform(-0.9, 0.9, 2).astype(np.float32),
                    None if spec.reward_terms else float(terms.sum()),
                    observation(step),
                    terminated=end and not late,
                    truncated=end and late,
                    reward_terms=terms if spec.reward_terms else None,
                )
            writer.end("time_limit" if late else "goal")
    return dataset


def repeat_rows(start, stop):
    def change(values):
        values[start + 1 : stop] = values[start]

    return change


def every_other(values):
    values[70:120:2] = values[69:119:2]


def cut_in(values):
    values[90] = 250
    values[90, 0, 0] = 0


def zero_all(values):
    values[:] = 0


# Episode 1 has steps 60..129 and observations 61..131; speeds are about 8 m/s.
FAULTS = {
    "episode-bounds": ("episode_length", set_row(1, 69)),
    "step-after-end": ("truncated", set_row(80, True)),
    "end-unmarked": ("terminated", set_row(129, False)),
    "end-twice": ("truncated", set_row(129, True)),
    "timeout-unmarked": ("episode_end_reason", ["goal", "time_limit", "time_limit"]),
    "label-missing": ("episode_driver", ["policy", "", "policy"]),
    "policy-digest": ("episode_policy_digest", ["0" * 64, "", "2" * 64]),
    "policy-conflict": ("episode_policy_version", set_row(1, 0)),
    "noise-negative": ("episode_exploration_noise", set_row(1, -0.1)),
    "not-finite": ("vector", set_row((80, 0), np.nan)),
    "vector-range": ("vector", set_row((80, 0), 900.0)),
    "vector-frozen": ("vector", repeat_rows(70, 95)),
    "speed-jump": ("vector", set_row((80, 1), 9.0)),
    "action-bounds": ("action", set_row((80, 0), 1.5)),
    "action-frozen": ("action", repeat_rows(70, 105)),
    "reward-sum": ("reward_terms", set_row(80, 40.0)),
    "reward-impossible": ("reward", set_row(80, 1e6)),
    "reward-missing": ("reward", zero_all),
    "return-sum": ("episode_return", set_row(1, 1e3)),
    "frame-order": ("frame_id", set_row(80, 1)),
    "frame-gap": ("frame_id", set_row(131, 400)),
    "sim-time": ("sim_time", set_row(80, 0.1)),
    "black-frames": ("frames", set_row(80, 0)),
    "uniform-frames": ("frames", set_row(80, 130)),
    "frozen-frames": ("frames", repeat_rows(70, 95)),
    "frame-stutter": ("frames", every_other),
    "frame-stale": ("frames", repeat_rows(60, 62)),
    "frame-flash": ("frames", cut_in),
    "episode-twice": ("episode_index", set_row(1, 0)),
}
"""Array and change by check."""
OF_THE_SEGMENT = {"reward-missing", "episode-twice"}
"""Faults that are not one episode's."""


def rewrite_strings(dataset, name, values):
    """Change a column of strings in place, all checksums kept right."""
    segment = only_segment(dataset)
    categories = sorted(set(values))
    document = json.loads((segment / name / "zarr.json").read_text())
    document["attributes"]["categories"] = categories
    codes = np.array([categories.index(value) for value in values], np.int32)
    data = {
        f"{name}/zarr.json": json.dumps(document).encode(),
        f"{name}/c/0": seal(codes.tobytes()),
    }
    reseal(segment, data=data)


def plant(dataset, check):
    name, change = FAULTS[check]
    if isinstance(change, list):
        rewrite_strings(dataset, name, change)
    else:
        rewrite(dataset, name, change)


def test_there_are_25_faults_and_more_each_in_the_catalogue():
    assert len(FAULTS) >= 25
    assert FAULTS.keys() <= CHECKS.keys()


@pytest.mark.parametrize("check", FAULTS)
def test_a_planted_fault_is_found_by_name(tmp_path, check):
    dataset = drive(tmp_path / "data")
    plant(dataset, check)
    report = audit([dataset.path], CONFIG)
    found = [finding for finding in report.findings if finding.check == check]
    assert found, report.log.counts
    assert found[0].segment == only_segment(dataset).name
    if check not in OF_THE_SEGMENT:
        assert found[0].episode == (2 if check == "episode-bounds" else 1)
    assert found[0].severity == CHECKS[check].severity
    assert report.verdict != "ok"


def test_a_constant_speed_is_no_frozen_vector(tmp_path):
    names = ("command_follow", "speed_mps")
    dataset = drive(tmp_path / "data", dataclasses.replace(SPEC, vector_names=names))
    plant(dataset, "vector-frozen")
    assert "vector-frozen" not in audit([dataset.path], CONFIG).log.counts


def test_a_reward_by_the_step_is_a_reward(tmp_path):
    dataset = drive(tmp_path / "data", dataclasses.replace(SPEC, reward_terms=()))
    rewrite(dataset, "reward", set_row(slice(None), 1.0))
    rewrite(dataset, "episode_return", lambda values: np.copyto(values, LENGTHS))
    assert audit([dataset.path], CONFIG).findings == ()


def test_where_nothing_is_normalised_no_size_is_out_of_range(tmp_path):
    raw = dataclasses.replace(SPEC, vector_names=("x_0", "x_1"), vector_scales=(1.0, 1.0))
    dataset = drive(tmp_path / "data", raw)
    rewrite(dataset, "vector", set_row((80, 0), 900.0))
    assert audit([dataset.path], CONFIG).findings == ()


@pytest.mark.parametrize("name", ["speed_kmh", "speed_limit_mps", "speed"])
def test_only_metres_per_second_of_the_car_itself_are_its_speed(tmp_path, name):
    spec = dataclasses.replace(SPEC, vector_names=("lateral_m", name))
    dataset = drive(tmp_path / "data", spec)
    rewrite(dataset, "vector", set_row((80, 1), 9.0))  # 90 of its unit for one step
    assert audit([dataset.path], CONFIG).findings == ()


@pytest.mark.parametrize("image", [True, False], ids=["image", "vector"])
def test_a_clean_drive_has_no_findings(tmp_path, image):
    spec = SPEC if image else dataclasses.replace(SPEC, image=None, reward_terms=())
    dataset = drive(tmp_path / "data", spec)
    assert audit([dataset.path], CONFIG).findings == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("black_level", -1.0),
        ("frozen_frames", 1),
        ("flash_level", 0.0),
        ("stutter_share", 1.5),
        ("frozen_actions", 1),
        ("vector_limit", 0.0),
        ("reward_limit", float("nan")),
        ("acceleration_mps2", 0.0),
        ("shortest_episode", 0),
    ],
)
def test_impossible_limits_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"audit.limits.{name}"):
        CheckLimits(**{name: value})


@pytest.mark.parametrize(("reason", "is_found"), [("collector_stop", False), ("world_error", True)])
def test_an_episode_of_one_step_is_not_short_if_the_collector_had_to_stop(
    tmp_path, reason, is_found
):
    dataset = Dataset.create(tmp_path / "d", EpisodeSpec(vector_names=("a",), action_names=("b",)))
    with SegmentWriter(dataset) as writer:
        writer.begin(Observation(vector=np.zeros(1, np.float32)))
        after = Observation(vector=np.ones(1, np.float32))
        writer.step(np.zeros(1, np.float32), 1.0, after, truncated=True, end_reason=reason)
    found = {finding.check for finding in audit([dataset.path], AuditConfig()).findings}
    assert ("episode-short" in found) == is_found
