"""Pin segments, so that no maintenance command removes or merges them: ``pins.json``."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    DatasetUnreadableError,
    SegmentNotFoundError,
    advice,
)
from avtd3.store.files import canonical_json, is_passing, read_json, write_aside
from avtd3.store.filters import EpisodeFilter
from avtd3.store.maintenance.removal import exclusive
from avtd3.store.render.text import join_lines, plural

PINS_FILE = "pins.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Why and since when a segment is pinned."""

    note: str
    """A note of the user; may be empty."""
    pinned_at: float
    """Time of the pin, in seconds since 1970."""


def read_pins(dataset: Dataset) -> dict[str, Pin]:
    """Return the pins of a dataset by segment id, including those of removed segments."""
    path = dataset.path / PINS_FILE
    try:
        return _parse(read_json(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        kind = DatasetUnreadableError if is_passing(error) else DatasetError
        raise kind(f"{path} cannot be read: {advice(error, reads=True)}") from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}), expected the format of avtd3 store pin; fix the "
            "file, or delete it and pin again"
        ) from error


def _parse(document: Any) -> dict[str, Pin]:  # noqa: ANN401 - any JSON value
    pins = document.get("pins") if isinstance(document, dict) else None
    if not isinstance(pins, dict):
        raise TypeError("no object under 'pins'")
    found = {
        name: Pin(note=str(entry["note"]), pinned_at=float(entry["pinned_at"]))
        for name, entry in pins.items()
    }
    if not all(math.isfinite(each.pinned_at) for each in found.values()):
        raise ValueError("a time that is not finite")
    return found


def write_pins(dataset: Dataset, pins: Mapping[str, Pin]) -> None:
    """Replace the pins of a dataset; the caller holds its lock."""
    document = {"pins": {name: dataclasses.asdict(pin) for name, pin in pins.items()}}
    write_aside(dataset.path / PINS_FILE, canonical_json(document) + b"\n")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PinReport:
    """The pins of a dataset, and which segments a command pinned or unpinned."""

    dataset: str
    changed: tuple[str, ...]
    """Ids of the segments that were pinned or unpinned."""
    pins: Mapping[str, Pin]
    absent: tuple[str, ...]
    """Ids of pinned segments that are not in the dataset."""

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """Format the report for a terminal, with a line for each pin."""
        lines = [f"{plural(len(self.pins), 'pinned segment')} in {self.dataset}"]
        for name, pin in self.pins.items():
            gone = " (not there)" if name in self.absent else ""
            lines.append(f"  {name}{gone}{'  ' if pin.note else ''}{pin.note}")
        return join_lines(lines)


def list_pins(path: Path) -> PinReport:
    """Return the pins of a dataset."""
    dataset = Dataset.open(path)
    return _report(dataset, read_pins(dataset), ())


def pin(
    path: Path,
    segment_ids: Sequence[str],
    *,
    episodes: EpisodeFilter | None = None,
    note: str = "",
    clock: Callable[[], float] = time.time,
) -> PinReport:
    """Pin segments by id, and those with a matching episode."""
    dataset = Dataset.open(path)
    with exclusive(dataset):
        names = _named(dataset, segment_ids, episodes)
        there = set(dataset.segment_ids())
        for name in names:
            if name not in there:
                raise SegmentNotFoundError(f"there is no segment {name} in {path}")
        pins = read_pins(dataset)
        new = [name for name in names if name not in pins]
        pins |= {name: Pin(note=note, pinned_at=clock()) for name in names}
        write_pins(dataset, pins)
    return _report(dataset, pins, new)


def unpin(
    path: Path, segment_ids: Sequence[str], *, episodes: EpisodeFilter | None = None
) -> PinReport:
    """Unpin segments by id, and those with a matching episode."""
    dataset = Dataset.open(path)
    with exclusive(dataset):
        names = _named(dataset, segment_ids, episodes)
        pins = read_pins(dataset)
        for name in segment_ids:
            if name not in pins:
                raise ConfigError(f"segment {name} of {path} is not pinned")
        gone = [name for name in names if pins.pop(name, None) is not None]
        write_pins(dataset, pins)
    return _report(dataset, pins, gone)


def _named(
    dataset: Dataset, segment_ids: Sequence[str], episodes: EpisodeFilter | None
) -> list[str]:
    if not segment_ids and episodes is None:
        raise ConfigError("no segments were selected; name segments, or give --filter")
    names = [*segment_ids]
    if episodes is not None:
        segments = dataset.snapshot().segments
        names += [s.id for s in segments if episodes.matches(s.episode_table()).any()]
    return list(dict.fromkeys(names))


def _report(dataset: Dataset, pins: Mapping[str, Pin], changed: Sequence[str]) -> PinReport:
    there = set(dataset.segment_ids())
    return PinReport(
        dataset=str(dataset.path),
        changed=tuple(changed),
        pins=dict(sorted(pins.items())),
        absent=tuple(sorted(pins.keys() - there)),
    )
