"""avtd3: an offline-first data pipeline for end-to-end driving policies.

The names that most programs need; `avtd3.store`, `avtd3.learn` and `avtd3.collect` have the others.
Modules are imported when a name is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avtd3.learn import Policy, ReplayDataset, train
    from avtd3.store import (
        Avtd3Error,
        ConfigError,
        Dataset,
        Episode,
        EpisodeSpec,
        ImageSpec,
        Observation,
        SegmentWriter,
        SpecError,
        Step,
    )

__all__ = [
    "Avtd3Error",
    "ConfigError",
    "Dataset",
    "Episode",
    "EpisodeSpec",
    "ImageSpec",
    "Observation",
    "Policy",
    "ReplayDataset",
    "SegmentWriter",
    "SpecError",
    "Step",
    "train",
]

_PACKAGES = {"Policy": "learn", "ReplayDataset": "learn", "train": "learn"}
"""Package that exports each name, if it is not `avtd3.store`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PACKAGES.get(name, 'store')}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
