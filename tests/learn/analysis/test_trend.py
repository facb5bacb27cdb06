import numpy as np
import pytest

from avtd3.learn.analysis.trend import FEWEST, find_trend


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


def test_a_constant_neither_rises_nor_falls():
    trend = trend_of(np.arange(20), np.full(20, 3.0))
    assert trend.slope == 0.0
    assert trend.rising == trend.falling == 0.5


def test_few_points_have_no_trend():
    assert find_trend(np.arange(FEWEST - 1), np.arange(FEWEST - 1.0)) is None
    assert find_trend(np.arange(FEWEST), np.arange(float(FEWEST))) is not None


def test_points_of_one_step_do_no_harm():
    trend = trend_of(np.zeros(20, np.int64), np.arange(20.0))
    assert trend.slope == 0.0
