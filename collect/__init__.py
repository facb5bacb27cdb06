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
    from avtd3.collect.maps.route import Route, Turn
    from avtd3.collect.maps.scenarios import Scenario, ScenarioConfig
    from avtd3.collect.reports import CollectReport
    from avtd3.collect.sim.streams import StreamCamera
    from avtd3.collect.sim.world import RoadConfig, RoadWorld
    from avtd3.collect.worlds import EnvironmentConfig

_MODULES = {
    "collector": ("CollectConfig", "collect"),
    "custom_world": ("check_environment",),
    "drivers": ("Driver",),
    "driving.world": ("Surroundings", "VehicleState", "World", "WorldFrame", "WorldStart"),
    "environment": ("Environment", "ResetResult"),
    "evaluator": ("EvaluateConfig", "EvaluateReport", "evaluate"),
    "maps.route": ("Route", "Turn"),
    "maps.scenarios": ("Scenario", "ScenarioConfig"),
    "reports": ("CollectReport",),
    "sim.streams": ("StreamCamera",),
    "sim.world": ("RoadConfig", "RoadWorld"),
    "worlds": ("EnvironmentConfig",),
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
    "StreamCamera",
    "Surroundings",
    "Turn",
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
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})
