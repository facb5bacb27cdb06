"""Train TD3 from datasets, act with published policies, and sample datasets in PyTorch.

Modules are imported when a name is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avtd3.learn.analysis.run_page import RunPageCallback
    from avtd3.learn.callbacks import ProgressCallback, TrainCallback
    from avtd3.learn.config import LearnConfig
    from avtd3.learn.guards.alerts import Alert
    from avtd3.learn.guards.config import ActionLimitConfig, CnnRateConfig, GuardConfig
    from avtd3.learn.networks import NetworkConfig
    from avtd3.learn.policy import Policy, PolicyActor
    from avtd3.learn.policy_export import CardConfig, export_policy
    from avtd3.learn.policy_store import PolicyStore
    from avtd3.learn.replay_dataset import ReplayDataset
    from avtd3.learn.report import LearnProgress, LearnReport
    from avtd3.learn.td3 import ClipConfig, TD3Config
    from avtd3.learn.trainer import train

__all__ = [
    "ActionLimitConfig",
    "Alert",
    "CardConfig",
    "ClipConfig",
    "CnnRateConfig",
    "GuardConfig",
    "LearnConfig",
    "LearnProgress",
    "LearnReport",
    "NetworkConfig",
    "Policy",
    "PolicyActor",
    "PolicyStore",
    "ProgressCallback",
    "ReplayDataset",
    "RunPageCallback",
    "TD3Config",
    "TrainCallback",
    "export_policy",
    "train",
]

_MODULES = {
    "ActionLimitConfig": "guards.config",
    "Alert": "guards.alerts",
    "CardConfig": "policy_export",
    "ClipConfig": "td3",
    "CnnRateConfig": "guards.config",
    "GuardConfig": "guards.config",
    "LearnConfig": "config",
    "LearnProgress": "report",
    "LearnReport": "report",
    "NetworkConfig": "networks",
    "Policy": "policy",
    "PolicyActor": "policy",
    "PolicyStore": "policy_store",
    "ProgressCallback": "callbacks",
    "ReplayDataset": "replay_dataset",
    "RunPageCallback": "analysis.run_page",
    "TD3Config": "td3",
    "TrainCallback": "callbacks",
    "export_policy": "policy_export",
    "train": "trainer",
}
"""Module of each name."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
