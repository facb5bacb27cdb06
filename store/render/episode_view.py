"""Show one episode: as text in a terminal, as a contact sheet, as a GIF or an MP4."""

import dataclasses
import datetime
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from avtd3.store.errors import ConfigError
from avtd3.store.render.episode_record import EpisodeRecord, Track
from avtd3.store.render.media import (
    GAP_PX,
    INK,
    PAPER,
    font,
    scaled_image,
    sheet_width,
    write_contact_sheet,
    write_gif,
    write_mp4,
)
from avtd3.store.render.text import (
    FRAME_COLUMNS,
    Terminal,
    columns,
    frame_blocks,
    join_lines,
    number,
    printable,
    sparkline,
)

MIN_WIDTH = 60
MIN_SPARKLINE = 8
"""Characters of a sparkline, however narrow the terminal is."""
SHEET_FRAMES = 24
SHEET_COLUMNS = 8
SHEET_PX = 168
"""Longer side of a frame on a contact sheet."""
PLOT_HEIGHT_PX = 84
PLAYED_PX = 384
"""Height of a played picture, and about the width of the camera's part."""
CAPTION_PX = 30
MAX_GIF_PICTURES = 600
"""Pictures of the longest GIF, one minute; frames of longer episodes are skipped."""
GIF_PERIOD_S = 0.1
"""Shortest time that a picture of a GIF is shown."""
FAINT = (70, 78, 88)
COLOURS = (
    (64, 156, 255),
    (255, 184, 77),
    (96, 220, 140),
    (240, 110, 120),
    (190, 140, 255),
    (120, 210, 220),
)
"""Colours of the lines of a plot, in their order."""


def draw_episode(record: EpisodeRecord, terminal: Terminal) -> str:
    """Draw an episode as lines of text: facts, a sparkline for each channel, a filmstrip."""
    terminal = dataclasses.replace(terminal, width=max(MIN_WIDTH, terminal.width))
    lines = [*describe(record), "", *_channel_lines(record, terminal)]
    text = join_lines([*lines, ""])
    if record.spec.image is not None:  # its colours are control characters, and stay
        text += "\n" + "\n".join(_filmstrip(record, terminal)) + "\n"
    return text if terminal.unicode else text.encode("ascii", "replace").decode("ascii")


def describe(record: EpisodeRecord) -> list[str]:
    """Return the facts of an episode in a few lines without control characters."""
    facts = record.facts
    drove = [f"driver {facts['driver']}"]
    if facts["policy_version"] >= 0:
        drove.append(f"policy version {facts['policy_version']}")
    if facts["exploration_noise"]:
        drove.append(f"noise {number(facts['exploration_noise'])}")
    where = [f"{name} {facts[name]}" for name in ("world", "scenario", "town", "weather", "seed")]
    went = [
        f"{record.length:,} steps",
        f"{record.seconds:.1f} s",
        f"return {facts['episode_return']:.1f}",
        f"ended by {facts['end_reason']}",
        *_start_time(facts["wall_time"]),
    ]
    index = f" (number {facts['index']} in its plan)" if facts["index"] >= 0 else ""
    return [
        printable(f"episode {record.place.name} of {record.place.dataset}{index}"),
        *(f"  {printable(', '.join(parts))}" for parts in (where, [*drove, *went])),
    ]


def write_episode_sheet(record: EpisodeRecord, path: Path) -> None:
    """Write evenly spaced frames of an episode above plots of its numbers, as one PNG."""
    _check_name(path, ".png")
    if record.spec.image is None:
        # Without a camera there are only the plots: one empty picture holds the frames' place.
        pictures, captions = [Image.new("RGB", (SHEET_PX, 1), PAPER)], [""]
    else:
        shown, period_s = record.spread(SHEET_FRAMES), record.spec.control_period_s
        pictures = [scaled_image(record.frame(n), SHEET_PX) for n in shown]
        captions = [f"{n * period_s:.1f} s" for n in shown]
    in_a_row = min(SHEET_COLUMNS, len(pictures))
    width = max(SHEET_COLUMNS * SHEET_PX, sheet_width(pictures[0].width, in_a_row) - 2 * GAP_PX)
    plots = _Plots(record, width, PLOT_HEIGHT_PX * len(record.tracks)).drawn(None)
    title = "\n".join(line.strip() for line in describe(record))
    write_contact_sheet(pictures, captions, path, columns=in_a_row, below=plots, title=title)


def write_episode_gif(record: EpisodeRecord, path: Path) -> None:
    """Write an episode as a GIF in real time."""
    _check_name(path, ".gif")
    period_s = record.spec.control_period_s
    every = max(
        math.ceil((record.length + 1) / MAX_GIF_PICTURES), round(GIF_PERIOD_S / period_s), 1
    )
    write_gif(_pictures(record, every), path, period_s=every * period_s)


def write_episode_mp4(record: EpisodeRecord, path: Path) -> None:
    """Write every frame of an episode as an MP4 in real time."""
    _check_name(path, ".mp4")
    write_mp4(_pictures(record, 1), path, period_s=record.spec.control_period_s)


def _start_time(wall_time: float) -> Iterator[str]:
    try:
        began = datetime.datetime.fromtimestamp(wall_time, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return
    yield f"began {began:%Y-%m-%d %H:%M} UTC"


def _channel_lines(record: EpisodeRecord, terminal: Terminal) -> Iterator[str]:
    channels = [channel for track in record.tracks for channel in track.channels]
    rows = [["", "min", "mean", "max"]]
    for channel in channels:
        moments = channel.moments
        values = (moments.minimum, moments.mean, moments.maximum)
        figures = [number(value if moments.count else None) for value in values]
        rows.append([printable(channel.name), *figures])
    heads, *lines = columns(rows, "<>>>")
    yield f"  {heads}"
    widest = max(map(len, lines))
    room = max(MIN_SPARKLINE, terminal.width - widest - 6)
    for line, channel in zip(lines, channels, strict=True):
        drawn = sparkline(channel.values, room, unicode=terminal.unicode)
        yield f"  {line:<{widest}}  {drawn}"


def _filmstrip(record: EpisodeRecord, terminal: Terminal) -> Iterator[str]:
    """Draw as many evenly spaced frames as fit side by side."""
    observations = record.spread(max(1, (terminal.width - 2) // (FRAME_COLUMNS + 1)))
    pictures = [frame_blocks(record.frame(n), colours=terminal.colours) for n in observations]
    for row in zip(*pictures, strict=True):
        yield "  " + " ".join(row)
    times = (f"{n * record.spec.control_period_s:.1f} s" for n in observations)
    yield "  " + " ".join(f"{time:<{FRAME_COLUMNS}}" for time in times).rstrip()


def _check_name(path: Path, ending: str) -> None:
    if path.suffix.lower() != ending:
        raise ConfigError(f"{path} would hold a {ending[1:].upper()}; name it *{ending}")


def _pictures(record: EpisodeRecord, every: int) -> Iterator[Image.Image]:
    """Yield each frame beside the plots, with a line at its time on them, above a caption."""
    plots = _Plots(record, PLAYED_PX + 48, PLAYED_PX)
    facts = record.facts
    known = printable(
        f"{facts['driver']} in {facts['town']}, return {facts['episode_return']:.1f}, "
        f"ended by {facts['end_reason']}"
    )
    frames = iter(()) if record.spec.image is None else record.frames(every)
    for observation in range(0, record.length + 1, every):
        frame = next(frames, None)
        camera = None if frame is None else scaled_image(frame, PLAYED_PX)
        width = plots.size[0] + (0 if camera is None else camera.width)
        picture = Image.new("RGB", (width + width % 2, PLAYED_PX + CAPTION_PX), PAPER)
        if camera is not None:
            picture.paste(camera, (0, (PLAYED_PX - camera.height) // 2))
        picture.paste(plots.drawn(observation), (width - plots.size[0], 0))
        caption = f"{observation * record.spec.control_period_s:5.1f} s   {known}"
        ImageDraw.Draw(picture).text((8, PLAYED_PX + 7), caption, fill=INK, font=font(14))
        yield picture


class _Plots:
    """The tracks of an episode one above the other, drawn once; a cursor is drawn on copies."""

    def __init__(self, record: EpisodeRecord, width: int, height: int) -> None:
        self.size = (width, height)
        self._record = record
        self._each = height // len(record.tracks)
        large = Image.new("RGB", (2 * width, 2 * height), PAPER)
        draw = ImageDraw.Draw(large)
        for row, track in enumerate(record.tracks):
            self._draw_lines(draw, track, row)
        # Drawn at twice the size and reduced, for smooth lines.
        self._still = large.reduce(2)
        self._write_names()

    def drawn(self, observation: int | None) -> Image.Image:
        """Return the plots, with a cursor at the time of an observation unless it is None."""
        picture = self._still.copy()
        if observation is not None:
            x = 8 + round((self.size[0] - 16) * observation / max(1, self._record.length))
            ImageDraw.Draw(picture).line([(x, 0), (x, self.size[1])], fill=INK)
        return picture

    def _draw_lines(self, draw: ImageDraw.ImageDraw, track: Track, row: int) -> None:
        top, bottom = 2 * (row * self._each + 20), 2 * ((row + 1) * self._each - 6)
        low, high = track.shown_range
        if low < 0.0 < high:
            zero = bottom + (top - bottom) * -low / (high - low)
            draw.line([(16, zero), (2 * self.size[0] - 16, zero)], fill=FAINT, width=2)
        for channel, colour in zip(track.channels, COLOURS, strict=False):
            share = (np.clip(channel.values, low, high) - low) / (high - low)
            y = bottom + (top - bottom) * share
            x = np.linspace(16, 2 * self.size[0] - 16, len(y))
            for run in np.split(np.arange(len(y)), np.flatnonzero(~np.isfinite(y))):
                points = [(float(x[n]), float(y[n])) for n in run if np.isfinite(y[n])]
                if len(points) > 1:
                    draw.line(points, fill=colour, width=3, joint="curve")

    def _write_names(self) -> None:
        draw = ImageDraw.Draw(self._still)
        for row, track in enumerate(self._record.tracks):
            y = row * self._each + 4
            draw.line([(0, y - 4), (self.size[0], y - 4)], fill=FAINT)
            text = _range_text(track)
            right = self.size[0] - 8 - draw.textlength(text, font=font(11))
            draw.text((right, y), text, fill=INK, font=font(11))
            x = 8.0
            for channel, colour in zip(track.channels, COLOURS, strict=False):
                width = draw.textlength(channel.name, font=font(11))
                if x + width > right - 8:
                    draw.text((x, y), "...", fill=colour, font=font(11))
                    break
                draw.text((x, y), channel.name, fill=colour, font=font(11))
                x += width + 10


def _range_text(track: Track) -> str:
    """Format the range of a track, and the range of its plot where that cuts off outliers."""
    moments = [channel.moments for channel in track.channels if channel.moments.count]
    if not moments:
        return "no finite value"
    least, largest = min(m.minimum for m in moments), max(m.maximum for m in moments)
    low, high = track.shown_range
    cut = f" (drawn {number(low, 2)} .. {number(high, 2)})"
    return f"{number(least)} .. {number(largest)}" + (cut if low > least or high < largest else "")
