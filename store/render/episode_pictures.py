"""One episode as pictures: a contact sheet, a GIF, a film.

Frames are read a few at a time and its plots are drawn once, so an hour plays in as little memory
as a minute.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avtd3.store.errors import ConfigError
from avtd3.store.render.episode_record import EpisodeRecord, Track
from avtd3.store.render.episode_text import describe, printable
from avtd3.store.render.pictures import (
    INK,
    PAPER,
    animation,
    contact_sheet,
    film,
    font,
    frame_image,
    sheet_width,
)

SHEET_FRAMES = 24
SHEET_COLUMNS = 8
PLAYED_PX = 384
"""Height of a played picture, and about the width of the camera's part."""
MAX_GIF_PICTURES = 600
"""Longest GIF, one minute; of longer episodes frames are left out, so that files stay small."""
GIF_PERIOD_S = 0.1
"""Shortest time that a GIF's picture stands."""
PLOT_HEIGHT_PX = 84
FAINT = (70, 78, 88)
COLOURS = (
    (64, 156, 255),
    (255, 184, 77),
    (96, 220, 140),
    (240, 110, 120),
    (190, 140, 255),
    (120, 210, 220),
)
"""Of the lines of a plot, in their order."""


def write_sheet(record: EpisodeRecord, path: Path) -> None:
    """Write frames of an episode, evenly spaced, above plots of its numbers, as one PNG.

    Raises:
        SegmentNotFoundError: The segment was removed since the record was read.
        SegmentCorruptError: The frames' bytes are not those that were published.
        ConfigError: The file's name does not end in .png.
        StorageError: The file cannot be written.
    """
    _check_name(path, ".png")
    image = record.spec.image
    observations = record.spread(SHEET_FRAMES) if image is not None else [0]
    # Without a camera the plots are all there is to see: one empty picture holds their place.
    pictures = [_camera(record.frame(n), 168) for n in observations] if image is not None else []
    pictures = pictures or [Image.new("RGB", (168, 1), PAPER)]
    columns = SHEET_COLUMNS if len(pictures) >= SHEET_COLUMNS else len(pictures)
    width = max(SHEET_COLUMNS * 168, sheet_width(pictures[0].width, columns) - 12)
    plots = _Plots(record, width, PLOT_HEIGHT_PX * len(record.tracks)).drawn(None)
    period_s = record.spec.control_period_s
    contact_sheet(
        pictures,
        [f"{n * period_s:.1f} s" if image is not None else "" for n in observations],
        path,
        columns=columns,
        below=plots,
        title="\n".join(line.strip() for line in describe(record)),
    )


def write_gif(record: EpisodeRecord, path: Path) -> None:
    """Play an episode as a GIF, in its own time.

    Raises:
        SegmentNotFoundError, SegmentCorruptError, ConfigError, StorageError: As `write_sheet`.
    """
    _check_name(path, ".gif")
    period_s = record.spec.control_period_s
    every = max(
        math.ceil((record.length + 1) / MAX_GIF_PICTURES), round(GIF_PERIOD_S / period_s), 1
    )
    animation(_played(record, every), path, period_s=every * period_s)


def write_film(record: EpisodeRecord, path: Path) -> None:
    """Play an episode as an MP4, every frame of it, in its own time.

    Raises:
        SegmentNotFoundError, SegmentCorruptError, StorageError: As `write_sheet`.
        ConfigError: PyAV is not installed, or the file's name does not end in .mp4.
    """
    _check_name(path, ".mp4")
    film(_played(record, 1), path, period_s=record.spec.control_period_s)


def _check_name(path: Path, ending: str) -> None:
    if path.suffix.lower() != ending:
        raise ConfigError(f"{path} would hold a {ending[1:].upper()}; name it *{ending}")


def _played(record: EpisodeRecord, every: int) -> Iterator[Image.Image]:
    """Each frame beside the plots, a line on them at its time, above a caption."""
    caption_px = 30
    plots = _Plots(record, PLAYED_PX + 48, PLAYED_PX)
    period_s = record.spec.control_period_s
    facts = record.facts
    known = printable(
        f"{facts['driver']} in {facts['town']}, return {facts['episode_return']:.1f}, "
        f"ended by {facts['end_reason']}"
    )
    for number, camera in enumerate(_cameras(record, every)):
        observation = number * every
        width = plots.size[0] + (0 if camera is None else camera.width)
        picture = Image.new("RGB", (width + width % 2, PLAYED_PX + caption_px), PAPER)
        if camera is not None:
            picture.paste(camera, (0, (PLAYED_PX - camera.height) // 2))
        picture.paste(plots.drawn(observation), (width - plots.size[0], 0))
        caption = f"{observation * period_s:5.1f} s   {known}"
        ImageDraw.Draw(picture).text((8, PLAYED_PX + 7), caption, fill=INK, font=font(14))
        yield picture


def _cameras(record: EpisodeRecord, every: int) -> Iterator[Image.Image | None]:
    if record.spec.image is None:
        yield from (None for _ in range(0, record.length + 1, every))
        return
    for frame in record.frames(every):
        yield _camera(frame, PLAYED_PX)


def _camera(frame: NDArray[np.uint8], side: int) -> Image.Image:
    """A frame that fills a square of so many pixels in its longer direction; pixels stay sharp."""
    picture = frame_image(frame)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    filters = Image.Resampling
    return picture.resize(size, filters.NEAREST if scale >= 1.0 else filters.LANCZOS)


class _Plots:
    """The tracks of an episode one above the other, drawn once; a cursor is drawn on copies."""

    def __init__(self, record: EpisodeRecord, width: int, height: int) -> None:
        self.size = (width, height)
        self._record = record
        self._each = height // len(record.tracks)
        large = Image.new("RGB", (2 * width, 2 * height), PAPER)
        draw = ImageDraw.Draw(large)
        for number, track in enumerate(record.tracks):
            self._draw_lines(draw, track, number)
        # Drawn at twice the size and reduced: lines without steps.
        self._still = large.reduce(2)
        self._write_names()

    def drawn(self, observation: int | None) -> Image.Image:
        """The plots; with a cursor at the time of an observation, unless it is None."""
        picture = self._still.copy()
        if observation is not None:
            x = 8 + round((self.size[0] - 16) * observation / max(1, self._record.length))
            ImageDraw.Draw(picture).line([(x, 0), (x, self.size[1])], fill=INK)
        return picture

    def _draw_lines(self, draw: ImageDraw.ImageDraw, track: Track, number: int) -> None:
        top, bottom = 2 * (number * self._each + 20), 2 * ((number + 1) * self._each - 6)
        low, high = track.shown_range
        if low < 0.0 < high:
            zero = bottom + (top - bottom) * -low / (high - low)
            draw.line([(16, zero), (2 * self.size[0] - 16, zero)], fill=FAINT, width=2)
        for channel, colour in zip(track.channels, COLOURS, strict=False):
            share = (np.clip(channel.values, low, high) - low) / (high - low)
            y = bottom + (top - bottom) * share
            x = np.linspace(16, 2 * self.size[0] - 16, len(y))
            for run in _finite_runs(y):
                points = [(float(x[n]), float(y[n])) for n in run]
                draw.line(points, fill=colour, width=3, joint="curve")

    def _write_names(self) -> None:
        draw = ImageDraw.Draw(self._still)
        for number, track in enumerate(self._record.tracks):
            y = number * self._each + 4
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
    """Least and largest value of a track, and whether its plot is cut off below them."""
    moments = [channel.moments for channel in track.channels if channel.moments.count]
    if not moments:
        return "no finite value"
    least, largest = min(m.minimum for m in moments), max(m.maximum for m in moments)
    low, high = track.shown_range
    cut = low > least or high < largest
    return f"{least:.3g} .. {largest:.3g}" + (f" (drawn {low:.2g} .. {high:.2g})" if cut else "")


def _finite_runs(values: NDArray[np.float64]) -> Iterator[range]:
    """Stretches of two or more finite values in a row."""
    finite = np.concatenate([[False], np.isfinite(values), [False]])
    edges = np.flatnonzero(finite[1:] != finite[:-1])
    for start, stop in edges.reshape(-1, 2).tolist():
        if stop - start > 1:
            yield range(start, stop)
