"""Format numbers, sizes and times, and draw tables, bars and frames as lines of text.

Pages, charts, reports and progress lines use the same formatters, so a value reads the same
everywhere.
"""

import dataclasses
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import escape

WIDTH = 80
"""Columns of a terminal."""
MAX_CHARACTERS = 400
"""Longest name from a dataset that is printed; the file may hold one of a megabyte."""
LARGEST = 1e300
"""Values beyond are drawn here, so that the difference of any two is a number."""
MAX_LINE = 10_000
"""Characters of the longest line that is printed."""
BAR_WIDTH = 24
"""Characters of the longest bar."""
FRAME_COLUMNS = 22
"""Characters across one frame."""
SPARKS = "▁▂▃▄▅▆▇█"
PLAIN_SPARKS = "_.-=+*%#"
SHADES = " .:-=+*#%@"
"""From dark to light, or from no value to the most."""


def number(value: float | None, digits: int = 3) -> str:
    """Format a number in few characters, as ``0.25``, ``5,171``, ``12.3k`` or ``1.0e-09``.

    Whole numbers below 10,000 are always exact; None becomes ``-``.
    """
    if value is None:
        return "-"
    rounded = float(f"{value:.{digits}g}")
    size = abs(rounded)
    if size == 0.0:
        return "0"
    if 1e-3 <= size < 1e3:
        return f"{rounded:.{digits}g}" if size < 10**digits else f"{rounded:.0f}"
    if 1e3 <= size < 1e4:
        return f"{value:,.0f}"
    for unit, scale in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if 1e4 <= size < 1e3 * scale:
            return f"{rounded / scale:.{digits}g}{unit}"
    return f"{value:.{max(1, digits - 2)}e}"


def integer(value: float) -> str:
    """Format a whole number with commas between thousands."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """Format a share: whole percents, and one decimal below 10% and just below 100%."""
    if share in (0.0, 1.0) or 0.0995 <= abs(share) < 0.995:
        return f"{share:.0%}"
    return f"{share:.1%}"


def file_size(size_bytes: float) -> str:
    """Format a number of bytes in decimal units, as ``26.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000.0
    return f"{size_bytes:,.2f} TB"


def duration(seconds: float) -> str:
    """Format a duration, as ``4.5 s``, ``5.6 min`` or ``1,200.0 h``."""
    if seconds < 60.0:
        return f"{seconds:.3g} s"
    return f"{seconds / 60.0:.1f} min" if seconds < 3600.0 else f"{seconds / 3600.0:,.1f} h"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Format a count with its noun; ``nouns`` is the plural where it is not noun + s."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkProgress:
    """How much of a command's work is done."""

    verb: str
    """What is done, as a past participle."""
    done: int
    """How many are done, those of earlier runs included."""
    total: int
    """How many there are to do."""
    noun: str = "segment"
    """What is counted."""

    @property
    def fraction(self) -> float:
        """Return the share that is done, in [0, 1]."""
        return self.done / max(1, self.total)

    def line(self) -> str:
        """Format the progress as one line."""
        return f"{self.verb} {self.done:,} of {plural(self.total, self.noun)}"


def shorten(text: str, most: int = 120) -> str:
    """Cut a text to at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(text: str) -> str:
    """Make a text from a dataset safe to print: short, and without codes that steer a terminal."""
    return escape(text[:MAX_CHARACTERS])


def join_lines(lines: Iterable[str]) -> str:
    """Join lines into a text for a terminal; a line break or control code in one is escaped."""
    return "\n".join(escape(shorten(line, MAX_LINE)) for line in lines)


def wrap(text: str, indent: str) -> list[str]:
    """Break a text into lines of 80 columns; paths and names stay whole."""
    return textwrap.wrap(
        escape(text),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def columns(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Align rows of cells; ``align`` has ``<`` or ``>`` for each column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def markdown_table(heads: Sequence[str], align: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a table as Markdown; ``align`` has ``<`` or ``>`` for each column."""

    def line(cells: Sequence[str]) -> str:
        # A cell must not break out of its column.
        safe = (" ".join(text.split()) for text in cells)
        escaped = (text.replace("|", "\\|").replace("<", "&lt;") for text in safe)
        return f"| {' | '.join(map(escape, escaped))} |"

    return [line(heads), line(["---:" if side == ">" else "---" for side in align])] + [
        line(row) for row in rows
    ]


def largest(counts: Mapping[str, float], most: int) -> list[tuple[str, float]]:
    """Return the ``most`` largest values by name, and the sum of the others as one more row."""
    ranked = Counter(counts).most_common()
    rest = ranked[most:]
    others = [(f"{len(rest)} others", sum(value for _, value in rest))] if rest else []
    return [*ranked[:most], *others]


def bars(rows: Sequence[tuple[str, float, str]]) -> list[str]:
    """Draw a bar for each row of name, value and the value as text."""
    longest = max(value for _, value, _ in rows)
    cells = []
    for name, value, text in rows:
        bar = "#" * max(1, round(BAR_WIDTH * value / longest)) if value > 0 else ""
        cells.append((name, text, bar))
    return columns(cells, "<><")


def shade_strip(counts: NDArray[np.float64], width: int) -> str:
    """Draw counts float64 (N,) as one line: the more, the darker; N is at most ``width``."""
    most = max(1.0, float(counts.max(initial=0.0)))
    inks = [SHADES[math.ceil(count / most * (len(SHADES) - 1))] for count in counts]
    return "".join(inks[place * len(inks) // width] for place in range(width))


def drawable(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values whose differences are finite: at most `LARGEST` in size, or else NaN."""
    return np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), np.nan)


def axis_range(low: float, high: float) -> tuple[float, float]:
    """Return the range of an axis that shows both values, the first below the second."""
    if high > low:
        return low, high
    room = max(0.5, 1e-6 * abs(low))  # half would be lost in the rounding of a large value
    return low - room, low + room


def sparkline(values: NDArray[np.float64], width: int, *, unicode: bool = True) -> str:
    """Draw values float64 (T,) as one line of at most ``width`` characters.

    Each character shows the value of its stretch that is farthest from the median, so a single
    spike is never averaged away; a stretch without a finite value is blank.
    """
    levels = SPARKS if unicode else PLAIN_SPARKS
    finite = drawable(values)
    if np.isnan(finite).all():
        return ""
    low, high, middle = np.nanmin(finite), np.nanmax(finite), np.nanmedian(finite)
    characters = []
    for stretch in np.array_split(finite, min(width, len(finite))):
        known = stretch[~np.isnan(stretch)]
        if not known.size:
            characters.append(" ")
            continue
        value = known[np.argmax(np.abs(known - middle))]
        place = (value - low) / (high - low) if high > low else 0.0
        characters.append(levels[round(place * (len(levels) - 1))])
    return "".join(characters)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """What a terminal can show."""

    width: int = 80
    """Characters in a line."""
    unicode: bool = True
    """Whether it shows blocks and bars."""
    colours: bool = False
    """Whether it understands ANSI's 256 colours."""


def frame_blocks(frame: NDArray[np.uint8], *, colours: bool) -> list[str]:
    """Draw a frame uint8 (C, H, W) as rows of `FRAME_COLUMNS` characters.

    With colours a character shows two pixels, one above the other; without, one shade between the
    frame's darkest and its lightest.
    """
    from PIL import Image

    from avtd3.store.render.media import frame_image

    picture = frame_image(frame)
    rows = max(1, min(FRAME_COLUMNS, round(FRAME_COLUMNS * picture.height / picture.width / 2)))
    size = (FRAME_COLUMNS, 2 * rows if colours else rows)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BOX))
    if not colours:
        grey = pixels.mean(axis=2)
        levels = (grey - grey.min()) / max(1.0, float(np.ptp(grey))) * (len(SHADES) - 1)
        return ["".join(SHADES[round(level)] for level in line) for line in levels.tolist()]
    codes = [[_ansi_colour(pixel) for pixel in line] for line in pixels.tolist()]
    return list(map(_half_blocks, codes[::2], codes[1::2]))


def _half_blocks(upper: Sequence[int], lower: Sequence[int]) -> str:
    cells = zip(upper, lower, strict=True)
    return "".join(f"\x1b[38;5;{above};48;5;{below}m▀" for above, below in cells) + "\x1b[0m"


def _ansi_colour(pixel: Sequence[int]) -> int:
    """Return the code of the nearest of ANSI's 24 greys or 216 colours."""
    red, green, blue = pixel
    if max(pixel) - min(pixel) < 8:
        return 232 + min(23, red * 24 // 256)
    return 16 + 36 * (red * 6 // 256) + 6 * (green * 6 // 256) + blue * 6 // 256
