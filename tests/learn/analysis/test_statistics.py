import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from avtd3.learn.analysis.statistics import (
    FEWEST_FOR_TREND,
    Level,
    change_interval,
    find_trend,
)


def trend_of(steps, values):
    trend = find_trend(steps, values)
    assert trend is not None
    return trend


def series(count, alike, rng):
    values = np.zeros(count + 100)
    for i, shock in enumerate(rng.normal(size=count + 100)):
        values[i] = alike * values[i - 1] + shock
    return values[100:]


def test_the_slope_is_that_of_a_line_whatever_a_few_points_do():
    steps = np.arange(0, 3000, 100)
    values = (5.0 - 0.002 * steps).astype(np.float64)
    values[[3, 17]] = 1e9
    trend = trend_of(steps, values)
    assert trend.slope == pytest.approx(-0.002)
    assert trend.falling > 0.99


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_curve_that_settles_has_risen(sign):
    steps = np.arange(500)
    noise = np.random.default_rng(0).normal(size=500)
    trend = trend_of(steps, sign * (1.0 - np.exp(-steps / 100.0)) + 0.1 * noise)
    assert (trend.rising if sign > 0 else trend.falling) > 0.99


@pytest.mark.parametrize(("alike", "most"), [(0.0, 0.08), (0.9, 0.12)])
def test_noise_is_seldom_a_trend(alike, most):
    rng = np.random.default_rng(1)
    found = [trend_of(np.arange(200), series(200, alike, rng)).rising for _ in range(50)]
    assert np.mean(np.array(found) > 0.95) <= most
    assert np.mean(np.array(found) < 0.05) <= most


@given(st.lists(st.integers(-9, 9), min_size=FEWEST_FOR_TREND, max_size=40), st.data())
def test_the_slope_is_the_median_over_all_pairs(values, data):
    count = len(values)
    gaps = data.draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    steps, series = np.cumsum(gaps), np.array(values, np.float64)
    slope = stats.theilslopes(series, steps).slope
    assert trend_of(steps, series).slope == pytest.approx(slope)


@pytest.mark.parametrize("rise", [0.0, 0.02, -0.1])
def test_the_confidence_is_that_of_mann_kendall(rise):
    """Against the textbook's sums; a series that alternates is not corrected."""
    values = [round((-1) ** i + rise * i, 1) for i in range(24)]
    pairs = list(itertools.combinations(values, 2))
    statistic = sum((b > a) - (b < a) for a, b in pairs)
    ties = [values.count(value) for value in set(values)]
    variance = (24 * 23 * 53 - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    z = (statistic - (statistic > 0) + (statistic < 0)) / math.sqrt(variance)
    found = trend_of(np.arange(24), np.array(values))
    assert found.rising == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))))


def test_a_constant_neither_rises_nor_falls():
    trend = trend_of(np.arange(20), np.full(20, 3.0))
    assert trend.slope == 0.0
    assert trend.rising == trend.falling == 0.5


def test_few_points_have_no_trend():
    assert find_trend(np.arange(FEWEST_FOR_TREND - 1), np.arange(FEWEST_FOR_TREND - 1.0)) is None
    assert find_trend(np.arange(FEWEST_FOR_TREND), np.arange(float(FEWEST_FOR_TREND))) is not None


def test_points_of_one_step_do_no_harm():
    trend = trend_of(np.zeros(20, np.int64), np.arange(20.0))
    assert trend.slope == 0.0


def level(error, worth, median=0.0):
    return Level(median=median, spread=1.0, worth=worth, error=error)


@pytest.mark.parametrize(
    ("before", "after", "freedom", "quantile"),
    [
        (level(0.0, 2.0), level(1.0, 2.0), 1, math.tan(math.pi * 0.495)),
        (level(1.0, 2.0), level(1.0, 2.0), 2, 0.99 * math.sqrt(2 / (4 * 0.995 * 0.005))),
        (level(1.0, 6.0), level(1.0, 6.0), 10, 3.169273),
    ],
)
def test_the_interval_is_that_of_welch(before, after, freedom, quantile):
    """Against the closed forms of Student's quantiles (1, 2) and a table (10), at 99.5 %."""
    error = math.hypot(before.error, after.error)
    low, high = change_interval(before, after, 0.99)
    assert (low, high) == pytest.approx((-error * quantile, error * quantile), rel=1e-6)
    assert student_share(freedom, high / error) == pytest.approx(0.995, abs=1e-5)


def student_share(freedom, value, parts=400_000):
    """Share of Student's distribution below a value, by adding up its density."""
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi)
    scale /= math.gamma(freedom / 2)
    middles = (np.arange(parts) + 0.5) * value / parts
    density = scale * (1 + middles**2 / freedom) ** (-(freedom + 1) / 2)
    return 0.5 + density.sum() * value / parts


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [10, 100])
def test_noise_is_seldom_a_change(alike, count):
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(100):
        levels = []
        for _ in range(2):
            values = np.zeros(count + 50)
            for i, shock in enumerate(rng.normal(size=count + 50)):
                values[i] = alike * values[i - 1] + shock
            levels.append(Level.of(values[50:]))
        low, high = change_interval(levels[0], levels[1], 0.99)
        wrong += low > 0 or high < 0
    assert wrong <= 5


def test_a_change_of_three_spreads_is_seen_in_a_hundred_points():
    rng = np.random.default_rng(4)
    low, high = change_interval(
        Level.of(rng.normal(size=100)), Level.of(3.0 + rng.normal(size=100)), 0.99
    )
    assert 2.0 < low < 3.0 < high < 4.0
