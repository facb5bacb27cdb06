"""One episode in the terminal: its facts, its numbers as sparklines, a strip of its frames."""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.render.episode_record import Channel, EpisodeRecord

MIN_WIDTH = 60
MAX_CHARACTERS = 400
"""Of one line of what is known: a stranger's town may have a name of a megabyte."""
FRAME_COLUMNS = 22
"""Characters across one frame of the strip."""
SPARKS = "▁▂▃▄▅▆▇█"
PLAIN_SPARKS = "_.-=+*%#"
SHADES = " .:-=+*#%@"
"""From dark to light, where the terminal has no colours."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """What the terminal can show."""

    width: int = 80
    """Characters in a line."""
    unicode: bool = True
    """Whether it shows blocks and bars."""
    colours: bool = False
    """Whether it understands ANSI's 256 colours."""


def draw_episode(record: EpisodeRecord, terminal: Terminal) -> str:
    """Draw an episode as lines of text.

    Raises:
        SegmentNotFoundError: The segment was removed since the record was read.
        SegmentCorruptError: The frames' bytes are not those that were published.
    """
    terminal = dataclasses.replace(terminal, width=max(MIN_WIDTH, terminal.width))
    lines = [*describe(record), "", *_channels(record, terminal)]
    if record.spec.image is not None:
        lines += ["", *_strip(record, terminal)]
    text = "\n".join(lines) + "\n"
    return text if terminal.unicode else text.encode("ascii", "replace").decode("ascii")


def describe(record: EpisodeRecord) -> list[str]:
    """What is known of an episode, in a few lines without control characters."""
    facts = record.facts
    drove = [f"driver {facts['driver']}"]
    if facts["policy_version"] >= 0:
        drove.append(f"policy version {facts['policy_version']}")
    if facts["exploration_noise"]:
        drove.append(f"noise {facts['exploration_noise']:.3g}")
    where = [f"{name} {facts[name]}" for name in ("world", "scenario", "town", "weather", "seed")]
    went = [
        f"{record.length:,} steps",
        f"{record.seconds:.1f} s",
        f"return {facts['episode_return']:.1f}",
        f"ended by {facts['end_reason']}",
        *_began(facts["wall_time"]),
    ]
    number = f" (number {facts['index']} in its plan)" if facts["index"] >= 0 else ""
    return [
        printable(f"episode {record.place.name} of {record.place.dataset}{number}"),
        *(f"  {printable(', '.join(parts))}" for parts in (where, [*drove, *went])),
    ]


def printable(text: str) -> str:
    """The text without control characters: a stranger's dataset must not steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_CHARACTERS])


def _began(wall_time: float) -> Iterator[str]:
    try:
        began = datetime.datetime.fromtimestamp(wall_time, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return
    yield f"began {began:%Y-%m-%d %H:%M} UTC"


def _channels(record: EpisodeRecord, terminal: Terminal) -> Iterator[str]:
    channels = [channel for track in record.tracks for channel in track.channels]
    width = max(len(printable(channel.name)) for channel in channels)
    yield f"  {'':<{width}}  {'min':>8}  {'mean':>8}  {'max':>8}"
    room = terminal.width - width - 36
    for channel in channels:
        moments = channel.moments
        numbers = (moments.minimum, moments.mean, moments.maximum)
        texts = [_short(number) if moments.count else "-" for number in numbers]
        columns = "  ".join(f"{text:>8}" for text in texts)
        line = sparkline(channel, max(8, room), terminal.unicode)
        yield f"  {printable(channel.name):<{width}}  {columns}  {line}"


def _short(value: float) -> str:
    text = f"{value:.2f}" if abs(value) < 1e5 else f"{value:.1e}"
    return "0.00" if text == "-0.00" else text


def sparkline(channel: Channel, width: int, unicode: bool = True) -> str:
    """A channel in one line of at most so many characters, from its minimum to its maximum.

    Each character stands for the value in its stretch that lies farthest from the channel's
    median, so a single spike is never averaged away; a stretch without a finite value is blank.
    """
    levels = SPARKS if unicode else PLAIN_SPARKS
    values = np.where(np.isfinite(channel.values), channel.values, np.nan)
    if np.isnan(values).all():
        return ""
    low, high, middle = np.nanmin(values), np.nanmax(values), np.nanmedian(values)
    characters = []
    for stretch in np.array_split(values, min(width, len(values))):
        finite = stretch[~np.isnan(stretch)]
        if not finite.size:
            characters.append(" ")
            continue
        value = finite[np.argmax(np.abs(finite - middle))]
        place = (value - low) / (high - low) if high > low else 0.0
        characters.append(levels[round(place * (len(levels) - 1))])
    return "".join(characters)


def _strip(record: EpisodeRecord, terminal: Terminal) -> Iterator[str]:
    """As many frames as fit side by side, evenly spaced in time."""
    observations = record.spread(max(1, (terminal.width - 2) // (FRAME_COLUMNS + 1)))
    pictures = [frame_blocks(record.frame(number), terminal) for number in observations]
    for row in zip(*pictures, strict=True):
        yield "  " + " ".join(row)
    times = (f"{number * record.spec.control_period_s:.1f} s" for number in observations)
    yield "  " + " ".join(f"{time:<{FRAME_COLUMNS}}" for time in times).rstrip()


def frame_blocks(frame: NDArray[np.uint8], terminal: Terminal) -> list[str]:
    """A frame uint8 (C, H, W) as rows of `FRAME_COLUMNS` characters.

    With colours a character shows two pixels, one above the other; without, one shade between the
    frame's darkest and its lightest.
    """
    from PIL import Image

    from avtd3.store.render.pictures import frame_image

    picture = frame_image(frame)
    rows = max(1, min(FRAME_COLUMNS, round(FRAME_COLUMNS * picture.height / picture.width / 2)))
    size = (FRAME_COLUMNS, 2 * rows if terminal.colours else rows)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BOX))
    if not terminal.colours:
        grey = pixels.mean(axis=2)
        levels = (grey - grey.min()) / max(1.0, float(np.ptp(grey))) * (len(SHADES) - 1)
        return ["".join(SHADES[round(level)] for level in line) for line in levels.tolist()]
    colours = [[_ansi_colour(pixel) for pixel in line] for line in pixels.tolist()]
    return list(map(_half_blocks, colours[::2], colours[1::2]))


def _half_blocks(upper: Sequence[int], lower: Sequence[int]) -> str:
    cells = zip(upper, lower, strict=True)
    return "".join(f"\x1b[38;5;{above};48;5;{below}m▀" for above, below in cells) + "\x1b[0m"


def _ansi_colour(pixel: list[int]) -> int:
    """The nearest of ANSI's 24 greys, or of its 216 colours."""
    red, green, blue = pixel
    if max(pixel) - min(pixel) < 8:
        return 232 + min(23, red * 24 // 256)
    return 16 + 36 * (red * 6 // 256) + 6 * (green * 6 // 256) + blue * 6 // 256
