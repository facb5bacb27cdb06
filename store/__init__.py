"""Datasets of episodes on disk: write, read, filter, sample and audit them.

Nothing here knows about driving or torch. Modules are imported when a name is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avtd3.store.audit.audit import AuditConfig
    from avtd3.store.audit.audit import audit as audit_datasets
    from avtd3.store.audit.report import AuditReport
    from avtd3.store.dataset import Dataset, Snapshot
    from avtd3.store.episode import Episode
    from avtd3.store.episode_table import EpisodeTable
    from avtd3.store.errors import (
        Avtd3Error,
        CheckpointError,
        ConfigError,
        DatasetError,
        DatasetUnreadableError,
        FormatVersionError,
        InUseError,
        MissingPackageError,
        NoSegmentsError,
        RoadError,
        RouteError,
        SegmentCorruptError,
        SegmentNotFoundError,
        SegmentUnreadableError,
        SpecError,
        StorageError,
        UnreachableError,
        UnreadableError,
        WorldError,
        WorldLost,
    )
    from avtd3.store.events import Event
    from avtd3.store.exchange.exporting import export_episodes
    from avtd3.store.exchange.importing import import_episodes
    from avtd3.store.exchange.record import ImportConfig
    from avtd3.store.filters import EpisodeFilter, parse_filter
    from avtd3.store.format.codec import FrameCodec
    from avtd3.store.format.manifest import Limits
    from avtd3.store.replay.config import ReplayConfig
    from avtd3.store.replay.gather import Transitions
    from avtd3.store.replay.sampler import Sampler
    from avtd3.store.segment import Segment
    from avtd3.store.spec import EpisodeSpec, ImageSpec
    from avtd3.store.step import FrameStack, Observation, Step
    from avtd3.store.step_labels import StepLabels
    from avtd3.store.world_record import WorldRecord
    from avtd3.store.writer import PublishedSegment, SegmentWriter, WriterConfig

__all__ = [
    "AuditConfig",
    "AuditReport",
    "Avtd3Error",
    "CheckpointError",
    "ConfigError",
    "Dataset",
    "DatasetError",
    "DatasetUnreadableError",
    "Episode",
    "EpisodeFilter",
    "EpisodeSpec",
    "EpisodeTable",
    "Event",
    "FormatVersionError",
    "FrameCodec",
    "FrameStack",
    "ImageSpec",
    "ImportConfig",
    "InUseError",
    "Limits",
    "MissingPackageError",
    "NoSegmentsError",
    "Observation",
    "PublishedSegment",
    "ReplayConfig",
    "RoadError",
    "RouteError",
    "Sampler",
    "Segment",
    "SegmentCorruptError",
    "SegmentNotFoundError",
    "SegmentUnreadableError",
    "SegmentWriter",
    "Snapshot",
    "SpecError",
    "Step",
    "StepLabels",
    "StorageError",
    "Transitions",
    "UnreachableError",
    "UnreadableError",
    "WorldError",
    "WorldLost",
    "WorldRecord",
    "WriterConfig",
    "audit_datasets",
    "export_episodes",
    "import_episodes",
    "parse_filter",
]

_MODULES = {
    "AuditConfig": "audit.audit",
    "AuditReport": "audit.report",
    "Dataset": "dataset",
    "Episode": "episode",
    "EpisodeFilter": "filters",
    "EpisodeSpec": "spec",
    "EpisodeTable": "episode_table",
    "Event": "events",
    "FrameCodec": "format.codec",
    "FrameStack": "step",
    "ImageSpec": "spec",
    "ImportConfig": "exchange.record",
    "Limits": "format.manifest",
    "Observation": "step",
    "PublishedSegment": "writer",
    "ReplayConfig": "replay.config",
    "Sampler": "replay.sampler",
    "Segment": "segment",
    "SegmentWriter": "writer",
    "Snapshot": "dataset",
    "Step": "step",
    "StepLabels": "step_labels",
    "Transitions": "replay.gather",
    "WorldRecord": "world_record",
    "WriterConfig": "writer",
    "audit_datasets": "audit.audit",
    "export_episodes": "exchange.exporting",
    "import_episodes": "exchange.importing",
    "parse_filter": "filters",
}
"""Module of each name; the others are in `avtd3.store.errors`."""
_RENAMED = {"audit_datasets": "audit"}
"""Names in their modules, where the name is that of a package here."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    value: object = getattr(module, _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
