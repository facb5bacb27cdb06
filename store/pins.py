"""``pins.json``: the segments of a dataset that housekeeping must leave as they are."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from avtd3.store.dataset import Dataset
from avtd3.store.errors import DatasetError
from avtd3.store.files import canonical_json, read_json, write_aside

PINS_FILE = "pins.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Why a segment is to stay."""

    note: str
    """For people; may be empty."""
    pinned_at: float
    """Seconds since 1970."""


def read_pins(dataset: Dataset) -> dict[str, Pin]:
    """The pins of a dataset by segment id; of segments that are gone, too.

    Raises:
        DatasetError: The file is there and cannot be understood, so that nothing may be removed.
    """
    path = dataset.path / PINS_FILE
    try:
        return _parse(read_json(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}), expected what avtd3 store pin writes: mend it, or "
            "delete it and pin again"
        ) from error


def _parse(document: Any) -> dict[str, Pin]:  # noqa: ANN401 - any JSON value
    pins = document.get("pins") if isinstance(document, dict) else None
    if not isinstance(pins, dict):
        raise TypeError("no object under 'pins'")
    return {
        name: Pin(note=str(entry["note"]), pinned_at=float(entry["pinned_at"]))
        for name, entry in pins.items()
    }


def write_pins(dataset: Dataset, pins: Mapping[str, Pin]) -> None:
    """Replace the pins of a dataset, whose lock is held.

    Raises:
        StorageError: The dataset cannot be written.
    """
    document = {"pins": {name: dataclasses.asdict(pin) for name, pin in sorted(pins.items())}}
    write_aside(dataset.path / PINS_FILE, canonical_json(document) + b"\n")
