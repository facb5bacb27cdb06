"""A few episodes in pictures for a page: the extremes, the middle, and one of each kind of end."""

import base64
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from avtd3.store.dataset import Dataset
from avtd3.store.errors import Avtd3Error
from avtd3.store.render.charts import line
from avtd3.store.render.episode_choice import EpisodePlace, readable_tables
from avtd3.store.render.episode_record import EpisodeRecord
from avtd3.store.render.markup import Markup, element, shorten

MAX_REELS = 8
REEL_FRAMES = 6
FRAME_PX = 168
"""Largest side of a picture; smaller frames stay as they are."""
MAX_SEGMENTS = 48
"""Segments of each dataset among which episodes are chosen, evenly spread."""
MAX_IMAGE_BYTES = 1_500_000
"""Of all pictures of a page together."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reel:
    """One episode of a page."""

    why: str
    """What it is an example of."""
    record: EpisodeRecord
    images: tuple[str, ...]
    """Its frames as data URIs, evenly spaced."""
    size: tuple[int, int]
    """Width and height of its pictures, in pixels."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    place: EpisodePlace
    total: float
    length: int
    end: str
    driver: str


def pick_reels(datasets: Sequence[Path]) -> tuple[Reel, ...]:
    """Choose a few telling episodes and read some frames of each; the damaged are passed over."""
    reels: list[Reel] = []
    size_bytes = 0
    for why, candidate in _chosen(list(_candidates(datasets))):
        try:
            reel = _reel(why, EpisodeRecord.read(candidate.place))
        except (Avtd3Error, OSError):
            continue
        size_bytes += sum(map(len, reel.images))
        if len(reels) == MAX_REELS or size_bytes > MAX_IMAGE_BYTES:
            break
        reels.append(reel)
    return tuple(reels)


def _candidates(datasets: Sequence[Path]) -> Iterator[_Candidate]:
    for path in datasets:
        try:
            held = Dataset.open(path).snapshot().segments
        except (Avtd3Error, OSError):
            continue
        spread = np.linspace(0, len(held) - 1, min(len(held), MAX_SEGMENTS)).astype(np.int64)
        for segment, table in readable_tables(held[n] for n in spread.tolist()):
            for number in range(segment.episodes):
                yield _Candidate(
                    place=EpisodePlace(dataset=path, segment=segment, number=number),
                    total=float(table.episode_return[number]),
                    length=int(table.length[number]),
                    end=table.end_reason[number],
                    driver=table.driver[number],
                )


def _chosen(candidates: list[_Candidate]) -> Iterator[tuple[str, _Candidate]]:
    """Episodes worth seeing, the most telling first, none of them twice."""
    ranked = sorted((c for c in candidates if np.isfinite(c.total)), key=lambda c: c.total)
    if not ranked:
        return
    first = {"lowest return": 0, "highest return": -1, "median return": len(ranked) // 2}
    taken: list[_Candidate] = []
    for why, place in first.items():
        if not any(ranked[place] is other for other in taken):
            taken.append(ranked[place])
            yield why, ranked[place]
    for kind, label in (("end", "ended by"), ("driver", "driven by")):
        known = {getattr(candidate, kind) for candidate in taken}
        for candidate in sorted(ranked, key=lambda c: -c.length):
            value = getattr(candidate, kind)
            if value not in known:
                known.add(value)
                taken.append(candidate)
                yield f"{label} {value}", candidate


def _reel(why: str, record: EpisodeRecord) -> Reel:
    from PIL import Image

    from avtd3.store.render.pictures import encode, frame_image

    if record.spec.image is None:
        return Reel(why=why, record=record, images=(), size=(0, 0))
    images = []
    for number in record.spread(REEL_FRAMES):
        picture = frame_image(record.frame(number))
        if record.spec.image.channels < 3:
            picture = picture.convert("L")
        picture.thumbnail((FRAME_PX, FRAME_PX), Image.Resampling.LANCZOS)
        data = base64.b64encode(encode(picture, "JPEG", quality=82)).decode()
        images.append(f"data:image/jpeg;base64,{data}")
    return Reel(why=why, record=record, images=tuple(images), size=picture.size)


def draw_reel(reel: Reel) -> Markup:
    """An episode as a figure: its frames, its speed and reward over time, what is known of it."""
    record, facts = reel.record, reel.record.facts
    width, height = reel.size
    why = shorten(reel.why)
    label = f"{len(reel.images)} frames of an episode, evenly spaced in time: {why}"
    pictures = [
        element("img", src=image, alt="" if number else label, width=width, height=height)
        for number, image in enumerate(reel.images)
    ]
    strips = []
    tracks = [record.tracks[0], *(t for t in record.tracks[1:] if t.title == "reward")]
    for track in tracks:
        channel = track.channels[0]
        drawing = line(channel.values, name=channel.name, shown=track.shown_range)
        strips += [element("span", shorten(channel.name, 30)), drawing]
    driver, town, weather, end = (
        shorten(facts[name]) for name in ("driver", "town", "weather", "end_reason")
    )
    known = (
        f"{driver} in {town}, {weather}, scenario {facts['scenario']}: "
        f"return {facts['episode_return']:.1f} in {record.seconds:.1f} s, ended by {end}"
    )
    return element(
        "figure",
        element("h3", why[:1].upper() + why[1:]),
        element("div", pictures) if pictures else "",
        element("figcaption", known, element("br"), element("code", record.place.name)),
        element("p", strips, class_="strips"),
        class_="card reel",
    )
