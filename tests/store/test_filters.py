"""Filters: each key against a plain reading of the same rule, and what is refused."""

import dataclasses
import fnmatch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import ConfigError
from avtd3.store.filters import NEWEST, EpisodeFilter, parse_filter
from avtd3.tests.store.segments import episode_table

DAY_S = 86_400.0
NOV_1 = 1_793_491_200.0  # 2026-11-01T00:00:00Z


def table(**columns) -> EpisodeTable:
    """A table of episodes, given some of its columns."""
    count = len(next(iter(columns.values())))
    return episode_table(**{"wall_time": np.full(count, NOV_1), **columns})


def test_no_condition_means_every_episode():
    assert parse_filter([]) == EpisodeFilter()
    assert EpisodeFilter().matches(table(scenario=np.array([0, 1, 2]))).tolist() == [True] * 3


@pytest.mark.parametrize(
    ("texts", "columns", "expected"),
    [
        (["scenario=0,2"], {"scenario": np.array([0, 1, 2])}, [True, False, True]),
        (["scenario=0", "scenario=1"], {"scenario": np.array([0, 1, 2])}, [True, True, False]),
        (["world=road"], {"world": ["road", "roads", "carla"]}, [True, False, False]),
        (["town=country-*,town-3"], {"town": ["country-1", "town-3", "x"]}, [True, True, False]),
        (["driver=policy*"], {"driver": ["policy+noise=0.2", "expert"]}, [True, False]),
        (["driver=expert+noise=0.2"], {"driver": ["expert+noise=0.2", "expert"]}, [True, False]),
        (["attribute.scenario=0*"], {"scenario": np.array([0, 1, 2])}, [True, False, False]),
        (["end=collision, off_road"], {"end_reason": ["off_road", "goal"]}, [True, False]),
        (["policy=3..7"], {"policy_version": np.array([-1, 2, 3, 7, 8])}, [0, 0, 1, 1, 0]),
        (["policy=..7"], {"policy_version": np.array([-1, 0, 7, 8])}, [0, 1, 1, 0]),
        (["policy=3.."], {"policy_version": np.array([-1, 2, 3, NEWEST])}, [0, 0, 1, 1]),
        (["policy=5"], {"policy_version": np.array([4, 5, 6])}, [0, 1, 0]),
        (["policy=none"], {"policy_version": np.array([-1, 0])}, [1, 0]),
        (
            ["date=2026-11-01..2026-11-02"],
            {"wall_time": NOV_1 + DAY_S * np.array([-0.001, 0.0, 1.999, 2.0])},
            [0, 1, 1, 0],
        ),
        (["date=2026-11-01"], {"wall_time": NOV_1 + DAY_S * np.array([0.5, 1.0])}, [1, 0]),
        (
            ["date=2026-11-01T06:00..2026-11-01T14:00+02:00"],
            {"wall_time": NOV_1 + 3600.0 * np.array([5.9, 6.0, 11.9, 12.0])},
            [0, 1, 1, 0],
        ),
        (["date=..2026-11-01"], {"wall_time": NOV_1 + DAY_S * np.array([-9.0, 1.0])}, [1, 0]),
        (
            ["end=goal", "policy=1.."],
            {"end_reason": ["goal", "goal", "collision"], "policy_version": np.array([0, 1, 1])},
            [0, 1, 0],
        ),
    ],
)
def test_each_key_selects_what_it_says(texts, columns, expected):
    found = parse_filter(texts).matches(table(**columns))
    assert found.dtype == np.bool_
    assert found.tolist() == [bool(value) for value in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("end", "expected KEY=VALUE"),
        ("reason=goal", "expected KEY=VALUE with a KEY of scenario"),
        ("end=", "expected KEY=VALUE"),
        ("attribute.=3", "expected KEY=VALUE"),
        ("scenario=one", "whole numbers of scenarios"),
        ("policy=a..b", "expected a version"),
        ("policy=7..3", "lower version before a higher"),
        ("policy=-3", "lower version before a higher"),
        ("date=yesterday", "expected a day as 2026-11-01"),
        ("date=9999-12-31", "expected a day as 2026-11-01"),
        ("date=2026-11-02..2026-11-01", "earlier date before a later"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_fix(text, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_filter([text])


@pytest.mark.parametrize("texts", [["policy=1", "policy=2"], ["date=2026-11-01", "date=..2026"]])
def test_a_range_is_given_once(texts):
    with pytest.raises(ConfigError, match="given twice"):
        parse_filter(texts)


NAMES = st.text("ab*?[]!-\n", max_size=4)


@given(names=st.lists(NAMES, min_size=1), patterns=st.lists(NAMES, min_size=1, max_size=3))
def test_names_fit_patterns_as_in_a_shell(names, patterns):
    found = EpisodeFilter(attributes={"town": tuple(patterns)}).matches(table(town=names))
    plain = [any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names]
    assert found.tolist() == plain


def test_an_empty_table_has_no_match():
    empty = table(scenario=np.zeros(0, np.int64))
    chosen = parse_filter(["town=a", "date=2026-11-01", "policy=1", "scenario=2"])
    assert chosen.matches(empty).shape == (0,)
    assert dataclasses.is_dataclass(chosen)
