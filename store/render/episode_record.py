"""Find one episode by name, and read its numbers and its frames."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.statistics import Moments
from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import SEGMENT_ERRORS, ConfigError, NoSegmentsError
from avtd3.store.filters import EpisodeFilter
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlace:
    """Where an episode is stored."""

    dataset: Path
    """Directory of the dataset."""
    segment: Segment
    """The segment that holds it."""
    number: int
    """Its number in the segment, from 0."""

    @property
    def name(self) -> str:
        """``SEGMENT:NUMBER``, which `find_episode` accepts."""
        return f"{self.segment.id}:{self.number}"


def find_episode(
    datasets: Sequence[Path],
    name: str,
    rng: np.random.Generator,
    among: EpisodeFilter | None = None,
) -> EpisodePlace:
    """Find an episode by name.

    Args:
        datasets: Where to look.
        name: ``SEGMENT:NUMBER``, where any unique part of the segment's name will do; a whole
            number, the episode's position in the collector's plan; or one of `WORDS`.
        rng: Draws for the word ``random``; every episode is equally likely.
        among: The episodes that the words choose from; None for all.

    Raises:
        ConfigError: No episode has this name, or several have it.
        DatasetError: A path is no dataset.
        NoSegmentsError: There is no episode, or none that matches the filter.
        SegmentCorruptError: The named segment is damaged; the words skip damaged segments.
    """
    if name in WORDS:
        return _by_word(datasets, name, rng, among or EpisodeFilter())
    segment, colon, number = name.rpartition(":")
    if colon and segment and number.isdecimal():
        return _by_place(datasets, segment, int(number))
    if name.isdecimal():
        return _by_index(datasets, int(name))
    raise ConfigError(
        f"--episode is {name!r}, expected SEGMENT:NUMBER, a number in the plan, "
        f"or one of {', '.join(WORDS)}"
    )


def readable_tables(segments: Iterable[Segment]) -> Iterator[tuple[Segment, EpisodeTable]]:
    """Yield segments with their episode tables; skip those that are damaged or were removed."""
    for segment in segments:
        try:
            yield segment, segment.episode_table()
        except SEGMENT_ERRORS:
            continue


def _by_word(
    datasets: Sequence[Path], word: str, rng: np.random.Generator, among: EpisodeFilter
) -> EpisodePlace:
    found, largest = None, -np.inf
    for path in datasets:
        for segment, table in readable_tables(Dataset.open(path).snapshot().segments):
            matching = np.flatnonzero(among.matches(table))
            if not matching.size:
                continue
            keys = _sort_keys(word, table, rng)
            number = int(matching[np.argmax(keys[matching])])
            if found is None or keys[number] > largest:
                largest = keys[number]
                found = EpisodePlace(dataset=path, segment=segment, number=number)
    if found is None:
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


def _by_place(datasets: Sequence[Path], part: str, number: int) -> EpisodePlace:
    names = [(path, name) for path in datasets for name in Dataset.open(path).segment_ids()]
    same = [place for place in names if place[1] == part]
    fitting = same[:1] or [place for place in names if part in place[1]]
    if len(fitting) != 1:
        raise ConfigError(_not_one(f"segment has {part!r} in its name", [n for _, n in fitting]))
    path, segment_id = fitting[0]
    segment = Dataset.open(path).open_segment(segment_id)
    if number >= segment.episodes:
        raise ConfigError(
            f"segment {segment_id} has {segment.episodes} episodes, "
            f"expected a number from 0 to {segment.episodes - 1}, not {number}"
        )
    return EpisodePlace(dataset=path, segment=segment, number=number)


def _by_index(datasets: Sequence[Path], index: int) -> EpisodePlace:
    places = [
        EpisodePlace(dataset=path, segment=segment, number=number)
        for path in datasets
        for segment, table in readable_tables(Dataset.open(path).snapshot().segments)
        for number in np.flatnonzero(table.index == index).tolist()
    ]
    if len(places) != 1:
        names = [place.name for place in places]
        raise ConfigError(_not_one(f"episode has number {index} in its plan", names))
    return places[0]


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
        values = np.concatenate([channel.values for channel in self.channels])
        finite = values[np.isfinite(values)]
        if not finite.size:
            return -0.5, 0.5
        least, largest = float(finite.min()), float(finite.max())
        low, high = np.quantile(finite, (SPIKES, 1.0 - SPIKES)).tolist()
        if high > low and largest - least > OUTLIER_RATIO * (high - low):
            room = (high - low) / 4
            least, largest = max(least, low - room), min(largest, high + room)
        return (least, largest) if largest > least else (least - 0.5, least + 0.5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One episode of a published segment: its numbers, and its frames on demand."""

    place: EpisodePlace
    spec: EpisodeSpec
    facts: dict[str, Any]
    """The columns of `EpisodeTable` for this episode, as plain strings and numbers."""
    tracks: tuple[Track, ...]
    """A few vector components, the actions, the reward and its terms over time."""
    first_row: int
    """Row of its first frame."""

    @classmethod
    def read(cls, place: EpisodePlace) -> Self:
        """Read an episode's numbers.

        Raises:
            SegmentNotFoundError: The segment was removed since it was found.
            SegmentCorruptError: Its bytes are not those that were published.
        """
        segment, number = place.segment, place.number
        table = segment.episode_table()
        return cls(
            place=place,
            spec=segment.spec,
            facts=table.row(number),
            tracks=tuple(_tracks(place, table)),
            first_row=int(table.observation_offset[number]),
        )

    @property
    def length(self) -> int:
        """Number of steps; there is one observation more."""
        return int(self.facts["length"])

    @property
    def seconds(self) -> float:
        """Simulated seconds that it lasts."""
        return self.length * self.spec.control_period_s

    def frame(self, observation: int) -> NDArray[np.uint8]:
        """Read one frame, uint8 (C, H, W).

        Raises:
            SegmentNotFoundError: The segment was removed since it was found.
            SegmentCorruptError: The frame's bytes are not those that were published.
        """
        row = self.first_row + observation
        frame: NDArray[np.uint8] = self.place.segment.read_frames(row, row + 1)[0]
        return frame

    def frames(self, every: int = 1) -> Iterator[NDArray[np.uint8]]:
        """Yield frames uint8 (C, H, W) from the first on, decoding a few at a time.

        Args:
            every: Observations from one to the next.

        Raises:
            SegmentNotFoundError: The segment was removed since it was found.
            SegmentCorruptError: The frames' bytes are not those that were published.
        """
        stop = self.first_row + self.length + 1
        ahead = 0
        for start in range(self.first_row, stop, FRAMES_AT_ONCE):
            block = self.place.segment.read_frames(start, min(start + FRAMES_AT_ONCE, stop))
            yield from block[ahead::every]
            ahead = (ahead - len(block)) % every

    def spread(self, count: int) -> list[int]:
        """Return at most ``count`` evenly spaced observations, with the first and the last."""
        count = min(count, self.length + 1)
        places: list[int] = np.linspace(0, self.length, count).round().astype(np.int64).tolist()
        return places

    def document(self) -> dict[str, object]:
        """Return the episode as a JSON object: its facts and a summary of each channel."""
        return {
            "episode": self.place.name,
            "dataset": str(self.place.dataset),
            "seconds": self.seconds,
            **{name: _json_number(value) for name, value in self.facts.items()},
            "channels": {
                channel.name: channel.moments.document()
                for track in self.tracks
                for channel in track.channels
            },
        }


def key_components(names: tuple[str, ...]) -> list[int]:
    """Return the first few components without a number in their names, else the first few."""
    single = [n for n, name in enumerate(names) if not re.search(r"\d", name)]
    return (single or list(range(len(names))))[:MAX_VECTOR_TRACKS]


def _json_number(value: object) -> object:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _tracks(place: EpisodePlace, table: EpisodeTable) -> Iterator[Track]:
    segment, spec, number = place.segment, place.segment.spec, place.number
    first, length = int(table.offset[number]), int(table.length[number])
    steps = slice(first, first + length)
    if spec.vector_names:
        row = int(table.observation_offset[number])
        vector = segment.read("vector")[row : row + length + 1].astype(np.float64)
        for column in key_components(spec.vector_names):
            values = vector[:, column] * spec.vector_scales[column]
            channel = Channel(name=spec.vector_names[column], values=values)
            yield Track(title=channel.name, channels=(channel,))
    yield _track("action", spec.action_names, segment.read("action")[steps])
    yield _track("reward", ("reward",), segment.read("reward")[steps, None])
    if spec.reward_terms:
        terms = segment.read("reward_terms")[steps]
        sizes = np.nan_to_num(np.abs(terms.astype(np.float64)), posinf=0.0).sum(axis=0)
        large = np.argsort(-sizes, kind="stable")[:MAX_TERMS]
        names = tuple(spec.reward_terms[column] for column in large)
        omitted = len(spec.reward_terms) - len(names)
        title = f"reward terms, the largest {len(names)}" if omitted else "reward terms"
        yield _track(title, names, terms[:, large])


def _track(title: str, names: tuple[str, ...], values: NDArray[np.float32]) -> Track:
    columns = values.astype(np.float64)
    channels = (Channel(name=name, values=columns[:, n]) for n, name in enumerate(names))
    return Track(title=title, channels=tuple(channels))
