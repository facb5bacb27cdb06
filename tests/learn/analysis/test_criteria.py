import math
from typing import Any

import numpy as np
import pytest

from avtd3.learn.analysis.criteria import Criterion, GateConfig, Window, check_criterion
from avtd3.learn.analysis.event_log import Curve
from avtd3.store.errors import ConfigError

NAN, INF = math.nan, math.inf


def curve(*values, every=100):
    steps = np.arange(1, len(values) + 1) * every
    return Curve(updates=steps, values=np.array(values, np.float64))


def outcome(values, *, end=None, **settings):
    criterion = Criterion(name="c", metric="m", **settings)
    return check_criterion(criterion, curve(*values), end)


@pytest.mark.parametrize(
    ("settings", "passing", "failing"),
    [
        ({"rule": "every", "below": 5}, [1, 4.9], [1, 5]),
        ({"rule": "every", "at_most": 5}, [1, 5], [1, 5.1]),
        ({"rule": "every", "above": 0}, [1, 0.1], [1, 0]),
        ({"rule": "every", "at_least": 0}, [1, 0], [1, -0.1]),
        ({"rule": "every", "above": -1, "below": 1}, [0.5, -0.5], [0.5, -1.5]),
        ({"rule": "every", "absolute": True, "below": 10}, [-9, 9], [-11, 9]),
        ({"rule": "max", "below": 5}, [1, 4], [1, 6, 2]),
        ({"rule": "min", "above": 0}, [1, 4], [1, -1, 2]),
        ({"rule": "mean", "at_most": 2}, [1, 3], [1, 4]),
        ({"rule": "mean", "absolute": True, "at_most": 2}, [-2, 2], [-3, 3]),
        ({"rule": "median", "below": 2}, [1, 1, 99], [1, 3, 3]),
        ({"rule": "last", "at_least": 30}, [1, 30], [30, 1]),
        ({"rule": "sum", "at_most": 3}, [1, 1, 1], [1, 1, 2]),
        ({"rule": "share", "share": 0.5, "below": 1}, [0, 2], [0, 2, 2]),
        ({"rule": "count", "above": 0}, [0, 0], [0, 1]),
        ({"rule": "count", "above": 0, "times": 1}, [0, 1], [1, 1]),
        ({"rule": "rising"}, range(20), range(20, 0, -1)),
        ({"rule": "falling"}, range(20, 0, -1), range(20)),
        ({"rule": "rising"}, range(20), [1.0] * 20),
        ({"rule": "not_rising"}, [1.0] * 20, range(20)),
        ({"rule": "not_falling"}, [1.0] * 20, range(20, 0, -1)),
    ],
)
def test_each_rule_holds_and_fails(settings, passing, failing):
    assert outcome(passing, **settings).answer == "pass"
    assert outcome(failing, **settings).answer == "fail"


@pytest.mark.parametrize("wild", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "every", "above": -1},
        {"rule": "max", "at_least": 0},
        {"rule": "last", "above": -1},
        {"rule": "median", "above": -1},
        {"rule": "count", "below": -5},
        {"rule": "not_rising"},
    ],
)
def test_a_point_that_is_not_finite_fails_and_is_named(settings, wild):
    found = outcome([*range(7), wild, *range(7)], **settings)
    assert found.answer == "fail"
    assert "1 of 15 points not finite" in found.reason
    assert f"{'NaN' if math.isnan(wild) else 'inf'} at 800" in found.reason
    assert found.measured is None


def test_many_wild_points_are_counted_not_listed():
    reason = outcome([NAN] * 40, rule="every", below=1).reason
    assert reason == (
        "40 of 40 points not finite: NaN at 100, NaN at 200, NaN at 300, NaN at 400, NaN at 500 "
        "and 35 more"
    )


def test_a_share_counts_wild_points_as_outside():
    assert outcome([1, 1, 1, NAN], rule="share", share=0.75, below=2).answer == "pass"
    found = outcome([1, 1, INF, NAN], rule="share", share=0.75, below=2)
    assert found.answer == "fail"
    assert found.measured == 0.5
    assert "NaN at 400" in found.reason


def test_the_worst_point_and_the_first_outside_are_reported():
    found = outcome([1, 7, 9, 2], rule="every", below=5)
    assert (found.measured, found.at_step) == (9.0, 300)
    assert "2 of 4 points outside, the first at 200" in found.reason
    assert (found.points, found.steps) == (4, (100, 400))


def test_rounding_may_be_forgiven():
    assert outcome([1.0005], rule="every", at_most=1.0, tolerance=0.001).answer == "pass"
    assert outcome([1.0020], rule="every", at_most=1.0, tolerance=0.001).answer == "fail"
    assert outcome([0.9995], rule="every", at_least=1.0, tolerance=0.001).answer == "pass"


@pytest.mark.parametrize(
    ("window", "end", "steps"),
    [
        ({}, None, [100, 200, 300, 400, 500]),
        ({}, 300, [100, 200, 300]),
        ({"from_step": 200, "to_step": 400}, None, [200, 300, 400]),
        ({"last_share": 0.4}, None, [400, 500]),
        ({"last_share": 0.5}, 200, [200]),
        ({"last_points": 1}, None, [500]),
        ({"last_points": 9}, 200, [100, 200]),
        ({"from_step": 600}, None, []),
    ],
)
def test_windows(window, end, steps):
    chosen, values = Window(**window).select(curve(1, 2, 3, 4, 5), end)
    assert chosen.tolist() == steps
    assert values.tolist() == [step / 100 for step in steps]


def test_what_lies_outside_the_window_does_not_count():
    found = outcome([NAN, 1, 1], rule="every", below=2, window=Window(from_step=200))
    assert found.answer == "pass"


def test_too_few_points_are_unknown():
    assert outcome([1, 2], rule="max", below=9, min_points=3).answer == "unknown"
    assert outcome([1, 2], rule="max", below=9, window=Window(from_step=900)).answer == "unknown"
    assert "to see a trend" in outcome(range(9), rule="rising").reason
    assert outcome(range(9), rule="rising").answer == "unknown"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"absolute": True, "below": 1000}, "every |x| < 1,000"),
        ({"rule": "mean", "at_least": 30, "at_most": 80}, "mean <= 80, mean >= 30"),
        ({"rule": "mean", "absolute": True, "at_most": 8}, "mean |x| <= 8"),
        ({"rule": "share", "share": 0.9, "below": 1}, "90% of points x < 1"),
        ({"rule": "count", "above": 0}, "at most 0 points x > 0"),
        ({"rule": "not_falling", "confidence": 0.99}, "not falling (99% sure)"),
    ],
)
def test_limits_in_words(settings, text):
    assert Criterion(name="c", metric="m", **settings).limit_text() == text


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metric": ""}, "needs a name and a metric"),
        ({}, "needs a bound"),
        ({"rule": "rising", "below": 1}, "takes no bounds"),
        ({"rule": "rising", "absolute": True}, "takes no bounds"),
        ({"below": NAN}, "expected a number"),
        ({"below": 1, "share": 0.5}, "share belongs to rule share"),
        ({"below": 1, "times": 2}, "times belongs to rule count"),
        ({"rule": "share", "below": 1, "share": 1.5}, "expected 0 to 1"),
        ({"rule": "rising", "confidence": 0.5}, "confidence"),
        ({"below": 1, "min_points": 0}, "min_points"),
        ({"below": 1, "tolerance": -1.0}, "tolerance"),
        ({"at_most_setting": "learn.x"}, "needs at_most too"),
    ],
)
def test_impossible_criteria_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        Criterion(**({"name": "c", "metric": "m"} | settings))


@pytest.mark.parametrize(
    "window",
    [{"last_share": 0.0}, {"last_share": 1.1}, {"last_points": 0}, {"from_step": 2, "to_step": 1}],
)
def test_impossible_windows_are_refused(window):
    with pytest.raises(ConfigError, match="window"):
        Window(**window)


def test_impossible_gates_are_refused():
    one = Criterion(name="c", metric="m", below=1)
    impossible: list[tuple[dict[str, Any], str]] = [
        ({}, "empty"),
        ({"criteria": (one, one)}, "twice"),
        ({"criteria": (one,), "steps": 0}, "steps"),
    ]
    for settings, says in impossible:
        with pytest.raises(ConfigError, match=says):
            GateConfig(**settings)
