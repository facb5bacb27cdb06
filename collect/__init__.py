"""Driving and data collection: environments, drivers, `collect` and `evaluate`.

Names are imported from their modules when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avtd3.collect.collector import CollectConfig, collect
    from avtd3.collect.custom_world import check_environment
    from avtd3.collect.drivers import Driver
    from avtd3.collect.driving.world import (
        Surroundings,
        VehicleState,
        World,
        WorldFrame,
        WorldStart,
    )
    from avtd3.collect.environment import Environment, ResetResult
    from avtd3.collect.evaluator import EvaluateConfig, EvaluateReport, evaluate
    from avtd3.collect.maps.route import Route
    from avtd3.collect.maps.scenarios import Scenario, ScenarioConfig
    from avtd3.collect.reports import CollectReport
    from avtd3.collect.sim.world import RoadConfig, RoadWorld
    from avtd3.collect.worlds import EnvironmentConfig

_MODULES = {
    "CollectConfig": "collector",
    "CollectReport": "reports",
    "Driver": "drivers",
    "Environment": "environment",
    "EnvironmentConfig": "worlds",
    "EvaluateConfig": "evaluator",
    "EvaluateReport": "evaluator",
    "ResetResult": "environment",
    "RoadConfig": "sim.world",
    "RoadWorld": "sim.world",
    "Route": "maps.route",
    "Scenario": "maps.scenarios",
    "ScenarioConfig": "maps.scenarios",
    "Surroundings": "driving.world",
    "VehicleState": "driving.world",
    "World": "driving.world",
    "WorldFrame": "driving.world",
    "WorldStart": "driving.world",
    "check_environment": "custom_world",
    "collect": "collector",
    "evaluate": "evaluator",
}

__all__ = [
    "CollectConfig",
    "CollectReport",
    "Driver",
    "Environment",
    "EnvironmentConfig",
    "EvaluateConfig",
    "EvaluateReport",
    "ResetResult",
    "RoadConfig",
    "RoadWorld",
    "Route",
    "Scenario",
    "ScenarioConfig",
    "Surroundings",
    "VehicleState",
    "World",
    "WorldFrame",
    "WorldStart",
    "check_environment",
    "collect",
    "evaluate",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})
