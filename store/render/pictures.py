"""Frames as pictures: contact sheets, animations, films.

A film is encoded while its pictures are made, so it needs no more memory than one of them; a GIF is
held as palette indices, one byte per pixel.
"""

import io
import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avtd3.store.errors import ConfigError
from avtd3.store.files import write_aside

INK = (230, 234, 238)
"""Colour of text, red, green and blue."""
PAPER = (24, 28, 33)
"""Colour behind everything."""

GIF_COLOURS = 96
PALETTE_FROM = 30
"""Pictures that a GIF's colours are chosen from: its first ones."""
FILM_QUALITY = 20
"""x264's constant rate factor: about 50 kB per second of an episode."""


def frame_image(frame: NDArray[np.uint8]) -> Image.Image:
    """Turn uint8 (C, H, W) into an RGB image: its first three planes, or the first one as grey."""
    planes = frame[:3] if frame.shape[0] >= 3 else np.repeat(frame[:1], 3, axis=0)
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    path: Path,
    *,
    columns: int = 5,
    below: Image.Image | None = None,
    title: str = "",
) -> None:
    """Write pictures in a grid, each above its caption, as one PNG.

    Args:
        pictures: At least one picture, all of one size.
        captions: One line for each picture.
        path: The file, replaced atomically.
        columns: Pictures in a row.
        below: A picture under the grid.
        title: Lines above the grid.

    Raises:
        StorageError: The file cannot be written.
    """
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    gap, line = 6, 18
    top = gap + (line * (title.count("\n") + 1) + gap if title else 0)
    size = sheet_width(width, columns), top + rows * (height + line + gap)
    under = 0 if below is None else below.height + gap
    sheet = Image.new("RGB", (size[0], size[1] + under), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(title.split("\n")):
        draw.text((gap, gap + number * line), text, fill=INK, font=font(14))
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = gap + index % columns * (width + gap)
        y = top + index // columns * (height + line + gap)
        sheet.paste(picture, (x, y))
        draw.text((x, y + height + 2), caption, fill=INK, font=font(11))
    if below is not None:
        sheet.paste(below, (gap, size[1]))
    write_aside(path, encode(sheet, "PNG", optimize=True))


def sheet_width(picture_width: int, columns: int) -> int:
    """Width in pixels of a contact sheet of so many pictures in a row."""
    gap = 6
    return columns * (picture_width + gap) + gap


def animation(pictures: Iterable[Image.Image], path: Path, *, period_s: float) -> None:
    """Write pictures as an endless GIF.

    Args:
        pictures: At least one picture, all of one size.
        path: The file, replaced atomically.
        period_s: Seconds each picture stands.

    Raises:
        StorageError: The file cannot be written.
    """
    coming = iter(pictures)
    first = list(itertools.islice(coming, PALETTE_FROM))
    palette = _side_by_side(first).quantize(colors=GIF_COLOURS)
    indexed = (
        picture.quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in itertools.chain(first, coming)
    )
    data = encode(
        next(indexed),
        "GIF",
        save_all=True,
        append_images=indexed,
        duration=round(1000 * period_s),
        loop=0,
    )
    write_aside(path, data)


def film(pictures: Iterable[Image.Image], path: Path, *, period_s: float) -> None:
    """Write pictures as an H.264 film in an MP4 file.

    Args:
        pictures: At least one picture, all of one size; its sides are even.
        path: The file, replaced atomically.
        period_s: Seconds each picture stands.

    Raises:
        ConfigError: PyAV is not installed.
        StorageError: The file cannot be written.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError("writing an MP4 needs PyAV: pip install avtd3[video]") from error
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(1 / period_s).limit_denominator(1001)
        options = {"crf": str(FILM_QUALITY), "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        for number, picture in enumerate(pictures):
            if not number:
                stream.width, stream.height = picture.size
                stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_image(picture)  # type: ignore[no-untyped-call]  # as shipped
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_aside(path, buffer.getvalue())


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """A quarter of each picture's pixels, in one row."""
    small = [picture.reduce(2) for picture in pictures]
    row = Image.new("RGB", (sum(p.width for p in small), small[0].height))
    for number, picture in enumerate(small):
        row.paste(picture, (number * picture.width, 0))
    return row


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Encode a picture in one of Pillow's formats."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font that comes with Pillow, in a size in pixels."""
    return ImageFont.load_default(size)
