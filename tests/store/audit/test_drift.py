"""The figures of drift, against samples whose answer is known."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from avtd3.store.audit.drift import drift_between, kolmogorov_smirnov, population_stability
from avtd3.store.audit.statistics import Distribution, Summary
from avtd3.store.render.audit_view import drift_text


def normal(shift, count=4000, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, count)


def test_the_same_population_is_stable():
    assert population_stability(normal(0.0), normal(0.0, seed=1)) < 0.02
    assert kolmogorov_smirnov(normal(0.0), normal(0.0, seed=1)) < 0.05


def test_the_index_is_that_of_the_formula_by_hand():
    first = np.repeat(np.arange(2.0), 500)
    second = np.concatenate([np.zeros(250), np.ones(750)])
    # Shares 0.5, 0.5 against 0.25, 0.75.
    expected = -0.25 * np.log(0.5) + 0.25 * np.log(1.5)
    assert population_stability(first, second) == pytest.approx(expected, rel=0.02)
    assert kolmogorov_smirnov(first, second) == 0.25


@pytest.mark.parametrize("kind", [float, int])
def test_the_distance_is_that_of_scipy(kind):
    rng = np.random.default_rng(2)
    first, second = rng.normal(0, 3, 500).astype(kind), rng.normal(1, 2, 300).astype(kind)
    distance = stats.ks_2samp(first, second).statistic
    assert kolmogorov_smirnov(first, second) == pytest.approx(distance)


def test_values_on_either_side_of_a_constant_are_seen():
    first, second = np.zeros(1000), np.concatenate([np.zeros(500), -np.ones(500)])
    assert population_stability(first, second) > 1.0


def test_disjoint_populations_are_as_far_apart_as_can_be():
    assert kolmogorov_smirnov(normal(0.0), normal(100.0)) == 1.0
    assert np.isfinite(population_stability(normal(0.0), normal(100.0)))


def make_summary(shift, count=1000):
    steer = Distribution.of(normal(shift, count), "steer")
    same = Distribution.of(normal(5.0, count), "speed")
    return Summary(
        returns=Distribution.of(normal(shift, 20), "return"),
        counts={"end_reason": Counter(goal=1)},
        components={"action": {"steer": steer}, "vector": {"speed_mps": same}},
    )


def test_the_most_drifted_come_first_and_few_values_are_reported():
    found = drift_between(make_summary(0.0), make_summary(2.0))
    assert found[0].psi >= found[-1].psi
    assert {drift.name: drift.verdict for drift in found} == {
        "action steer": "other",
        "vector speed_mps": "same",
        "episode return": "few values",
    }
    text = drift_text(found, "a", "b")
    assert "1 of 3 quantities" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "nothing to compare" in drift_text((), "a", "b")
