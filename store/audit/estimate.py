"""Estimate the disk space of a step from a small dataset."""

import dataclasses

from avtd3.store.dataset import Dataset
from avtd3.store.errors import DatasetError
from avtd3.store.format.layout import MANIFEST_FILE

ABOUT = "about the segment"
"""Key of the bytes that are not array data: manifests and metadata."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes per step of each array, as measured on a dataset."""

    steps: int
    seconds_per_step: float
    stored: dict[str, float]
    """Bytes per step by array, and `ABOUT`."""
    raw: float

    @property
    def bytes_per_step(self) -> float:
        """Return the bytes on disk per step."""
        return sum(self.stored.values())

    @property
    def hours_per_terabyte(self) -> float:
        """Return the hours of driving that fit into 10^12 bytes."""
        return 1e12 / self.bytes_per_step * self.seconds_per_step / 3600.0

    def document(self) -> dict[str, object]:
        """Return the estimate as a JSON object."""
        return {
            **dataclasses.asdict(self),
            "bytes_per_step": self.bytes_per_step,
            "hours_per_terabyte": self.hours_per_terabyte,
            "ratio": self.raw / self.bytes_per_step,
        }

    def summary(self) -> str:
        """Format the estimate for a terminal, the largest array first."""
        lines = [
            f"{self.bytes_per_step:,.0f} bytes per step, "
            f"{self.hours_per_terabyte:,.0f} hours per terabyte",
            f"  measured on {self.steps:,} steps; {self.raw:,.0f} bytes raw, "
            f"{self.raw / self.bytes_per_step:.1f}x",
        ]
        for name, size in sorted(self.stored.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:<28} {size:>12,.1f}  {size / self.bytes_per_step:>6.1%}")
        return "\n".join(lines) + "\n"


def estimate(dataset: Dataset) -> Estimate:
    """Measure the published segments of a dataset."""
    stored: dict[str, float] = {}
    steps, raw = 0, 0
    for segment in dataset.snapshot().segments:
        steps, raw = steps + segment.steps, raw + segment.raw_bytes
        about = stored.get(ABOUT, 0.0)
        stored[ABOUT] = about + (segment.path / MANIFEST_FILE).stat().st_size
        for name, entry in segment.files.items():
            array, _, rest = name.partition("/")
            key = array if rest.startswith("c/") else ABOUT
            stored[key] = stored.get(key, 0.0) + entry.size
    if not steps:
        raise DatasetError(
            f"{dataset.path} has no steps to measure; collect a few seconds of driving first"
        )
    return Estimate(
        steps=steps,
        seconds_per_step=dataset.spec.control_period_s,
        stored={name: size / steps for name, size in stored.items()},
        raw=raw / steps,
    )
