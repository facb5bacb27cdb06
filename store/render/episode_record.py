"""`EpisodeRecord`: one episode with its numbers, and its frames as they are asked for."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.statistics import Moments
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.render.episode_choice import EpisodePlace
from avtd3.store.spec import EpisodeSpec

FRAMES_AT_ONCE = 64
"""Frames decoded together while an episode plays: many chunks, little memory."""
MAX_VECTOR_TRACKS = 3
MAX_TERMS = 6
SPIKES = 0.01
"""Share of the values, at either end, that may be cut off a plot if they lie far out."""
FAR = 4.0
"""How many times wider all the values must lie than all but the spikes, to cut those off."""


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
        """What a plot shows of the values, low below high; a few far spikes are cut off."""
        values = np.concatenate([channel.values for channel in self.channels])
        finite = values[np.isfinite(values)]
        if not finite.size:
            return -0.5, 0.5
        least, largest = float(finite.min()), float(finite.max())
        low, high = np.quantile(finite, (SPIKES, 1.0 - SPIKES)).tolist()
        if high > low and largest - least > FAR * (high - low):
            room = (high - low) / 4
            least, largest = max(least, low - room), min(largest, high + room)
        return (least, largest) if largest > least else (least - 0.5, least + 0.5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One episode of a published segment."""

    place: EpisodePlace
    spec: EpisodeSpec
    facts: dict[str, Any]
    """The fields of `EpisodeTable` for this episode, as plain strings and numbers."""
    tracks: tuple[Track, ...]
    """What is worth seeing over time: a few vector components, the actions, the reward's parts."""
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
            facts=dict(_facts(table, number)),
            tracks=tuple(_tracks(place, table)),
            first_row=int(table.observation_offset[number]),
        )

    @property
    def length(self) -> int:
        """Steps; it has one observation more."""
        return int(self.facts["length"])

    @property
    def seconds(self) -> float:
        """Simulated seconds it lasts."""
        return self.length * self.spec.control_period_s

    def frame(self, observation: int) -> NDArray[np.uint8]:
        """One frame, uint8 (C, H, W).

        Raises:
            SegmentNotFoundError: The segment was removed since it was found.
            SegmentCorruptError: The frame's bytes are not those that were published.
        """
        row = self.first_row + observation
        frame: NDArray[np.uint8] = self.place.segment.read_frames(row, row + 1)[0]
        return frame

    def frames(self, every: int = 1) -> Iterator[NDArray[np.uint8]]:
        """Frames uint8 (C, H, W) from the first on, a few decoded at a time.

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
        """At most so many observations, evenly spaced, the first and the last among them."""
        count = min(count, self.length + 1)
        places: list[int] = np.linspace(0, self.length, count).round().astype(np.int64).tolist()
        return places

    def document(self) -> dict[str, object]:
        """The episode as a JSON object: what is known of it, and each channel in short."""
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


def _facts(table: EpisodeTable, number: int) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)[number]
        yield field.name, value if isinstance(value, str) else value.item()


def _json_number(value: object) -> object:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _tracks(place: EpisodePlace, table: EpisodeTable) -> Iterator[Track]:
    segment, spec, number = place.segment, place.segment.spec, place.number
    first, length = int(table.offset[number]), int(table.length[number])
    steps = slice(first, first + length)
    if spec.vector_names:
        row = int(table.observation_offset[number])
        vector = segment.read("vector")[row : row + length + 1].astype(np.float64)
        for column in telling(spec.vector_names):
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
        left_out = len(spec.reward_terms) - len(names)
        title = f"reward terms, the largest {len(names)}" if left_out else "reward terms"
        yield _track(title, names, terms[:, large])


def _track(title: str, names: tuple[str, ...], values: NDArray[np.float32]) -> Track:
    columns = values.astype(np.float64)
    channels = (Channel(name=name, values=columns[:, n]) for n, name in enumerate(names))
    return Track(title=title, channels=tuple(channels))


def telling(names: tuple[str, ...]) -> list[int]:
    """The first few components that are not numbered members of a series, else the first few."""
    single = [n for n, name in enumerate(names) if not re.search(r"\d", name)]
    return (single or list(range(len(names))))[:MAX_VECTOR_TRACKS]
