"""Which episode a person means: by its place, by its number in the plan, or by a handy word."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import ConfigError, NoSegmentsError, SegmentCorruptError
from avtd3.store.filters import EpisodeFilter
from avtd3.store.segment import Segment

WORDS = ("worst", "best", "longest", "shortest", "random")
"""Names for the episode of least or largest return, of most or fewest steps, and for any one."""
_SHOWN = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlace:
    """Where an episode lies."""

    dataset: Path
    """The dataset's directory."""
    segment: Segment
    """The segment that holds it."""
    number: int
    """Its number in the segment, from 0."""

    @property
    def name(self) -> str:
        """``SEGMENT:NUMBER``, by which `find_episode` finds it again."""
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
        name: ``SEGMENT:NUMBER``, of the segment's name any part that no other has; a whole number,
            the episode's position in the collector's plan; or one of `WORDS`.
        rng: Draws for the word ``random``: each episode is as likely as any other.
        among: The episodes that the words choose from; None for all.

    Raises:
        ConfigError: No episode is called so, or several are.
        DatasetError: A path is no dataset.
        NoSegmentsError: There is no episode at all, or none that the filter means.
        SegmentCorruptError: The segment is named and damaged; the words pass over such segments.
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
    """Segments with their tables of episodes; the damaged and the vanished are passed over."""
    for segment in segments:
        try:
            yield segment, segment.episode_table()
        except (SegmentCorruptError, FileNotFoundError):
            continue


def _by_word(
    datasets: Sequence[Path], word: str, rng: np.random.Generator, among: EpisodeFilter
) -> EpisodePlace:
    found, largest = None, -np.inf
    for path in datasets:
        for segment, table in readable_tables(Dataset.open(path).snapshot().segments):
            meant = np.flatnonzero(among.matches(table))
            if not meant.size:
                continue
            keys = _keys(word, table, rng)
            number = int(meant[np.argmax(keys[meant])])
            if found is None or keys[number] > largest:
                largest = keys[number]
                found = EpisodePlace(dataset=path, segment=segment, number=number)
    if found is None:
        listed = ", ".join(map(str, datasets))
        which = "that can be read" if among == EpisodeFilter() else "that the filter means"
        raise NoSegmentsError(f"{listed} holds no episode {which}; avtd3 collect adds one")
    return found


def _keys(word: str, table: EpisodeTable, rng: np.random.Generator) -> NDArray[np.float64]:
    """What is largest for the episode that is meant; -inf where there is no such number."""
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
        return f"no {what}; avtd3 replay-inspect --episode worst names one that is there"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"more than one {what}: {', '.join(names[:_SHOWN])}{more}; name one of them"
