"""Turn frames into pictures, filmstrips, contact sheets, GIFs and MP4s.

An MP4 is encoded while its pictures are made, so it needs no more memory than one of them; a GIF is
held as palette indices, one byte per pixel.
"""

import base64
import io
import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avtd3.store.errors import import_extra
from avtd3.store.files import write_aside

INK = (230, 234, 238)
"""Colour of text, red, green and blue."""
PAPER = (24, 28, 33)
"""Colour behind everything."""
HEAT = (255, 176, 46)
"""Colour of the largest values of a heat map."""
GAP_PX = 6
"""Pixels between the pictures of a contact sheet."""
LINE_PX = 18
"""Height of a line of text on a contact sheet."""
GOOD, BAD = (96, 220, 140), (255, 140, 140)
"""Colours of texts about what went well, and about what did not."""
LEGEND_PX = 24
"""Height of a legend."""
JPEG_QUALITY = 82
GIF_COLOURS = 96
PALETTE_PICTURES = 30
"""Pictures of a GIF that its colours are chosen from: the first ones."""
_MOST_CHANNELS = 4
MASK_COLOURS = (
    (90, 90, 96),
    (240, 240, 240),
    (64, 156, 255),
    (255, 184, 77),
    (240, 110, 120),
    (96, 220, 140),
    (190, 140, 255),
    (120, 210, 220),
)
"""Colours of planes of masks, in their order."""
LONGEST_MS = 655_350
"""Longest time that the format lets a picture of a GIF be shown."""
MP4_QUALITY = 20
"""x264's constant rate factor: about 50 kB per second of an episode."""


Colour: TypeAlias = tuple[int, int, int]
Legend: TypeAlias = Sequence[tuple[Colour, str]]
"""Colours of a picture and what they mean."""


def colour_planes(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return three planes of uint8 (C, H, W): its first three, or the first one as grey.

    More than four planes are masks, each painted in a colour of its own over those before.
    """
    if frame.shape[0] > _MOST_CHANNELS:
        return _paint_masks(frame)
    return frame[:3] if frame.shape[0] >= 3 else np.repeat(frame[:1], 3, axis=0)


def frame_image(frame: NDArray[np.uint8]) -> Image.Image:
    """Turn uint8 (C, H, W) into an RGB image of its `colour_planes`."""
    return Image.fromarray(np.ascontiguousarray(colour_planes(frame).transpose(1, 2, 0)))


def heat_frame(frame: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw heat float32 (H, W) in 0..1 over a darkened grey frame uint8 (C, H, W), in colour."""
    grey = 0.5 * colour_planes(frame).mean(axis=0, dtype=np.float32)
    colour = np.array(HEAT, np.float32)[:, None, None]
    drawn: NDArray[np.uint8] = np.rint(grey + heat * (colour - grey)).astype(np.uint8)
    return drawn


def _paint_masks(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint planes uint8 (C, H, W) over each other, each in its colour, as (3, H, W)."""
    picture = np.zeros((3, *masks.shape[1:]), np.float32)
    for number, mask in enumerate(masks):
        share = mask / np.float32(255.0)
        colour = np.array(MASK_COLOURS[number % len(MASK_COLOURS)], np.float32)[:, None, None]
        picture = picture * (1 - share) + colour * share
    painted: NDArray[np.uint8] = picture.astype(np.uint8)
    return painted


def scaled_image(frame: NDArray[np.uint8], side_px: int) -> Image.Image:
    """Turn uint8 (C, H, W) into an RGB image whose longer side has so many pixels.

    Enlarged pixels stay sharp.
    """
    picture = frame_image(frame)
    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    filters = Image.Resampling
    return picture.resize(size, filters.NEAREST if scale >= 1.0 else filters.LANCZOS)


def filmstrip(
    frames: Iterable[NDArray[np.uint8]], max_px: int
) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Encode frames uint8 (C, H, W) as data URIs of JPEGs; return them, width and height."""
    uris = []
    for frame in frames:
        picture = frame_image(frame)
        if frame.shape[0] < 3:
            picture = picture.convert("L")
        picture.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
        data = base64.b64encode(encode(picture, "JPEG", quality=JPEG_QUALITY)).decode()
        uris.append(f"data:image/jpeg;base64,{data}")
    return tuple(uris), picture.size


def write_contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    path: Path,
    *,
    columns: int = 5,
    below: Image.Image | None = None,
    title: str = "",
    inks: Sequence[Colour] | None = None,
    legend: Legend = (),
) -> None:
    """Write pictures of one size in a grid above `below`, each above its caption, as one PNG.

    `inks` are the colours of the last lines of the captions. A `legend` is drawn below the title.
    """
    width, height = pictures[0].size
    lines = 1 + max(text.count("\n") for text in captions)
    below_px = LINE_PX * lines
    rows = -(-len(pictures) // columns)
    titled = LINE_PX * (title.count("\n") + 1) + GAP_PX if title else 0
    top = GAP_PX + titled + (LEGEND_PX if legend else 0)
    size = sheet_width(width, columns), top + rows * (height + below_px + GAP_PX)
    under = 0 if below is None else below.height + GAP_PX
    sheet = Image.new("RGB", (size[0], size[1] + under), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(title.split("\n")):
        draw.text((GAP_PX, GAP_PX + number * LINE_PX), text, fill=INK, font=font(14))
    draw_legend(draw, (GAP_PX, titled), legend)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = GAP_PX + index % columns * (width + GAP_PX)
        y = top + index // columns * (height + below_px + GAP_PX)
        sheet.paste(picture, (x, y))
        for number, text in enumerate(caption.split("\n")):
            is_last = inks is not None and number == caption.count("\n")
            ink = inks[index] if is_last and inks is not None else INK
            place = (x, y + height + 2 + number * LINE_PX)
            draw.text(place, text, fill=ink, font=font(11 if lines == 1 else 13))
    if below is not None:
        sheet.paste(below, (GAP_PX, size[1]))
    write_aside(path, encode(sheet, "PNG", optimize=True))


def draw_legend(draw: ImageDraw.ImageDraw, place: tuple[int, int], legend: Legend) -> None:
    """Draw a swatch and its meaning for each colour of a legend, in one line."""
    x, y = place
    for colour, text in legend:
        draw.rectangle([x + 2, y + 9, x + 13, y + 16], fill=colour)
        draw.text((x + 19, y + 5), text, fill=INK, font=font(13))
        x += 19 + round(draw.textlength(text, font=font(13))) + 18


def with_legend(picture: Image.Image, legend: Legend) -> Image.Image:
    """Return a picture above a legend; the picture itself if the legend is empty."""
    if not legend:
        return picture
    whole = Image.new("RGB", (picture.width, picture.height + LEGEND_PX), PAPER)
    whole.paste(picture, (0, 0))
    draw_legend(ImageDraw.Draw(whole), (6, picture.height - 3), legend)
    return whole


def sheet_width(picture_width: int, columns: int) -> int:
    """Return the width in pixels of a contact sheet with so many pictures in a row."""
    return columns * (picture_width + GAP_PX) + GAP_PX


def write_gif(
    pictures: Iterable[Image.Image],
    path: Path,
    *,
    period_s: float,
    colours: Sequence[Colour] = (),
) -> None:
    """Write pictures, all of one size, as an endless GIF; `colours` stay exact, however rare."""
    coming = iter(pictures)
    first = list(itertools.islice(coming, PALETTE_PICTURES))
    quarter = side_by_side([picture.reduce(2) for picture in first])
    chosen = quarter.quantize(colors=GIF_COLOURS).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*chosen[: 3 * GIF_COLOURS], *itertools.chain(*colours)])
    indexed = (
        picture.quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in itertools.chain(first, coming)
    )
    data = encode(
        next(indexed),
        "GIF",
        save_all=True,
        append_images=indexed,
        duration=round(min(1000 * period_s, LONGEST_MS)),
        loop=0,
    )
    write_aside(path, data)


def write_mp4(pictures: Iterable[Image.Image], path: Path, *, period_s: float) -> None:
    """Write pictures, all of one size, both sides even, as an H.264 film in an MP4 file."""
    av = import_extra("av", "video", "writing an MP4")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(min(max(1 / period_s, 0.001), 1000.0)).limit_denominator(1001)
        options = {"crf": str(MP4_QUALITY), "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        for number, picture in enumerate(pictures):
            if not number:
                stream.width, stream.height = picture.size
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    write_aside(path, buffer.getvalue())


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures in one row, aligned at the top."""
    size = sum(p.width for p in pictures), max(p.height for p in pictures)
    row = Image.new("RGB", size, PAPER)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return row


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Encode a picture in one of Pillow's formats."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return the font that comes with Pillow."""
    return ImageFont.load_default(size_px)
