"""Summaries that add up: merging the parts gives what the whole gives."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.store.audit.findings import CHECKS, Fault, FindingLog
from avtd3.store.audit.statistics import (
    SAMPLE_SIZE,
    Distribution,
    Moments,
    Sample,
    Summary,
    distributions_by_name,
    kind_of_label,
    largest_discounted,
)

numbers = st.lists(st.floats(-1e6, 1e6), max_size=30)


@given(numbers, numbers)
def test_merged_moments_are_those_of_all_values(one, other):
    merged = Moments.of(np.array(one)).merge(Moments.of(np.array(other))).document()
    values = np.array(one + other)
    assert merged["count"] == len(values)
    if len(values):
        assert merged["mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert merged["std"] == pytest.approx(values.std(), rel=1e-6, abs=1e-3)
        assert (merged["min"], merged["max"]) == (values.min(), values.max())


def test_moments_by_hand():
    document = Moments.of(np.array([1.0, 3.0, np.nan, np.inf])).document()
    assert document == {"count": 2, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}


@pytest.mark.parametrize("values", [[], [np.nan], [1e300, -1e300], [1.7e308, 1.7e308]])
def test_moments_of_odd_values_are_json(values):
    json.dumps(Moments.of(np.array(values)).document(), allow_nan=False)


def test_moments_of_huge_values_merge_without_a_warning():
    huge = Moments.of(np.array([1.7e308]))
    json.dumps(huge.merge(Moments.of(np.array([-1.7e308]))).document(), allow_nan=False)


@given(numbers, numbers)
def test_small_samples_are_exact_in_any_order(one, other):
    first, second = Sample.of(np.array(one), "a"), Sample.of(np.array(other), "b")
    shares = (0.0, 0.25, 0.5, 1.0)
    found = first.merge(second).quantiles(shares)
    assert found == second.merge(first).quantiles(shares)
    if one or other:
        assert found == pytest.approx(np.quantile(one + other, shares).tolist())
    else:
        assert found == [None] * 4


def test_large_samples_are_bounded_uniform_and_independent_of_grouping():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=1000) + number for number in range(20)]
    samples = [Sample.of(part, f"segment {number}") for number, part in enumerate(parts)]
    left = samples[0]
    for sample in samples[1:]:
        left = left.merge(sample)
    right = samples[-1]
    for sample in samples[-2::-1]:
        right = sample.merge(right)
    assert len(left.values) == SAMPLE_SIZE
    np.testing.assert_array_equal(left.values, right.values)
    exact = np.quantile(np.concatenate(parts), [0.05, 0.5, 0.95])
    assert left.quantiles((0.05, 0.5, 0.95)) == pytest.approx(exact.tolist(), abs=0.6)


def test_the_same_values_under_another_key_have_other_priorities():
    values = np.arange(10.0)
    assert Sample.of(values, "a").values.tolist() == Sample.of(values, "a").values.tolist()
    assert Sample.of(values, "a").values.tolist() != Sample.of(values, "b").values.tolist()


def make_summary(number):
    values = np.arange(number, 2 * number + 1, dtype=np.float64)
    return Summary(
        segments=1,
        segments_read=1,
        episodes=number,
        steps=10 * number,
        simulated_seconds=0.5 * number,
        bytes_on_disk=7,
        bytes_raw=70,
        returns=Distribution.of(values, f"{number}"),
        lengths=Distribution.of(values, f"{number}"),
        counts={"end_reason": Counter(goal=number)},
        coverage=Counter({("0", "loop-*"): number, (str(number), "a"): 1}),
        components={"action": {f"a{number % 2}": Distribution.of(values, f"{number}")}},
        magnitudes={"progress": 3.0 * number, "comfort": 1.0 * number},
    )


def test_summaries_add_up():
    merged = Summary().merge(make_summary(2)).merge(make_summary(3))
    assert (merged.segments, merged.episodes, merged.steps) == (2, 5, 50)
    assert merged.counts == {"end_reason": Counter(goal=5)}
    assert merged.reward_shares == {"progress": 0.75, "comfort": 0.25}
    document = json.loads(json.dumps(merged.document(), allow_nan=False))
    assert document["hours"] == pytest.approx(2.5 / 3600)
    assert document["ratio"] == 10.0
    assert set(document["components"]["action"]) == {"a0", "a1"}
    assert document["returns"]["count"] == 7
    assert document["coverage"][0] == {"scenario": "0", "town": "loop-*", "episodes": 5}
    assert len(document["coverage"]) == 3


def test_an_empty_summary_is_json():
    document = Summary().document()
    json.dumps(document, allow_nan=False)
    assert document["ratio"] is None
    assert Summary().reward_shares == {}


def test_components_are_in_physical_units():
    values = np.array([[0.5, 1.0], [1.0, 1.0]], np.float32)
    found = distributions_by_name(("speed_mps", "gap_m"), values, "key", (10.0, 2.0))
    assert found["speed_mps"].document()["mean"] == 7.5
    assert found["gap_m"].moments.maximum == 2.0
    assert sorted(found["speed_mps"].sample.values.tolist()) == [5.0, 10.0]


def test_numbered_labels_are_counted_together():
    labels = ["loop-000001", "loop-000002", "Town01", "clear", ""]
    assert Counter(map(kind_of_label, labels)) == {"loop-*": 2, "Town01": 1, "clear": 1, "-": 1}


def test_a_log_keeps_the_first_and_counts_all():
    logs = [FindingLog(limit=3) for _ in range(2)]
    for number, log in enumerate(logs):
        for episode in range(2):
            fault = Fault(check="empty", episode=episode, message=f"{number}")
            log.add(fault, dataset="data", segment=str(number))
        log.add(Fault(check="manifest", message="torn"), dataset="data")
    logs[0].merge(logs[1])
    assert logs[0].counts == {"empty": 4, "manifest": 2}
    assert (logs[0].count("error"), logs[0].count("warning"), logs[0].count("info")) == (2, 4, 0)
    findings = logs[0].findings()
    assert [finding.check for finding in findings] == ["manifest"] * 2 + ["empty"] * 3
    assert findings[2].document()["fix"] == CHECKS["empty"].fix


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_says_what_it_found_and_how_to_fix_it(check):
    entry = CHECKS[check]
    assert entry.severity in ("error", "warning", "info")
    assert len(entry.title) > 10
    assert len(entry.fix) > 10


def test_the_largest_discounted_return_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=12).astype(np.float32)
    offset, length = np.array([0, 5]), np.array([5, 7])
    largest = 0.0
    for start, steps in ((0, 5), (5, 7)):
        for first in range(start, start + steps):
            rest = reward[first : start + steps].astype(float)
            largest = max(largest, abs(sum(0.9**n * r for n, r in enumerate(rest))))
    assert largest_discounted(reward, offset, length, 0.9) == pytest.approx(largest)
    assert largest_discounted(reward[:0], offset[:0], length[:0], 0.9) == 0.0


def test_staleness_is_of_the_episodes_that_a_policy_drove():
    versions = Counter({"-1": 10, "3": 1, "7": 3})
    found = Summary(counts={"policy_version": versions}).staleness
    assert found == {
        "newest": 7,
        "episodes": 4,
        "newest_share": 0.75,
        "mean_behind": 1.0,
        "most_behind": 4,
    }
    assert Summary(counts={"policy_version": Counter({"-1": 2})}).staleness == {}
