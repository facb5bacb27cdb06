"""The table that `replay_bench.py` prints."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table; None leaves a cell empty."""

    name: str
    batches_per_second: float | None = None
    to_floor: float | None = None
    to_sb3: float | None = None
    memory_bytes: float | None = None
    """Bytes of memory per transition."""
    disk_bytes: float | None = None
    """Bytes on disk per transition, including the dataset if it is read."""

    def cells(self) -> list[str]:
        """Return the formatted cells."""
        ratios = [_show(value, ".2f") for value in (self.to_floor, self.to_sb3)]
        sizes = [_show(value, ",.0f") for value in (self.memory_bytes, self.disk_bytes)]
        digits = ",.0f" if (self.batches_per_second or 0) >= 10 else ".2g"
        return [self.name, _show(self.batches_per_second, digits), *ratios, *sizes]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rivals on one kind of frames."""

    kind: str
    transitions: int
    fill_one_core: float
    """Frames per second decoded into a cache on one core."""
    fill_two_cores: float
    """The same on two cores, if there are two."""
    rows: Sequence[Row]

    def title(self) -> str:
        """Return a description of what was measured."""
        return (
            f"{self.kind}: {self.transitions:,} transitions; "
            f"cache filled at {self.fill_one_core:,.0f} frames/s on one core, "
            f"{self.fill_two_cores:,.0f} on two"
        )

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"**{self.title()}**", "", _line(_HEAD), "|---|" + "---:|" * (len(_HEAD) - 1)]
        return "\n".join([*lines, *(_line(row.cells()) for row in self.rows), ""])

    def text(self) -> str:
        """Return the table as plain text."""
        cells = [_HEAD, *(row.cells() for row in self.rows)]
        widths = [max(len(line[at]) for line in cells) for at in range(len(_HEAD))]
        lines = [self.title()]
        for name, *numbers in cells:
            padded = [
                number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)
            ]
            lines.append("  ".join([name.ljust(widths[0]), *padded]))
        return "\n".join([*lines, ""])


_HEAD = ["", "batches/s", "to floor", "to SB3", "memory, bytes", "disk, bytes"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _show(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
