"""Show one episode: find it by name; draw it in a terminal, as a contact sheet, a GIF or an MP4."""

import dataclasses
import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avtd3.store.audit.report import json_safe
from avtd3.store.audit.statistics import Moments
from avtd3.store.dataset import Dataset
from avtd3.store.episode import Episode, SegmentReader
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import (
    SEGMENT_ERRORS,
    ConfigError,
    NoSegmentsError,
    SegmentUnreadableError,
    UnreadableError,
)
from avtd3.store.filters import EpisodeFilter
from avtd3.store.render import plots
from avtd3.store.render.media import (
    GAP_PX,
    INK,
    PAPER,
    filmstrip,
    font,
    scaled_image,
    sheet_width,
    side_by_side,
    write_contact_sheet,
    write_gif,
    write_mp4,
)
from avtd3.store.render.text import (
    FRAME_COLUMNS,
    Terminal,
    axis_range,
    columns,
    drawable,
    frame_blocks,
    join_lines,
    number,
    printable,
    shorten,
    sparkline,
)
from avtd3.store.segment import Segment

MOST_DIGITS = 18
"""Digits of the largest number of an episode."""
WORDS = ("worst", "best", "longest", "shortest", "random")
"""Names for the episode of least or largest return, of most or fewest steps, and for any one."""
FRAMES_AT_ONCE = 64
"""Frames decoded together while an episode plays, so an hour needs as little memory as a minute."""
MAX_VECTOR_TRACKS = 3
MAX_TERMS = 6
SPIKES = 0.01
"""Share of the values, at either end, that a plot may cut off if they are outliers."""
OUTLIER_RATIO = 4.0
"""How many times wider the range of all values must be than without spikes, to cut those off."""
_NAMED = 4


def find_episode(
    datasets: Sequence[Path],
    name: str,
    rng: np.random.Generator,
    among: EpisodeFilter | None = None,
) -> Episode:
    """Find an episode by name.

    A name is ``SEGMENT:NUMBER``, where any unique part of the segment's name will do; a whole
    number, the episode's position in the collector's plan; or one of `WORDS`, which choose from the
    episodes that match `among` and skip damaged segments.
    """
    if name in WORDS:
        return _by_word(datasets, name, rng, among or EpisodeFilter())
    segment, colon, number = name.rpartition(":")
    if colon and segment and number.isdecimal() and len(number) <= MOST_DIGITS:
        return _by_place(datasets, segment, int(number))
    if name.isdecimal() and len(name) <= MOST_DIGITS:
        return _by_index(datasets, int(name))
    raise ConfigError(
        f"--episode is {name!r}, expected SEGMENT:NUMBER, a number in the plan, "
        f"or one of {', '.join(WORDS)}"
    )


def readable(segments: Iterable[Segment], unreadable: list[str]) -> Iterator[SegmentReader]:
    """Yield readers of segments that are sound; append why others cannot be read now."""
    for segment in segments:
        try:
            yield SegmentReader(segment)
        except SegmentUnreadableError as error:
            unreadable.append(str(error))
        except SEGMENT_ERRORS:
            continue


def _readers(datasets: Sequence[Path], unreadable: list[str]) -> Iterator[SegmentReader]:
    for path in datasets:
        snapshot = Dataset.open(path).snapshot()
        unreadable += [refusal.reason for refusal in snapshot.refused if refusal.is_unreadable]
        yield from readable(snapshot.segments, unreadable)


def _check_unreadable(unreadable: Sequence[str]) -> None:
    """Raise if an episode that was not found may be in a segment that cannot be read now."""
    if unreadable:
        raise UnreadableError(f"the episode cannot be looked for: {unreadable[0]}")


def _by_word(
    datasets: Sequence[Path], word: str, rng: np.random.Generator, among: EpisodeFilter
) -> Episode:
    found, largest = None, -np.inf
    unreadable: list[str] = []
    for reader in _readers(datasets, unreadable):
        matching = np.flatnonzero(among.matches(reader.table))
        if not matching.size:
            continue
        keys = _sort_keys(word, reader.table, rng)
        place = int(matching[np.argmax(keys[matching])])
        if found is None or keys[place] > largest:
            found, largest = Episode(reader, place), keys[place]
    if found is None:
        _check_unreadable(unreadable)
        listed = ", ".join(map(str, datasets))
        which = "that can be read" if among == EpisodeFilter() else "that matches the filter"
        raise NoSegmentsError(f"{listed} holds no episode {which}; avtd3 collect adds one")
    return found


def _sort_keys(word: str, table: EpisodeTable, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return keys of which the wanted episode has the largest; -inf where one is not finite."""
    keys = {
        "worst": -table.episode_return,
        "best": table.episode_return,
        "longest": table.length.astype(np.float64),
        "shortest": -table.length.astype(np.float64),
        "random": rng.random(len(table.length)),
    }[word]
    return np.where(np.isfinite(keys), keys, -np.inf)


def _by_place(datasets: Sequence[Path], part: str, place: int) -> Episode:
    opened = [Dataset.open(path) for path in datasets]
    names = [(dataset, name) for dataset in opened for name in dataset.segment_ids()]
    same = [found for found in names if found[1] == part]
    fitting = same[:1] or [found for found in names if part in found[1]]
    if len(fitting) != 1:
        raise ConfigError(_not_one(f"segment has {part!r} in its name", [n for _, n in fitting]))
    dataset, segment_id = fitting[0]
    segment = dataset.open_segment(segment_id)
    if place >= segment.episodes:
        raise ConfigError(
            f"segment {segment_id} has {segment.episodes} episodes, "
            f"expected a number from 0 to {segment.episodes - 1}, not {place}"
        )
    return Episode(SegmentReader(segment), place)


def _by_index(datasets: Sequence[Path], index: int) -> Episode:
    unreadable: list[str] = []
    episodes = [
        Episode(reader, place)
        for reader in _readers(datasets, unreadable)
        for place in np.flatnonzero(reader.table.index == index).tolist()
    ]
    if len(episodes) != 1:
        if not episodes:
            _check_unreadable(unreadable)
        names = [episode.name for episode in episodes]
        raise ConfigError(_not_one(f"episode has number {index} in its plan", names))
    return episodes[0]


def _not_one(what: str, names: Sequence[str]) -> str:
    if not names:
        return f"no {what}; avtd3 replay-inspect --episode worst names one that exists"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"more than one {what}: {', '.join(names[:_NAMED])}{more}; name one of them"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One number of an episode over time."""

    name: str
    """As the spec has it, unit included."""
    values: NDArray[np.float64]
    """float64 (T,) or (T + 1,), in the unit of its name."""

    @property
    def moments(self) -> Moments:
        """Mean and range of the finite values."""
        return Moments.of(self.values)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Channels that are drawn over one axis."""

    title: str
    channels: tuple[Channel, ...]
    """At least one."""

    @property
    def shown_range(self) -> tuple[float, float]:
        """Range of the values that a plot shows, low below high, without a few outliers."""
        values = drawable(np.concatenate([channel.values for channel in self.channels]))
        finite = values[np.isfinite(values)]
        if not finite.size:
            return -0.5, 0.5
        least, largest = float(finite.min()), float(finite.max())
        low, high = np.quantile(finite, (SPIKES, 1.0 - SPIKES)).tolist()
        if high > low and largest - least > OUTLIER_RATIO * (high - low):
            room = (high - low) / 4
            least, largest = max(least, low - room), min(largest, high + room)
        return axis_range(least, largest)


def key_components(names: tuple[str, ...]) -> list[int]:
    """Return the first few components without a number in their names, else the first few."""
    single = [n for n, name in enumerate(names) if not re.search(r"\d", name)]
    return (single or list(range(len(names))))[:MAX_VECTOR_TRACKS]


def tracks_of(episode: Episode) -> tuple[Track, ...]:
    """Return a few vector components, the actions, the reward and its terms over time."""
    spec, tracks = episode.spec, []
    for column in key_components(spec.vector_names):
        name, scale = spec.vector_names[column], spec.vector_scales[column]
        tracks.append(_track(name, (name,), episode.vectors[:, column, None], scale))
    tracks.append(_track("action", spec.action_names, episode.actions))
    tracks.append(_track("reward", ("reward",), episode.rewards[:, None]))
    if spec.reward_terms:
        terms = episode.reward_terms
        sizes = np.nan_to_num(np.abs(terms.astype(np.float64)), posinf=0.0).sum(axis=0)
        large = np.argsort(-sizes, kind="stable")[:MAX_TERMS]
        names = tuple(spec.reward_terms[column] for column in large)
        omitted = len(spec.reward_terms) - len(names)
        title = f"reward terms, the largest {len(names)}" if omitted else "reward terms"
        tracks.append(_track(title, names, terms[:, large]))
    return tuple(tracks)


def _track(
    title: str, names: tuple[str, ...], values: NDArray[np.float32], scale: float = 1.0
) -> Track:
    with np.errstate(over="ignore"):
        columns = values.astype(np.float64) * scale
    channels = (Channel(name=name, values=columns[:, n]) for n, name in enumerate(names))
    return Track(title=title, channels=tuple(channels))


EPISODE_FRAMES = 6
"""Frames of an episode on a page."""
FRAME_PX = 168
"""Longer side of a frame on a page; smaller frames keep their size."""
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


def seconds_of(episode: Episode) -> float:
    """Return how many simulated seconds an episode lasts."""
    return episode.length * episode.spec.control_period_s


def document_of(episode: Episode) -> dict[str, object]:
    """Return an episode as a JSON object: its facts and a summary of each channel."""
    channels = (channel for track in tracks_of(episode) for channel in track.channels)
    document: dict[str, object] = json_safe(
        {
            "episode": episode.name,
            "dataset": str(episode.segment.path.parents[1]),
            "seconds": seconds_of(episode),
            **episode.facts,
            "channels": {channel.name: channel.moments.document() for channel in channels},
        }
    )
    return document


def spread(episode: Episode, count: int) -> list[int]:
    """Return at most ``count`` evenly spaced observations, with the first and the last."""
    count = min(count, episode.length + 1)
    places: list[int] = np.linspace(0, episode.length, count).round().astype(np.int64).tolist()
    return places


def played_frames(
    episode: Episode, every: int = 1, stream: str | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield every so many frames of a stream, uint8 (C, H, W), decoding a few at a time."""
    ahead, end = 0, episode.length + 1
    for start in range(0, end, FRAMES_AT_ONCE):
        block = episode.read_frames(start, min(start + FRAMES_AT_ONCE, end), stream=stream)
        yield from block[ahead::every]
        ahead = (ahead - len(block)) % every


def frame_of(episode: Episode, observation: int, stream: str | None = None) -> NDArray[np.uint8]:
    """Read one frame of a stream, uint8 (C, H, W)."""
    frame: NDArray[np.uint8] = episode.read_frames(observation, observation + 1, stream=stream)[0]
    return frame


class Strip(NamedTuple):
    """Frames of one stream of an episode."""

    stream: str
    """Name of the stream; empty if it has none."""
    images: tuple[str, ...]
    """Data URIs."""
    size: tuple[int, int]
    """Width and height in pixels."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShownEpisode:
    """One episode on a page of HTML."""

    why: str
    """What it is an example of."""
    name: str
    """``SEGMENT:NUMBER``."""
    facts: Mapping[str, Any]
    """See `Episode.facts`."""
    seconds: float
    """Simulated seconds."""
    tracks: tuple[Track, ...]
    strips: tuple[Strip, ...]
    """Evenly spaced frames of each stream."""

    @classmethod
    def of(cls, episode: Episode, why: str) -> Self:
        """Read an episode's frames and numbers."""
        strips = []
        for stream in episode.spec.images:
            frames = (frame_of(episode, n, stream) for n in spread(episode, EPISODE_FRAMES))
            name = stream if episode.spec.streams else ""
            strips.append(Strip(name, *filmstrip(frames, FRAME_PX)))
        return cls(
            why=why,
            name=episode.name,
            facts=episode.facts,
            seconds=seconds_of(episode),
            tracks=tracks_of(episode),
            strips=tuple(strips),
        )

    @property
    def caption(self) -> str:
        """Who drove where, and how it ended."""
        facts = {name: shorten(str(value)) for name, value in self.facts.items()}
        place = [facts["town"], facts["weather"]]
        place += [f"scenario {facts['scenario']}"] if self.facts["scenario"] != -1 else []
        where = ", ".join(filter(None, place))
        who = " in ".join(filter(None, (facts["driver"], where)))
        total = f"return {self.facts['episode_return']:.1f} in {self.seconds:.1f} s"
        return f"{f'{who}: ' if who else ''}{total}, ended by {facts['end_reason']}"

    @property
    def sparklines(self) -> list[tuple[str, Markup]]:
        """Name and sparkline of the first track and of the reward."""
        first, *others = self.tracks
        drawn = []
        for track in (first, *(t for t in others if t.title == "reward")):
            channel = track.channels[0]
            line = plots.sparkline(channel.values, name=channel.name, shown=track.shown_range)
            drawn.append((shorten(channel.name, 30), line))
        return drawn


def draw_episode(episode: Episode, terminal: Terminal) -> str:
    """Draw an episode as lines of text: facts, a sparkline for each channel, a filmstrip."""
    terminal = dataclasses.replace(terminal, width=max(MIN_WIDTH, terminal.width))
    lines = [*describe(episode), "", *_channel_lines(episode, terminal)]
    text = join_lines([*lines, ""])
    for stream in episode.spec.images:  # its colours are control characters, and stay
        text += "\n" + "\n".join(_filmstrip(episode, stream, terminal)) + "\n"
    return text if terminal.unicode else text.encode("ascii", "replace").decode("ascii")


def describe(episode: Episode) -> list[str]:
    """Return the facts of an episode in a few lines without control characters."""
    facts = episode.facts
    drove = [f"driver {facts['driver']}"]
    if episode.policy_version >= 0:
        drove.append(f"policy version {episode.policy_version}")
    if facts["exploration_noise"]:
        drove.append(f"noise {number(float(facts['exploration_noise']))}")
    where = [f"{name} {facts[name]}" for name in ("world", "scenario", "town", "weather", "seed")]
    went = [
        f"{episode.length:,} steps",
        f"{seconds_of(episode):.1f} s",
        f"return {episode.episode_return:.1f}",
        f"ended by {episode.end_reason}",
        *_start_time(episode.started_at),
    ]
    index = f" (number {episode.index} in its plan)" if episode.index >= 0 else ""
    return [
        printable(f"episode {episode.name} of {episode.segment.path.parents[1]}{index}"),
        *(f"  {printable(', '.join(parts))}" for parts in (where, [*drove, *went])),
    ]


def write_episode_sheet(episode: Episode, path: Path) -> None:
    """Write evenly spaced frames of an episode above plots of its numbers, as one PNG."""
    _check_name(path, ".png")
    if not episode.spec.images:
        # Without a camera there are only the plots: one empty picture holds the frames' place.
        pictures, captions = [Image.new("RGB", (SHEET_PX, 1), PAPER)], [""]
    else:
        shown, period_s = spread(episode, SHEET_FRAMES), episode.spec.control_period_s
        shots = ([frame_of(episode, n, name) for name in episode.spec.images] for n in shown)
        pictures = [side_by_side([scaled_image(f, SHEET_PX) for f in frames]) for frames in shots]
        captions = [f"{n * period_s:.1f} s" for n in shown]
    in_a_row = min(SHEET_COLUMNS, len(pictures))
    width = max(SHEET_COLUMNS * SHEET_PX, sheet_width(pictures[0].width, in_a_row) - 2 * GAP_PX)
    tracks = tracks_of(episode)
    plots = _Plots(tracks, episode.length, width, PLOT_HEIGHT_PX * len(tracks)).drawn(None)
    title = "\n".join(line.strip() for line in describe(episode))
    write_contact_sheet(pictures, captions, path, columns=in_a_row, below=plots, title=title)


def write_episode_gif(episode: Episode, path: Path) -> None:
    """Write an episode as a GIF in real time."""
    _check_name(path, ".gif")
    period_s = episode.spec.control_period_s
    fewest = math.ceil((episode.length + 1) / MAX_GIF_PICTURES)
    every = max(fewest, round(min(GIF_PERIOD_S / period_s, 1e6)), 1)
    write_gif(_pictures(episode, every), path, period_s=every * period_s, colours=COLOURS)


def write_episode_mp4(episode: Episode, path: Path) -> None:
    """Write every frame of an episode as an MP4 in real time."""
    _check_name(path, ".mp4")
    write_mp4(_pictures(episode, 1), path, period_s=episode.spec.control_period_s)


def _start_time(wall_time: float) -> Iterator[str]:
    try:
        began = datetime.datetime.fromtimestamp(wall_time, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return
    yield f"began {began:%Y-%m-%d %H:%M} UTC"


def _channel_lines(episode: Episode, terminal: Terminal) -> Iterator[str]:
    channels = [channel for track in tracks_of(episode) for channel in track.channels]
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


def _filmstrip(episode: Episode, stream: str, terminal: Terminal) -> Iterator[str]:
    """Draw as many evenly spaced frames of a stream as fit side by side."""
    if episode.spec.streams:
        yield f"  {stream}"
    observations = spread(episode, max(1, (terminal.width - 2) // (FRAME_COLUMNS + 1)))
    frames = (frame_of(episode, n, stream) for n in observations)
    pictures = [frame_blocks(frame, colours=terminal.colours) for frame in frames]
    for row in zip(*pictures, strict=True):
        yield "  " + " ".join(row)
    times = (f"{n * episode.spec.control_period_s:.1f} s" for n in observations)
    yield "  " + " ".join(f"{time:<{FRAME_COLUMNS}}" for time in times).rstrip()


def _check_name(path: Path, ending: str) -> None:
    if path.suffix.lower() != ending:
        raise ConfigError(f"{path} would hold a {ending[1:].upper()}; name it *{ending}")


def _pictures(episode: Episode, every: int) -> Iterator[Image.Image]:
    """Yield each frame beside the plots, with a line at its time on them, above a caption."""
    plots = _Plots(tracks_of(episode), episode.length, PLAYED_PX + 48, PLAYED_PX)
    facts = episode.facts
    known = printable(
        f"{facts['driver']} in {facts['town']}, return {episode.episode_return:.1f}, "
        f"ended by {episode.end_reason}"
    )
    streams = [played_frames(episode, every, name) for name in episode.spec.images]
    for observation in range(0, episode.length + 1, every):
        frames = [scaled_image(next(frames), PLAYED_PX) for frames in streams]
        camera = side_by_side(frames) if frames else None
        width = plots.size[0] + (0 if camera is None else camera.width)
        picture = Image.new("RGB", (width + width % 2, PLAYED_PX + CAPTION_PX), PAPER)
        if camera is not None:
            picture.paste(camera, (0, (PLAYED_PX - camera.height) // 2))
        picture.paste(plots.drawn(observation), (width - plots.size[0], 0))
        caption = f"{observation * episode.spec.control_period_s:5.1f} s   {known}"
        ImageDraw.Draw(picture).text((8, PLAYED_PX + 7), caption, fill=INK, font=font(14))
        yield picture


class _Plots:
    """The tracks of an episode one above the other, drawn once; a cursor is drawn on copies."""

    def __init__(self, tracks: Sequence[Track], length: int, width: int, height: int) -> None:
        self.size, self._length = (width, height), length
        self._each = height // len(tracks)
        large = Image.new("RGB", (2 * width, 2 * height), PAPER)
        draw = ImageDraw.Draw(large)
        for row, track in enumerate(tracks):
            self._draw_lines(draw, track, row)
        # Drawn at twice the size and reduced, for smooth lines.
        self._still = large.reduce(2)
        self._write_names(tracks)

    def drawn(self, observation: int | None) -> Image.Image:
        """Return the plots, with a cursor at the time of an observation unless it is None."""
        picture = self._still.copy()
        if observation is not None:
            x = 8 + round((self.size[0] - 16) * observation / self._length)
            ImageDraw.Draw(picture).line([(x, 0), (x, self.size[1])], fill=INK)
        return picture

    def _draw_lines(self, draw: ImageDraw.ImageDraw, track: Track, row: int) -> None:
        top, bottom = 2 * (row * self._each + 20), 2 * ((row + 1) * self._each - 6)
        low, high = track.shown_range
        if low < 0.0 < high:
            zero = bottom + (top - bottom) * -low / (high - low)
            draw.line([(16, zero), (2 * self.size[0] - 16, zero)], fill=FAINT, width=2)
        for channel, colour in zip(track.channels, COLOURS, strict=False):
            share = (np.clip(drawable(channel.values), low, high) - low) / (high - low)
            y = bottom + (top - bottom) * share
            x = np.linspace(16, 2 * self.size[0] - 16, len(y))
            for run in np.split(np.arange(len(y)), np.flatnonzero(~np.isfinite(y))):
                points = [(float(x[n]), float(y[n])) for n in run if np.isfinite(y[n])]
                if len(points) > 1:
                    draw.line(points, fill=colour, width=3, joint="curve")

    def _write_names(self, tracks: Sequence[Track]) -> None:
        draw = ImageDraw.Draw(self._still)
        for row, track in enumerate(tracks):
            y = row * self._each + 4
            draw.line([(0, y - 4), (self.size[0], y - 4)], fill=FAINT)
            text = _range_text(track)
            right = self.size[0] - 8 - draw.textlength(text, font=font(11))
            draw.text((right, y), text, fill=INK, font=font(11))
            x = 8.0
            names = _fitting_names(draw, track, right - 16)
            for name, colour in zip(names, COLOURS, strict=False):
                width = draw.textlength(name, font=font(11))
                if x + width > right - 8:
                    draw.text((x, y), "...", fill=colour, font=font(11))
                    break
                draw.text((x, y), name, fill=colour, font=font(11))
                x += width + 10


def _fitting_names(draw: ImageDraw.ImageDraw, track: Track, room_px: float) -> list[str]:
    """Return the names of a track's channels; only their last parts if there is too little room."""
    names = [printable(channel.name) for channel in track.channels]
    width = sum(draw.textlength(name, font=font(11)) + 10 for name in names)
    return names if width <= room_px else [name.rsplit("/", 1)[-1] for name in names]


def _range_text(track: Track) -> str:
    """Format the range of a track, and the range of its plot where that cuts off outliers."""
    moments = [channel.moments for channel in track.channels if channel.moments.count]
    if not moments:
        return "no finite value"
    least, largest = min(m.minimum for m in moments), max(m.maximum for m in moments)
    low, high = track.shown_range
    cut = f" (drawn {number(low, 2)} .. {number(high, 2)})"
    return f"{number(least)} .. {number(largest)}" + (cut if low > least or high < largest else "")
