import math

import pytest

from avtd3.collect.maps.generate import NETWORK_KINDS
from avtd3.collect.maps.scenarios import SCENARIOS, ScenarioConfig, scenario
from avtd3.collect.maps.weather import WEATHER_GROUPS, WEATHERS
from avtd3.store.errors import ConfigError


def test_scenarios_stand_at_the_place_of_their_number():
    assert [entry.number for entry in SCENARIOS] == list(range(len(SCENARIOS)))
    assert len(SCENARIOS) >= 5
    assert SCENARIOS[0].npcs == 20


def test_scenarios_name_roads_and_weathers_that_exist():
    for entry in SCENARIOS:
        assert set(entry.network_kinds) <= set(NETWORK_KINDS)
        assert entry.weather in (*WEATHERS, *WEATHER_GROUPS)


def test_parameters_change_a_scenario_and_keep_its_number():
    changed = scenario(0, npcs=3, town="roads/mine.xodr")
    assert (changed.number, changed.npcs, changed.town) == (0, 3, "roads/mine.xodr")
    assert SCENARIOS[0].npcs == 20
    changed_config = ScenarioConfig(number=2, npcs=0, weather="fog")
    assert changed_config.resolve() == (scenario(2, npcs=0, weather="fog"),)
    assert ScenarioConfig().resolve() == (SCENARIOS[0],)


@pytest.mark.parametrize("number", [-1, len(SCENARIOS)])
def test_an_unknown_number_lists_the_valid_ones(number):
    with pytest.raises(ConfigError, match=r"expected one of: 0 = mixed roads.*; 1 = empty country"):
        scenario(number)


@pytest.mark.parametrize(
    "change",
    [
        {"npcs": -1},
        {"npcs": 100_000},
        {"networks": 0},
        {"route_length_m": 1.0},
        {"time_limit_s": math.nan},
        {"town": ""},
        {"weather": ""},
    ],
)
def test_impossible_changes_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        ScenarioConfig(**change)
